# SPDX-License-Identifier: Apache-2.0
"""Tokenizers against the libraries they stand on: ids, end of document, fingerprint, and what they refuse."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from megatron.neox_arguments.errors import UserError
from megatron.tokenizer import build_tokenizer, pad_vocab
from tests.data.corpora import latex_texts, python_texts, shared_folder, train_sentencepiece


@pytest.fixture(scope="module")
def spm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(tmp_path_factory.mktemp("spm"))


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    """A byte-level BPE with a BOS in its post-processor, and truncation and padding left on."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>", "<|other|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*python_texts()[:8], *latex_texts()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16, pad_id=2, pad_token="<|other|>")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "<|end|>"})
    return tmp_path


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def same_as_sentencepiece(model: Path, texts: tuple[str, ...]) -> None:
    tokenizer = build_tokenizer("SPMTokenizer", model)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(model), add_bos=False, add_eos=False)
    expected = [reference.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts) == expected
    assert [tokenizer.encode(text) for text in texts] == expected
    assert tokenizer.vocab_size == reference.vocab_size()
    for text, ids in zip(texts, expected, strict=True):
        assert tokenizer.decode(ids) == text


def test_sentencepiece_ids_are_those_of_sentencepiece(spm_file: Path) -> None:
    same_as_sentencepiece(spm_file, (*python_texts(), *latex_texts(), "", "∮ 𝔽 \x00"))


def test_llama_2_ids_are_those_of_sentencepiece() -> None:
    folder = shared_folder()
    lines = (folder / "math_test_recovered.jsonl").read_text(encoding="utf-8").splitlines()
    solutions = tuple(json.dumps(json.loads(line), ensure_ascii=False) for line in lines)
    same_as_sentencepiece(folder / "llama2_tokenizer.model", (*python_texts(), *latex_texts(), *solutions))
    assert build_tokenizer("SPMTokenizer", folder / "llama2_tokenizer.model").vocab_size == 32000


def test_control_tokens_in_a_text_stay_text(spm_file: Path) -> None:
    tokenizer = build_tokenizer("SPMTokenizer", spm_file)
    ids = tokenizer.encode("a</s><s>b")
    assert not {1, 2} & set(ids)
    assert tokenizer.decode(ids) == "a</s><s>b"


@pytest.mark.parametrize(
    ("eod", "expected"), [(None, 2), ("</s>", 2), ("unk0", 0), ("<s>", 1), ("<0x0A>", 13)]
)
def test_end_of_document_of_sentencepiece(spm_file: Path, eod: str | None, expected: int) -> None:
    assert build_tokenizer("SPMTokenizer", spm_file, eod).eod_id == expected


def test_an_end_of_document_that_is_no_piece_is_refused(spm_file: Path) -> None:
    with pytest.raises(UserError, match=r"eod_token=<\|endoftext\|>: is not a piece.*'unk0'"):
        build_tokenizer("SPMTokenizer", spm_file, "<|endoftext|>")


def test_a_model_without_end_of_sentence_asks_for_one(tmp_path: Path) -> None:
    model = train_sentencepiece(tmp_path, eos_id=-1)
    with pytest.raises(UserError, match="set eod_token"):
        build_tokenizer("SPMTokenizer", model)
    assert build_tokenizer("SPMTokenizer", model, "unk0").eod_id == 0


def test_fingerprint_of_sentencepiece_is_the_hash_of_its_model(spm_file: Path, tmp_path: Path) -> None:
    tokenizer = build_tokenizer("SPMTokenizer", spm_file)
    assert tokenizer.fingerprint == hashlib.sha256(spm_file.read_bytes()).hexdigest()
    other = train_sentencepiece(tmp_path, vocab_size=801)
    assert build_tokenizer("SPMTokenizer", other).fingerprint != tokenizer.fingerprint


def test_hugging_face_ids_are_those_of_transformers(hf_folder: Path) -> None:
    tokenizer = build_tokenizer("HFTokenizer", hf_folder)
    reference = PreTrainedTokenizerFast(tokenizer_file=str(hf_folder / "tokenizer.json"))
    texts = [*python_texts(), *latex_texts(), "", "a<|end|>b"]
    expected = [reference(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert tokenizer.encode_batch(texts) == expected
    assert [tokenizer.encode(text) for text in texts] == expected
    assert [tokenizer.decode(ids) for ids in expected] == texts
    assert tokenizer.vocab_size == len(reference)
    assert tokenizer.encode("<|end|>") == [tokenizer.eod_id]


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("tokenizer_config.json", {"eos_token": "<|end|>"}, 1),
        ("tokenizer_config.json", {"eos_token": {"content": "<|other|>", "lstrip": False}}, 2),
        ("special_tokens_map.json", {"eos_token": "<|end|>"}, 1),
        ("generation_config.json", {"eos_token_id": 2}, 2),
        ("config.json", {"eos_token_id": [1]}, 1),
    ],
)
def test_end_of_document_as_a_hugging_face_folder_declares_it(
    hf_folder: Path, tmp_path: Path, file: str, content: dict[str, Any], expected: int
) -> None:
    (hf_folder / "tokenizer_config.json").unlink()
    write_json(hf_folder / file, content)
    tokenizer = build_tokenizer("HFTokenizer", hf_folder / "tokenizer.json")
    assert tokenizer.eod_id == expected
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tokenizer.files:
        shutil.copy(path, copy)
    rebuilt = build_tokenizer("HFTokenizer", copy)
    assert (rebuilt.eod_id, rebuilt.fingerprint) == (tokenizer.eod_id, tokenizer.fingerprint)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"no end-of-sequence token is named.*set eod_token .*<\|begin\|>, <\|end\|>"),
        ({"eos_token": "</s>"}, "eos_token=</s>: is not one token.*set eod_token"),
        ({"eos_token": None}, "no end-of-sequence token is named"),
        ([], "no end-of-sequence token is named"),
    ],
)
def test_no_end_of_document_in_a_hugging_face_folder(hf_folder: Path, config: object, message: str) -> None:
    write_json(hf_folder / "tokenizer_config.json", config)
    with pytest.raises(UserError, match=message):
        build_tokenizer("HFTokenizer", hf_folder)
    assert build_tokenizer("HFTokenizer", hf_folder, "<|end|>").eod_id == 1


def test_several_ends_of_document_are_not_chosen_from(hf_folder: Path) -> None:
    (hf_folder / "tokenizer_config.json").unlink()
    write_json(hf_folder / "generation_config.json", {"eos_token_id": [1, 2]})
    with pytest.raises(UserError, match=r"eos_token_id=\[1, 2\]: is not one token.*set eod_token"):
        build_tokenizer("HFTokenizer", hf_folder)


def test_fingerprint_survives_being_saved_by_transformers(hf_folder: Path, tmp_path: Path) -> None:
    before = build_tokenizer("HFTokenizer", hf_folder)
    reference = PreTrainedTokenizerFast(tokenizer_file=str(hf_folder / "tokenizer.json"), eos_token="<|end|>")
    reference.save_pretrained(tmp_path / "saved")
    after = build_tokenizer("HFTokenizer", tmp_path / "saved")
    assert (after.fingerprint, after.eod_id) == (before.fingerprint, before.eod_id)

    definition = json.loads((hf_folder / "tokenizer.json").read_text())
    definition["model"]["merges"].pop()
    write_json(hf_folder / "tokenizer.json", definition)
    assert build_tokenizer("HFTokenizer", hf_folder).fingerprint != before.fingerprint


def test_folders(spm_file: Path, hf_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no tokenizer\.model"):
        build_tokenizer("SPMTokenizer", hf_folder)
    assert build_tokenizer("HFTokenizer", spm_file.parent).name == "SPMTokenizer"
    shutil.copy(spm_file, hf_folder / "tokenizer.model")
    assert build_tokenizer("SPMTokenizer", hf_folder).name == "SPMTokenizer"
    assert build_tokenizer("HFTokenizer", hf_folder).name == "HFTokenizer"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"holds no tokenizer\.json or tokenizer\.model"):
        build_tokenizer("HFTokenizer", empty)


def test_a_folder_of_its_files_builds_a_tokenizer_again(
    spm_file: Path, hf_folder: Path, tmp_path: Path
) -> None:
    for kind, file, name in (
        ("SPMTokenizer", spm_file, "llama2_tokenizer.model"),
        ("HFTokenizer", hf_folder / "tokenizer.json", "20B_tokenizer.json"),
    ):
        origin, copy = tmp_path / f"{kind}-origin", tmp_path / f"{kind}-copy"
        origin.mkdir()
        copy.mkdir()
        shutil.copy(file, origin / name)
        shutil.copy(hf_folder / "tokenizer_config.json", origin)
        tokenizer = build_tokenizer(kind, origin / name)
        for path in tokenizer.files:
            shutil.copy(path, copy)
        rebuilt = build_tokenizer(kind, copy)
        assert (rebuilt.fingerprint, rebuilt.eod_id) == (tokenizer.fingerprint, tokenizer.eod_id)


def test_missing_files_and_unknown_types(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vocab_file=.*nowhere: does not exist; give"):
        build_tokenizer("SPMTokenizer", tmp_path / "nowhere")
    with pytest.raises(
        UserError, match="tokenizer_type=GPT2BPETokenizer: is unknown; use one of SPMTokenizer"
    ):
        build_tokenizer("GPT2BPETokenizer", tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["SPMTokenizer", "HFTokenizer"]),
    content=st.binary(max_size=200)
    | st.sampled_from([b"{}", b"[]", b"null", b'{"model": {}}', b'{"model": 1}']),
)
def test_files_that_are_no_tokenizer_are_refused_in_words(tmp_path: Path, kind: str, content: bytes) -> None:
    file = tmp_path / "tokenizer.bin"
    file.write_bytes(content)
    with pytest.raises(UserError, match="vocab_file="):
        build_tokenizer(kind, file)


def test_padded_vocabularies_of_known_models() -> None:
    assert pad_vocab(32016, 1, 2) == 32016  # Llemma 7B
    assert pad_vocab(32000, 1, 8) == 32000  # Llemma 34B
    assert pad_vocab(50257, 128, 1) == 50304  # GPT-2's tokenizer, as Megatron-LM and GPT-NeoX pad it
    assert pad_vocab(50277, 128, 2) == 50432  # GPT-NeoX-20B


@given(st.integers(1, 300_000), st.integers(1, 512), st.integers(1, 64))
def test_padding_is_the_next_multiple(vocab_size: int, divisible_by: int, tp: int) -> None:
    padded = pad_vocab(vocab_size, divisible_by, tp)
    assert padded % (divisible_by * tp) == 0
    assert 0 <= padded - vocab_size < divisible_by * tp


def test_padding_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="tp=0 must be at least 1"):
        pad_vocab(10, 1, 0)
