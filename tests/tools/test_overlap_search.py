# SPDX-License-Identifier: Apache-2.0
"""The searches against the plain definition: sets of joined words, and of tuples of ids."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.data.corpora import Numbers, python_texts, shared_folder
from tests.tools.overlaps import documents, grams_of, items, plain_hits
from tools.overlap_parts.items import token_patterns, word_patterns
from tools.overlap_parts.search import TokenSearch, WordSearch, hits_of

# All that str.split() cuts at, and what looks like it and is none (NUL, zero width space, no-break hyphen).
WHITE = [chr(code) for code in range(0x110000) if chr(code).isspace()]
NEARLY_WHITE = ["\0", "\x1b", "\u200b", "\u2011", "\u00ad", "\u2060", "\ufeff", "\u180e", "\u2800", "\u3001"]


def found_by(search: WordSearch, texts: Sequence[str]) -> set[tuple[int, int, str]]:
    return {
        (hit.document, item, hit.gram)
        for hit in hits_of(search, search.occurrences(texts))
        for item in hit.items
    }


@pytest.mark.parametrize("n", [4, 13, 30])
def test_hits_are_those_of_the_definition(n: int) -> None:
    questions, texts = items(), documents(45)
    search = WordSearch(word_patterns(questions, n, None))
    expected = plain_hits(texts, questions, n)
    assert len(expected) > 50
    assert found_by(search, texts) == expected


words = st.sampled_from(["a", "b", "ab", "x²", "ℝ", "longer-than-eight-bytes", "数学", "\0", "\u200b", "é"])
gaps = st.sampled_from([*WHITE, " ", "  ", " " * 9, "\n" + " " * 16, "\r\n"])


@st.composite
def texts_of_few_words(draw: st.DrawFn) -> str:
    """Few words, so that they repeat; any white space between them, before and behind."""
    parts = draw(st.lists(st.tuples(words, gaps), max_size=60))
    return draw(st.sampled_from(["", " ", "\u3000", "\n\n"])) + "".join(w + gap for w, gap in parts)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(texts_of_few_words(), min_size=1, max_size=4),
    st.lists(texts_of_few_words(), min_size=1, max_size=5),
    st.integers(2, 12),
)
@example(["a b " * 40], ["a b " * 30, "", " ", "b"], 2)
@example(["x " * 40], ["y" * 5000 + " x" * 31 + " " + "z" * 5000], 30)
def test_hits_of_any_text(questions: list[str], texts: list[str], n: int) -> None:
    search = WordSearch(word_patterns(questions, n, None))
    hits = hits_of(search, search.occurrences(texts))
    assert found_by(search, texts) == plain_hits(texts, questions, n)
    for hit in hits:  # and they stand where they are said to
        text = texts[hit.document]
        assert text.split()[hit.unit : hit.unit + n] == hit.gram.split(" ")
        assert " ".join(text[hit.start : hit.end].split()) == hit.gram
        every = [text.split()[at : at + n] for at in range(len(text.split()) - n + 1)]
        assert hit.occurrences == every.count(hit.gram.split(" "))
        assert every.index(hit.gram.split(" ")) == hit.unit


@pytest.mark.parametrize(
    "character", [*WHITE, *NEARLY_WHITE], ids=lambda character: f"U+{ord(character):04X}"
)
def test_words_end_where_split_ends_them(character: str) -> None:
    question = "one two three four five six seven eight nine ten"
    texts = [
        question.replace(" ", character),
        f"x{character}{question}{character}y",
        question.replace("e", "é"),
    ]
    search = WordSearch(word_patterns([question], 8, None))
    assert found_by(search, texts) == plain_hits(texts, [question], 8)
    if character in WHITE:
        assert len(plain_hits(texts[:2], [question], 8)) == 6


def test_a_hit_is_found_at_every_offset() -> None:
    question = " ".join(f"w{number}" for number in range(40))
    search = WordSearch(word_patterns([question], 30, None))
    texts = [f"{'x' * offset} {' '.join(question.split()[7:37])} {'y' * offset}" for offset in range(300)]
    assert {document for document, _, _ in found_by(search, texts)} == set(range(300))


def test_short_items_are_counted_and_matched_whole_on_request() -> None:
    questions = ["too short", "an item of seven words in all", " ".join("abcdefghijkl")]
    texts = [
        "here: an item of seven words in all!",
        "an item of seven words in all",
        " ".join("xabcdefghijkly"),
    ]
    plain = word_patterns(questions, 10, None)
    assert (plain.short_items, plain.unmatched_items) == ([0, 1], [0, 1])
    assert {item for _, item, _ in found_by(WordSearch(plain), texts)} == {2}
    whole = word_patterns(questions, 10, 5)
    assert (whole.short_items, whole.unmatched_items) == ([0, 1], [0])
    assert found_by(WordSearch(whole), texts) == {(1, 1, questions[1])} | plain_hits(texts, questions, 10)


def test_no_item_with_an_ngram_finds_nothing() -> None:
    search = WordSearch(word_patterns(["short", ""], 30, None))
    assert list(search.occurrences(["anything at all"])) == []


class Decimal(Numbers):
    """Ids as they are shown in hits."""

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), max_size=40), min_size=1, max_size=4),
    st.lists(st.lists(st.integers(0, 3), max_size=60), min_size=1, max_size=5),
    st.integers(2, 12),
    st.sampled_from([None, 2, 3]),
)
def test_hits_of_tokens_never_cross_documents(
    questions: list[list[int]], texts: list[list[int]], n: int, short: int | None
) -> None:
    search = TokenSearch(token_patterns(questions, n, short), Decimal(4))  # type: ignore[arg-type]
    bounds_D = np.cumsum([0, *map(len, texts)])
    flat = np.array([token for text in texts for token in text], np.uint16)
    found = {
        (hit.document, item, hit.unit)
        for hit in hits_of(search, search.occurrences_in(flat, bounds_D))
        for item in hit.items
    }
    expected = set()
    for document, text in enumerate(texts):
        first: dict[tuple[int, ...], int] = {}
        for item, question in enumerate(questions):
            length = n if len(question) >= n else len(question) if short and len(question) >= short else 0
            grams = (
                {tuple(question[at : at + length]) for at in range(len(question) - length + 1)}
                if length
                else set()
            )
            for at in range(len(text) - length + 1 if length else 0):
                gram = tuple(text[at : at + length])
                if gram in grams:
                    expected.add((document, item, first.setdefault(gram, at)))
    assert found == expected


def test_the_hits_that_others_published() -> None:
    """30-gram hits of MATH and GSM8K in the Proof-Pile-2, each with its document, item and n-grams."""
    with open(shared_folder() / "overlap_hits_30gram.jsonl", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    for record in records:
        text = record["output" if record["test_field"].endswith("solution") else "input"]
        published = set(record["hits_by_test_id"][str(record["test_id"])])
        search = WordSearch(word_patterns([text], 30, None))
        assert {gram for _, _, gram in found_by(search, [record["corpus_text"]])} == published
        others = [gram for grams in record["hits_by_test_id"].values() for gram in grams]
        search = WordSearch(word_patterns(others, 30, None))
        assert {gram for _, _, gram in found_by(search, [record["corpus_text"]])} == set(others)
    assert len(records) > 20


def test_real_questions_against_real_code() -> None:
    lines = (shared_folder() / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line)["question"] for line in lines]
    texts = list(python_texts())
    for number in range(0, len(texts), 2):
        texts[number] += "\n# " + questions[number % len(questions)].replace(". ", ".\n    ")
    patterns = word_patterns(questions, 30, None)
    assert len(patterns.short_items) == 216
    search = WordSearch(patterns)
    grams = set(patterns.grams)
    expected = {(number, gram) for number, text in enumerate(texts) for gram in grams_of(text, 30) & grams}
    assert {(hit.document, hit.gram) for hit in hits_of(search, search.occurrences(texts))} == expected
    assert len(expected) > 100
