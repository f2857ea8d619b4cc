# SPDX-License-Identifier: Apache-2.0
"""A checkpoint opened to be read with: as it is, in another precision or rotary base, and on more ranks.

Compared with transformers, float32, on the Hugging Face folder the checkpoint came from. Measured: the
logits differ by at most 1.5e-7 at TP 1 and TP 2.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.llamas import save_hf_llama
from tests.runs import call_on_ranks, run

TOKENS = [[3, 7, 200, 4, 4, 90, 11, 2, 45], [249, 0, 1, 17, 99, 3, 3, 3, 60]]
VOCAB = 250  # even, but at TP 4 not divisible: it is padded there
Logits = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`hf` and the checkpoint `base` made of it; its rotary base is 100,000."""
    folder = tmp_path_factory.mktemp("inference")
    save_hf_llama(folder / "hf", vocab_size=VOCAB, num_hidden_layers=2, num_key_value_heads=4)
    done = run(
        folder,
        "tools/convert_checkpoint.py",
        "hf-to-neox",
        "--input",
        folder / "hf",
        "--output",
        folder / "base",
    )
    assert done.status == 0, done.err
    return folder


def open_and_read(checkpoint: str, readings: list[dict[str, Any]], parallel: dict[str, int]) -> list[Any]:
    """Called on every rank: for each reading its logits and what is known of the model, or the error."""
    import torch
    import torch.distributed as dist

    from megatron.backend import initialize
    from megatron.checkpointing.inference import open_model
    from megatron.neox_arguments.config import ParallelConfig
    from megatron.neox_arguments.errors import UserError

    backend = initialize(ParallelConfig.model_validate(parallel), seed=1)
    found: list[Any] = []
    for reading in readings:
        try:
            opened = open_model(Path(checkpoint), backend, **reading)
        except UserError as error:
            found.append(str(error))
            continue
        facts = {
            "folder": opened.folder.name,
            "vocab_size": opened.tokenizer.vocab_size,
            "bases": (opened.period.checkpoint_base, opened.period.run_base),
            "dtype": str(next(opened.built.module.parameters()).dtype),
            "is_training": opened.built.module.training,
        }
        found.append((opened.logits(torch.tensor(TOKENS)).numpy(), facts))
    dist.barrier()  # rank 0 serves the others: it must not be gone before they are here
    return found


def read(
    folder: Path, *readings: dict[str, Any], ranks: int = 1, checkpoint: str = "base", **parallel: int
) -> Any:
    place = folder / f"ranks{ranks}"
    shutil.rmtree(place, ignore_errors=True)
    parallel = {"model_parallel_size": ranks, **parallel}
    return call_on_ranks(place, open_and_read, ranks, str(folder / checkpoint), list(readings), parallel)


def transformers_logits(hf: Path, rotary_base: float) -> Logits:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(hf)
    config.rope_parameters["rope_theta"] = rotary_base
    model = AutoModelForCausalLM.from_pretrained(hf, config=config, dtype=torch.float32)
    with torch.no_grad():
        logits: Logits = model(torch.tensor(TOKENS)).logits.numpy()
    return logits


def test_it_reads_as_transformers_does(folder: Path) -> None:
    readings: tuple[dict[str, Any], ...] = (
        {},
        {"rotary_base": 500.0},
        {"dtype": "bfloat16"},
        {"iteration": 0},
    )
    [[plain, contracted, half, chosen]] = read(folder, *readings)
    theirs = transformers_logits(folder / "hf", 100000.0)
    assert plain[0].shape == (2, 9, VOCAB)
    assert np.abs(plain[0] - theirs).max() < 1e-5
    assert plain[1] == {
        "folder": "global_step0",
        "vocab_size": VOCAB,
        "bases": (100000.0, 100000.0),
        "dtype": "torch.float32",
        "is_training": False,
    }
    assert np.abs(contracted[0] - transformers_logits(folder / "hf", 500.0)).max() < 1e-5
    assert np.abs(contracted[0] - theirs).max() > 1e-3, "another base is another function"
    assert contracted[1]["bases"] == (100000.0, 500.0)
    assert half[1]["dtype"] == "torch.bfloat16"
    assert half[0].dtype == np.float32
    assert 1e-5 < np.abs(half[0] - theirs).max() < 0.05
    assert np.array_equal(chosen[0], plain[0])


def test_every_tensor_parallel_rank_has_all_logits_and_no_padding(folder: Path) -> None:
    theirs = transformers_logits(folder / "hf", 100000.0)
    for [(logits, _)] in read(folder, {}, ranks=4):
        assert logits.shape == (2, 9, VOCAB)
        assert np.abs(logits - theirs).max() < 5e-5


def test_what_cannot_be_read_is_said(folder: Path, tmp_path: Path) -> None:
    [[missing]] = read(folder, {"iteration": 3})
    assert "iteration=3: " in missing
    assert "it has 0" in missing
    [[nowhere]] = read(folder, {}, checkpoint="nowhere")
    assert "no checkpoint there; give a run's save folder" in nowhere
    for [pipeline] in read(folder, {}, ranks=2, model_parallel_size=1, pipe_parallel_size=2):
        assert "pipe_parallel_size: reading works without a pipeline" in pipeline
    for [heads] in read(folder, {}, ranks=3):
        assert "num_attention_heads=4: is not divisible by model_parallel_size=3" in heads


@pytest.mark.parametrize(("file", "content", "message"), [
    ("base/tokenizer.json", None, "has no tokenizer with fingerprint"),
    ("base/tokenizer.json", "of another", "has no tokenizer with fingerprint"),
    ("checkpoint.json", "{", "checkpoint.json is damaged"),
    ("checkpoint.json", '{"iteration": 0}', "checkpoint.json is damaged"),
    ("checkpoint.json", "of the future", "format 99 is newer than 1"),
    ("checkpoint.json", "without heads", "checkpoint.json is damaged"),
    ("__0_0.distcp", "short", "the file __0_0.distcp has 5 of its "),
    (".metadata", "no pickle", "the file .metadata is damaged"),
])  # fmt: skip
def test_damage_is_named(folder: Path, tmp_path: Path, file: str, content: str | None, message: str) -> None:
    shutil.copytree(folder / "base", tmp_path / "base")
    damaged = tmp_path / "base" / "global_step0" / file
    if content is None:
        damaged.unlink()
    elif content == "of another":
        save_hf_llama(tmp_path / "other", vocab_size=VOCAB - 1, num_hidden_layers=1)
        shutil.copy(tmp_path / "other" / "tokenizer.json", damaged)
    elif content in ("of the future", "without heads"):
        record = json.loads(damaged.read_text())
        if content == "of the future":
            record["format_version"] = 99
        else:
            record["model"]["num_attention_heads"] = "many"
        damaged.write_text(json.dumps(record))
    else:
        damaged.write_text(content)
    [[error]] = read(tmp_path, {})
    assert message in error
    assert "\n" not in error
