# SPDX-License-Identifier: Apache-2.0
"""What is shown of a token file is what is in it: counts, text of documents, samples of a run, a picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from megatron import backend  # noqa: F401  (before megatron.core)
from megatron.data.readers import Corpus
from megatron.data.token_file import TokenFile
from megatron.data.tokenize_corpus import TokenizerSpec, Wish, tokenize_corpus
from megatron.tokenizer import build_tokenizer
from tests.data.corpora import (
    latex_texts,
    python_texts,
    random_documents,
    train_sentencepiece,
    write_documents,
)
from tools import inspect_dataset

COMMAND = [sys.executable, str(Path(__file__).resolve().parents[2] / "tools" / "inspect_dataset.py")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, a tokenizer, their token file and a run on it."""
    folder = tmp_path_factory.mktemp("inspect")
    model = train_sentencepiece(folder)
    texts = [*python_texts()[:8], *latex_texts()]
    (folder / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenize_corpus(
        Corpus([folder / "c.jsonl"]), folder / "c", Wish(TokenizerSpec("SPMTokenizer", model), True)
    )
    (folder / "run.yml").write_text(
        "num_layers: 1\nhidden_size: 8\nnum_attention_heads: 1\nseq_length: 32\nmax_position_embeddings: 32\n"
        f"lr: 0.001\ntrain_iters: 4\ntrain_batch_size: 2\ntokenizer_type: SPMTokenizer\nvocab_file: {model}\n"
        f"train_data_paths: [{folder / 'c'}]\nvalid_data_paths: [{folder / 'c'}]\nsave: {folder / 'save'}\n"
    )
    return folder


def inspect(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=200, check=False
    )


def facts(*arguments: object) -> dict[str, Any]:
    done = inspect(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_facts_text_and_picture(folder: Path, tmp_path: Path) -> None:
    texts = [text for text in (*python_texts()[:8], *latex_texts()) if text]
    picture = tmp_path / "lengths.png"
    model = folder / "tokenizer.model"
    found = facts(folder / "c", "--document", "-1", "--vocab-file", model, "--histogram", picture)
    file = TokenFile.open(folder / "c")
    assert (found["documents"], found["tokens"], found["dtype"]) == (len(texts), file.tokens, "uint16")
    sizes = found["document_tokens"]
    assert sizes["longest"] == max(file.lengths_D)
    assert sizes["percentiles"]["50"] == int(np.percentile(file.lengths_D, 50))
    assert found["sidecar"]["tokenizer"]["eod_id"] == 2
    assert found["document"]["number"] == len(texts) - 1
    assert found["document"]["text"] == texts[-1]
    assert found["document"]["ids"][-1] == 2
    assert imread(picture).shape[:2] == (480, 840)
    words = inspect(folder / "c").stdout
    assert f"tokens     {file.tokens:,} (uint16" in words
    assert "id 2 ends each" in words
    assert "encoder    gigatoken" in words
    assert f"source     {folder / 'c.jsonl'} (1 files" in words


@pytest.mark.parametrize(("of", "number"), [("train", 5), ("c", 0)])
def test_samples_are_those_of_the_run(folder: Path, of: str, number: int) -> None:
    """Against megatron-core's packing laid out by hand: a sample is a stretch of the shuffled documents."""
    found = inspect_dataset.sample_of([folder / "run.yml"], number, of, 1)
    assert found["source"] == "c"
    assert len(found["ids"]) == 32
    tokenizer = build_tokenizer("SPMTokenizer", folder / "tokenizer.model")
    assert found["text"] == tokenizer.decode(found["ids"])
    file = TokenFile.open(folder / "c")
    whole = [file.document(number).tolist() for number in range(file.documents)]
    # Within one document it stands there as it is; across a border it ends one and begins another.
    pieces = " ".join(map(str, found["ids"])).split(" 2 ")
    assert all(any(piece in " ".join(map(str, ids)) for ids in whole) for piece in pieces)


def test_what_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_documents(tmp_path / "other", random_documents(0, 5))
    model = folder / "tokenizer.model"
    for arguments, words in (
        ([], "give a token file"),
        ([tmp_path / "nowhere"], "does not exist"),
        ([folder / "c", "--document", 999, "--vocab-file", model], "has documents 0 to"),
        ([folder / "c", "--document", 0], "give the tokenizer that wrote the file"),
        ([other, "--document", 0, "--vocab-file", model], "is not the tokenizer that wrote"),
        ([folder / "c", "--sample", 0], "--sample needs --config"),
        (["--config", folder / "run.yml", "--sample", 8], "the run reads sequences 0 to 7"),
        (
            ["--config", folder / "run.yml", "--sample", 0, "--of", "x"],
            "is no set of the run; use one of train",
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["inspect_dataset.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            inspect_dataset.main()
        assert left.value.code == 2
        assert words in capsys.readouterr().err


def test_ids_that_the_tokenizer_does_not_have(folder: Path, tmp_path: Path) -> None:
    for suffix in (".idx", ".json"):
        (tmp_path / f"d{suffix}").write_bytes((folder / f"c{suffix}").read_bytes())
    (tmp_path / "d.bin").write_bytes(b"\xff" * (folder / "c.bin").stat().st_size)
    done = inspect(tmp_path / "d", "--document", 1, "--vocab-file", folder / "tokenizer.model")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "d: holds id 65535, which the tokenizer with 800 ids does not have" in done.stderr


def test_a_reader_that_has_seen_enough(folder: Path) -> None:
    """As `head -1`: the pipe is closed before anything is written."""
    process = subprocess.Popen(
        [*COMMAND, str(folder / "c")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    shown = process.stderr.read()
    assert process.wait(200) == 141
    assert shown == ""
