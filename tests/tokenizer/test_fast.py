# SPDX-License-Identifier: Apache-2.0
"""The fast engine against sentencepiece and tokenizers on random and on hard text, and every way back to
them."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, trainers

from megatron.tokenizer import Tokenizer, build_tokenizer, fast
from megatron.tokenizer.fast import FastEngine, LibraryEngine, Mismatch, Recipe, build_engine, plan_engine
from tests.data.corpora import latex_texts, python_texts, shared_folder, train_sentencepiece

ROOT = Path(__file__).resolve().parents[2]
PIECES = [
    *(" ", "  ", "    ", "\n", "\t", "\r\n", "\x00", fast.SPACE_PIECE, "<s>", "</s>", "<0x0A>", "<unk>"),
    *("a", "b", "the", "_", "=", "====", "----", "0", "17", "\\", "\\frac", "{", "}", "$", "é", "e\u0301"),
    *("中", "\U0001f600", "\U0001f469\u200d\U0001f467", "\u200b", "\ufeff", "∮", "\U0001d53d", "x^2"),
]
hard_text = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)
any_text = st.text(max_size=200) | hard_text


@pytest.fixture(scope="module")
def spm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(tmp_path_factory.mktemp("spm"))


@pytest.fixture(scope="module")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As GPT-2, Llama 3 and Qwen have it: a split into words, then bytes, then merges."""
    folder = tmp_path_factory.mktemp("hf")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|end|>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*python_texts()[:8], *latex_texts()], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    return folder


@pytest.fixture(scope="module")
def spm(spm_file: Path) -> tuple[Tokenizer, Recipe]:
    tokenizer = build_tokenizer("SPMTokenizer", spm_file)
    return tokenizer, plan_engine(tokenizer)


@pytest.fixture(scope="module")
def llama() -> tuple[sentencepiece.SentencePieceProcessor, FastEngine]:
    file = shared_folder() / "llama2_tokenizer.model"
    tokenizer = build_tokenizer("SPMTokenizer", file)
    recipe = plan_engine(tokenizer)
    assert recipe.reason is None
    return sentencepiece.SentencePieceProcessor(model_file=str(file)), FastEngine(recipe, tokenizer)


def test_a_trained_model_is_fast_and_gives_the_ids_of_sentencepiece(
    spm: tuple[Tokenizer, Recipe], spm_file: Path
) -> None:
    tokenizer, recipe = spm
    assert (recipe.name, recipe.reason) == ("gigatoken", None)
    engine = build_engine(recipe, tokenizer)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(spm_file))
    for text in (*python_texts(), *latex_texts(), *fast.HARD_TEXTS):
        assert engine.encode(text).tolist() == reference.encode(text)
    assert engine.reference_documents == 0


@settings(max_examples=300, deadline=None)
@given(text=any_text)
def test_random_text_has_the_ids_of_sentencepiece(spm: tuple[Tokenizer, Recipe], text: str) -> None:
    tokenizer, recipe = spm
    assert build_engine(recipe, tokenizer).encode(text).tolist() == tokenizer.encode(text)


@settings(max_examples=300, deadline=None)
@given(text=any_text, segment_characters=st.sampled_from([1, 7, 40, 1 << 20]))
def test_random_text_has_the_ids_of_llama_2(
    llama: tuple[sentencepiece.SentencePieceProcessor, FastEngine], text: str, segment_characters: int
) -> None:
    reference, engine = llama
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "SEGMENT_CHARACTERS", segment_characters)
        assert engine.encode(text).tolist() == reference.encode(text)


def test_real_documents_have_the_ids_of_llama_2(
    llama: tuple[sentencepiece.SentencePieceProcessor, FastEngine],
) -> None:
    reference, engine = llama
    lines = (shared_folder() / "math_test_recovered.jsonl").read_text(encoding="utf-8").splitlines()
    for text in (*python_texts(), *latex_texts(), *lines[:500], "\n".join(lines[:2000])):
        assert engine.encode(text).tolist() == reference.encode(text)


@pytest.mark.parametrize("word", ["a b ", " ", "\\alpha_{", "=", "ab", "\n", "\U0001f600x", "\x00"])
def test_long_lines(llama: tuple[sentencepiece.SentencePieceProcessor, FastEngine], word: str) -> None:
    reference, engine = llama
    text = word * (1_300_000 // len(word))
    assert engine.encode(text).tolist() == reference.encode(text)


@settings(max_examples=200, deadline=None)
@given(text=any_text)
def test_random_text_has_the_ids_of_tokenizers(byte_level: tuple[Tokenizer, FastEngine], text: str) -> None:
    tokenizer, engine = byte_level
    assert engine.encode(text).tolist() == tokenizer.encode(text)


@pytest.fixture(scope="module")
def byte_level(byte_level_folder: Path) -> tuple[Tokenizer, FastEngine]:
    tokenizer = build_tokenizer("HFTokenizer", byte_level_folder)
    recipe = plan_engine(tokenizer)
    assert (recipe.name, recipe.reason) == ("gigatoken", None)
    return tokenizer, FastEngine(recipe, tokenizer)


def test_words_that_all_differ_do_not_fill_the_memory(spm: tuple[Tokenizer, Recipe]) -> None:
    """Whoever remembers every word starts afresh when it has grown, and gives the same ids."""
    tokenizer, recipe = spm
    held = itertools.count(0, 50 << 20)
    looks: list[int] = []

    def memory_bytes() -> int:
        looks.append(next(held))
        return looks[-1]

    engine = FastEngine(recipe, tokenizer, memory_bytes)
    first: Any = engine._backend
    generator = random.Random(0)
    text = " ".join(f"{generator.getrandbits(64):x}" for _ in range(60_000))
    for _ in range(20):
        engine.encode(text)
    assert engine._backend is not first
    assert len(looks) > 4
    assert engine.encode(text[:1000]).tolist() == tokenizer.encode(text[:1000])


def test_memory_stays_within_bounds() -> None:
    """A process of its own meets 20 MB of words it has not seen and a line of 10 MB."""
    model = shared_folder() / "llama2_tokenizer.model"
    code = f"""
import random, sys
from pathlib import Path
from megatron.tokenizer import build_tokenizer
from megatron.tokenizer.fast import FastEngine, plan_engine
tokenizer = build_tokenizer("SPMTokenizer", Path({str(model)!r}))
engine = FastEngine(plan_engine(tokenizer), tokenizer)
generator = random.Random(0)
for _ in range(50):
    engine.encode(" ".join("%x" % generator.getrandbits(64) for _ in range(25_000)))
engine.encode("a line of ten million characters " * 310_000)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200, check=True
    )
    assert int(done.stdout) < 300_000_000 // 1024


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": "unigram"}, "it is not a BPE model"),
        ({"byte_fallback": False}, "it has no byte for what it does not know"),
        ({"normalization_rule_name": "nmt_nfkc"}, "it normalises text"),
        ({"remove_extra_whitespaces": True}, "it normalises text"),
        ({"add_dummy_prefix": False}, "it has no space in front"),
        ({"user_defined_symbols": ["\u2581\u2581"]}, "it has a user-defined symbol with spaces"),
    ],
)
def test_models_of_other_kinds_stay_with_sentencepiece(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    tokenizer = build_tokenizer("SPMTokenizer", train_sentencepiece(tmp_path, **options))
    recipe = plan_engine(tokenizer)
    assert recipe.name == "sentencepiece"
    assert reason in str(recipe.reason)
    engine = build_engine(recipe, tokenizer)
    assert isinstance(engine, LibraryEngine)
    assert engine.encode("a  b\u2581\u2581c").tolist() == tokenizer.encode("a  b\u2581\u2581c")
    assert engine.reference_documents == 1


def test_texts_with_user_defined_symbols_are_left_to_sentencepiece(tmp_path: Path) -> None:
    file = train_sentencepiece(tmp_path, user_defined_symbols=["\u2581<PRE>", "<mask>"])
    tokenizer = build_tokenizer("SPMTokenizer", file)
    engine = build_engine(plan_engine(tokenizer), tokenizer)
    assert isinstance(engine, FastEngine)
    for count, text in enumerate(("a <PRE>b", "<PRE>", "x<mask>y", "\u2581<PRE>"), 1):
        assert engine.encode(text).tolist() == tokenizer.encode(text)
        assert engine.reference_documents == count
    assert engine.encode("no symbol").tolist() == tokenizer.encode("no symbol")
    assert engine.reference_documents == 4


def test_hugging_face_files_that_gigatoken_cannot_follow(tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    recipe = plan_engine(build_tokenizer("HFTokenizer", tmp_path, "</s>"))
    assert (recipe.name, recipe.reason) == ("tokenizers", "its model is not BPE")


def test_a_definition_with_other_ids_is_found_out(
    spm: tuple[Tokenizer, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merges in another order than that of the scores, as a converter may make them."""
    tokenizer, recipe = spm
    merges = fast._merges

    def shuffled(*arguments: Any) -> list[list[str]]:
        return sorted(merges(*arguments))

    monkeypatch.setattr(fast, "_merges", shuffled)
    refused = plan_engine(tokenizer)
    assert refused.name == "sentencepiece"
    assert "gives other ids (from token" in str(refused.reason)

    definition = json.loads(recipe.definition or "")
    definition["added_tokens"] = [
        {"id": 1, "content": "<s>", "special": True, "normalized": False, "single_word": False}
        | {"lstrip": False, "rstrip": False}
    ]
    other = FastEngine(Recipe("gigatoken", "0", definition=json.dumps(definition)), tokenizer)
    with pytest.raises(Mismatch, match=r"from token \d of '<s>' on"):
        fast.compare(other, tokenizer, ["fine", "<s>"])


def test_the_library_by_choice_and_without_gigatoken(
    spm: tuple[Tokenizer, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, _ = spm
    assert plan_engine(tokenizer, allow_fast=False).reason == "it was asked for"

    def version(name: str) -> str:
        if name == "gigatoken":
            raise fast.importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(fast.importlib.metadata, "version", version)
    assert "gigatoken is not installed" in str(plan_engine(tokenizer).reason)
