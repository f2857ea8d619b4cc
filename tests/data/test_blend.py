# SPDX-License-Identifier: Apache-2.0
"""The data of a run as its configuration says: names, weights, splits, and everything that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from megatron.data.blend import Blends, build_blends
from megatron.data.token_file import TokenFileWriter
from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import ConfigError, UserError
from megatron.tokenizer import Tokenizer
from tests.data.corpora import numbers, provenance, random_documents, write_documents

SEQ_LENGTH = 16


def run_config(tmp_path: Path, do_test: bool = True, save: bool = True, **data: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "seq_length": SEQ_LENGTH,
                      "max_position_embeddings": SEQ_LENGTH},
            "optimizer": {"lr": 1e-3},
            "schedule": {"train_iters": 1},
            "data": data,
            "validation": {"do_test": do_test},
            "checkpoint": {"save": tmp_path / "save"} if save else {},
        }
    )  # fmt: skip


def blends(
    tmp_path: Path, train: int = 100, evaluation: int = 10, tokenizer: Tokenizer | None = None, **data: Any
) -> Blends:
    return build_blends(run_config(tmp_path, **data), tokenizer or numbers(), train, evaluation)


@pytest.fixture
def corpus(tmp_path: Path) -> dict[str, Path]:
    return {
        name: write_documents(tmp_path / f"{name}_text_document", random_documents(seed, 150))
        for seed, name in enumerate(["arxiv", "web", "code", "valid", "test"])
    }


def test_each_source_has_its_name(tmp_path: Path, corpus: dict[str, Path]) -> None:
    built = blends(
        tmp_path,
        train_data_paths=[corpus["arxiv"], corpus["web"], corpus["code"]],
        train_data_weights=[2.0, 4.0, 1.0],
        valid_data_paths=[corpus["valid"], corpus["web"]],
        test_data_paths=[corpus["test"]],
        test_data_names=["held out"],
    )
    assert built.train is not None
    assert built.train.names == ["arxiv", "web", "code"]
    assert len(built.train) == 100
    drawn = [built.train.source_of(position) for position in range(100)]
    assert [drawn.count(name) for name in built.train.names] == [29, 57, 14]
    assert list(built.valid) == ["valid", "web"]
    assert list(built.test) == ["held out"]
    assert [len(order) for order in (*built.valid.values(), *built.test.values())] == [10, 10, 10]
    assert built.notices == []
    assert (tmp_path / "index_cache").is_dir()


def test_a_split_of_one_file(tmp_path: Path) -> None:
    documents = [[number] * 20 for number in range(300)]
    prefix = write_documents(tmp_path / "math_text_document", documents)
    built = blends(tmp_path, train=50, data_path=prefix, split="8,1,1")
    assert built.train is not None

    def read(order: Any) -> set[int]:
        return {int(token) for position in range(len(order)) for token in order[position].tokens_S}

    assert read(built.train) <= set(range(240))
    assert read(built.valid["math"]) <= set(range(240, 270))
    assert read(built.test["math"]) <= set(range(270, 300))
    assert blends(tmp_path, data_path=prefix, split="1", train=5).valid == {}


def test_what_is_not_asked_for_is_not_built(tmp_path: Path, corpus: dict[str, Path]) -> None:
    built = blends(tmp_path, train=0, evaluation=3, valid_data_paths=[corpus["valid"]])
    assert built.train is None
    assert list(built.valid) == ["valid"]
    assert (
        blends(tmp_path, 5, 0, train_data_paths=[corpus["web"]], valid_data_paths=[corpus["valid"]]).valid
        == {}
    )
    cfg = run_config(
        tmp_path, do_test=False, test_data_paths=[tmp_path / "missing"], train_data_paths=[corpus["web"]]
    )
    assert build_blends(cfg, numbers(), 5, 5).test == {}
    with pytest.raises(ConfigError, match="train_data_paths: is not set, and neither is data_path"):
        blends(tmp_path, valid_data_paths=[corpus["valid"]])


def test_a_weight_of_zero_leaves_a_source_out(tmp_path: Path, corpus: dict[str, Path]) -> None:
    built = blends(tmp_path, train_data_paths=[corpus["arxiv"], corpus["web"]], train_data_weights=[1.0, 0.0])
    assert built.train is not None
    assert built.train.names == ["arxiv"]
    assert built.notices == ["web: has weight 0 and is not read"]


def test_all_unusable_files_are_told_together(tmp_path: Path, corpus: dict[str, Path]) -> None:
    (tmp_path / "junk.idx").write_text("junk")
    (tmp_path / "junk.bin").write_text("junk")
    other = write_documents(tmp_path / "other", [[1, 2]], numbers(fingerprint="0" * 64))
    with pytest.raises(UserError) as caught:
        blends(
            tmp_path,
            train_data_paths=[corpus["web"], tmp_path / "missing", tmp_path / "junk"],
            valid_data_paths=[other],
        )
    first, second, third = str(caught.value).splitlines()
    assert "missing.idx: does not exist" in first
    assert "junk.idx: is not an index of Megatron" in second
    assert f"{other}: was written by another tokenizer" in third
    assert "set vocab_file to the one it was written with, or tokenise the text again" in third


def test_another_end_of_document_is_refused(tmp_path: Path, corpus: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="ends its documents with id 2, and the run with id 0; set eod_token"):
        blends(tmp_path, tokenizer=numbers(eod_id=0), train_data_paths=[corpus["web"]])


def test_files_without_end_of_document_are_noticed(tmp_path: Path) -> None:
    with TokenFileWriter(tmp_path / "p", 1000) as writer:
        for document in random_documents(0, 100):
            writer.add_document(document)
        writer.finalize(provenance(numbers(), eod_appended=False))
    built = blends(tmp_path, train=5, train_data_paths=[tmp_path / "p"])
    assert "was written without --append-eod" in built.notices[0]


def foreign(prefix: Path, documents: list[list[int]], dtype: type[np.number] = np.int32) -> Path:
    """A token file of megatron-core, without a sidecar."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(f"{prefix}.idx")
    return prefix


def test_files_of_others_are_read_with_a_notice(tmp_path: Path) -> None:
    prefix = foreign(tmp_path / "p", random_documents(0, 200))
    built = blends(tmp_path, train=20, train_data_paths=[prefix])
    assert built.train is not None
    assert len(built.train) == 20
    assert built.notices == [
        f"{prefix}: has no .json beside it, so which tokenizer wrote it is unknown; "
        "a sample of its ids lies inside the vocabulary of 1000"
    ]


@pytest.mark.parametrize("bad", [1000, -1])
def test_files_of_others_with_ids_outside_the_vocabulary_are_refused(tmp_path: Path, bad: int) -> None:
    documents = random_documents(0, 200)
    documents[100] = [bad] * 5
    with pytest.raises(
        UserError, match=f"holds id {bad}, which the run's tokenizer with 1000 ids does not have"
    ):
        blends(tmp_path, train=20, train_data_paths=[foreign(tmp_path / "p", documents)])


def test_too_little_data_names_path_tokens_and_seq_length(tmp_path: Path, corpus: dict[str, Path]) -> None:
    tiny = write_documents(tmp_path / "tiny_text_document", [[1], [2], [3]])
    for paths in ({"train_data_paths": [corpus["web"], tiny]}, {"valid_data_paths": [tiny]}):
        data: dict[str, Any] = {"train_data_paths": [corpus["web"]], **paths}
        with pytest.raises(
            UserError,
            match=rf"tiny \({tiny}\): 3 documents with 3 tokens do not fill one .* seq_length=16 .*; add doc",
        ):
            blends(tmp_path, **data)


def test_all_that_is_too_small_is_told_together(tmp_path: Path) -> None:
    tiny = [write_documents(tmp_path / name, [[1], [2]]) for name in ("a", "b")]
    with pytest.raises(UserError) as caught:
        blends(tmp_path, train_data_paths=tiny, valid_data_paths=tiny[:1])
    assert [line.split(" ")[0] for line in str(caught.value).splitlines()] == ["a", "b"]


def test_one_token_documents_are_data_like_any_other(tmp_path: Path) -> None:
    prefix = write_documents(tmp_path / "p", [[number] for number in range(100)])
    built = blends(tmp_path, train=6, train_data_paths=[prefix])
    assert built.train is not None
    tokens = [int(token) for position in range(6) for token in built.train[position].tokens_S]
    assert len(set(tokens)) == 96


def test_reading_a_source_again_is_noticed(tmp_path: Path) -> None:
    prefix = write_documents(tmp_path / "math_text_document", [[1] * 17] * 10)  # 10 sequences
    built = blends(tmp_path, train=25, evaluation=4, data_path=prefix, split="1")
    assert built.notices == [
        f"math ({prefix}): holds 10 sequences and is asked for 25, so it is read 2.50 times"
    ]


def test_names_that_repeat_are_refused(tmp_path: Path, corpus: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="data_names.*repeats same"):
        blends(tmp_path, train_data_paths=[corpus["web"], corpus["arxiv"]], data_names=["same", "same"])


def test_indices_go_where_they_can_be_written(
    tmp_path: Path, corpus: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    blends(tmp_path, train_data_paths=[corpus["web"]], data_cache_path=tmp_path / "chosen")
    assert list((tmp_path / "chosen").glob("web-*.npy"))
    assert not (tmp_path / "index_cache").exists()
    monkeypatch.setattr("megatron.data.blend.os.access", lambda *_: False)
    blends(tmp_path, train_data_paths=[corpus["web"]])
    assert list((tmp_path / "save" / "index_cache").glob("web-*.npy"))
    assert "in its memory" in blends(tmp_path, save=False, train_data_paths=[corpus["web"]]).notices[0]
