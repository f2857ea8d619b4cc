# SPDX-License-Identifier: Apache-2.0
"""What happens when the fast engine gives another id in the middle of a corpus, and what a process holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece

from megatron.data import tokenize_corpus as module
from megatron.data.parts import Plan
from megatron.data.readers import Corpus
from megatron.data.token_file import TokenFile, TokenFileWriter
from megatron.data.tokenize_corpus import Advance, Settings, TokenizerSpec, Wish, tokenize_corpus
from megatron.tokenizer import fast
from megatron.tokenizer.fast import FastEngine, Mismatch
from tests.data.corpora import latex_texts, python_texts, train_sentencepiece


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> TokenizerSpec:
    return TokenizerSpec("SPMTokenizer", train_sentencepiece(tmp_path_factory.mktemp("spm")))


class InThisProcess:
    """Stands for `Workers`: does the tasks here, where a test can reach them."""

    def __class_getitem__(cls, parameters: object) -> type[InThisProcess]:
        return cls

    def __init__(self, count: int, make: type[module._PartMaker], expected: object) -> None:
        self._make = make

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def set_up(self, setup: Settings) -> None:
        """Keep what tasks are done with."""
        self._handle = self._make(setup)

    def run(self, tasks: list[module.Task | module.Hashes], wait_seconds: float) -> Iterator[Advance]:
        """Do them."""
        for task in tasks:
            yield from self._handle(task)


def write_corpus(folder: Path) -> list[str]:
    folder.mkdir()
    texts = ["", *python_texts()[:20], "the needle " * 3, *latex_texts()]
    for number, text in enumerate(texts):
        (folder / f"{number:02}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    return [text for text in texts if text]


def test_another_id_in_the_middle_makes_all_the_librarys(
    tmp_path: Path, spec: TokenizerSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = write_corpus(tmp_path / "in")
    encode = FastEngine.encode

    def wrong_at_the_needle(self: FastEngine, text: str) -> fast.Ids:
        return encode(self, text)[1:] if "needle" in text else encode(self, text)

    monkeypatch.setattr(FastEngine, "encode", wrong_at_the_needle)
    monkeypatch.setattr(module, "Workers", InThisProcess)
    sidecar = tokenize_corpus(Corpus([tmp_path / "in"]), tmp_path / "out", Wish(spec, append_eod=True))
    assert sidecar is not None
    shown = capsys.readouterr().err
    assert "gave other ids (from token" in shown
    assert "all is tokenised again" in shown
    assert sidecar.engine.startswith("sentencepiece ")
    assert (sidecar.reference_documents, sidecar.empty_documents) == (len(texts) + 1, 1)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(spec.vocab_file))
    file = TokenFile.open(tmp_path / "out")
    found = [file.document(number).tolist() for number in range(file.documents)]
    assert found == [[*reference.encode(text), 2] for text in texts]


def test_a_refused_engine_is_remembered_by_a_run_that_goes_on(
    tmp_path: Path, spec: TokenizerSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "in")
    calls: list[str] = []

    def do(run: object, settings: Settings, tasks: object) -> None:
        calls.append(settings.recipe.name)
        if settings.recipe.name == "gigatoken":
            raise Mismatch("somewhere")
        raise KeyboardInterrupt

    monkeypatch.setattr(module._Run, "do", do)
    monkeypatch.setattr(module, "Workers", InThisProcess)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tokenize_corpus(Corpus([tmp_path / "in"]), tmp_path / "out", Wish(spec, append_eod=True))
    assert calls == ["gigatoken", "sentencepiece", "sentencepiece"]
    assert capsys.readouterr().err.count("somewhere") == 2


def test_a_file_that_changes_under_the_reader_is_no_part(
    tmp_path: Path, spec: TokenizerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "one"}\n')
    add_documents = TokenFileWriter.add_documents

    def grow(self: TokenFileWriter, *arguments: fast.Ids) -> None:
        add_documents(self, *arguments)
        with open(path, "a") as file:
            file.write('{"text": "two"}\n')

    monkeypatch.setattr(TokenFileWriter, "add_documents", grow)
    monkeypatch.setattr(module, "Workers", InThisProcess)
    with pytest.raises(module.UserError, match="has changed while it was read; start again"):
        tokenize_corpus(Corpus([path]), tmp_path / "out", Wish(spec, append_eod=True))
    assert not list((tmp_path / "out.parts").glob("*-*.json"))
    assert Plan.of(Corpus([path])).corpus.total_bytes == 32
