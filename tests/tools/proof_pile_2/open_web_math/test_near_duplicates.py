# SPDX-License-Identifier: Apache-2.0
"""Near-duplicates: which are found, which are not taken for any."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest

from tools.proof_pile_2.documents import Broken, Document
from tools.proof_pile_2.keys import find_dropped
from tools.proof_pile_2.open_web_math.near_duplicates import (
    WINDOW_CHARACTERS,
    AlikeEnough,
    NearDuplicateKeys,
    bands,
    features,
    most_bits,
    simhash,
)

WORDS = [
    f"{a}{b}{c}"
    for a in ("lem", "the", "cor", "sup")
    for b in ("a", "ora", "il")
    for c in ("", "lly", "ry", "x")
]


def text_of(seed: int, words: int = 300) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) + str(rng.randrange(100)) for _ in range(words))


def edited(text: str, share: float, seed: int) -> str:
    """With a share of its words, in one stretch of them each, replaced."""
    rng = random.Random(seed)
    words = text.split()
    length = int(len(words) * share)
    place = rng.randrange(len(words) - length)
    words[place : place + length] = [f"new{rng.randrange(10**6)}" for _ in range(length)]
    return " ".join(words)


def slow_features(text: str) -> set[str]:
    letters = "".join(c for c in text.lower() if c.isalnum())
    return {letters[i : i + WINDOW_CHARACTERS] for i in range(len(letters) - WINDOW_CHARACTERS + 1)}


def test_features_are_hashes_of_windows_wherever_they_stand() -> None:
    long = text_of(1, 12_000)  # more than one chunk
    inner = long[40_000:50_000]
    assert set(features(inner).tolist()) <= set(features(long).tolist())
    windows = len(slow_features(long))
    assert 0.9 < len(set(features(long).tolist())) / (windows / 8) < 1.1
    assert features("Lemma 1!").tolist() == features("lemma1").tolist()
    assert len(features("")) == 1


def test_simhash_estimates_the_cosine() -> None:
    errors = []
    for seed in range(40):
        one, other = text_of(seed), edited(text_of(seed), 0.2, seed)
        a, b = slow_features(one), slow_features(other)
        cosine = len(a & b) / math.sqrt(len(a) * len(b))
        bits = bin(simhash(features(one)) ^ simhash(features(other))).count("1")
        errors.append(math.cos(math.pi * bits / 64) - cosine)
    assert abs(np.mean(errors)) < 0.05
    assert np.std(errors) < 0.2


def test_both_ways_to_count_bits_agree() -> None:
    hashes = features(text_of(3, 2000))
    small, large = hashes[:200], np.tile(hashes[:200], 2)  # the same proportions, by either way
    assert simhash(small) == simhash(large)


def test_bits_of_a_threshold() -> None:
    assert most_bits(0.7) == 16
    assert most_bits(1.0) == 0
    assert most_bits(0.0) == 32


def test_bands_are_equal_as_often_as_minhash_says() -> None:
    """With Jaccard similarity J, a band of four is equal with probability J^4 (a little less often
    where only the 256 smallest of more features are used)."""
    equal, expected = 0.0, 0.0
    for seed in range(60):
        one, other = text_of(seed, 150), edited(text_of(seed, 150), 0.1, seed)
        a, b = set(features(one).tolist()), set(features(other).tolist())
        expected += (len(a & b) / len(a | b)) ** 4
        equal += np.mean([x == y for x, y in zip(bands(features(one)), bands(features(other)), strict=True)])
    assert abs(equal - expected) / 60 < 0.05


class Texts:
    """A shard of texts."""

    size_bytes = 1

    def __init__(self, name: str, texts: list[str]) -> None:
        self.name, self.texts = name, texts

    def identity(self) -> object:
        return self.texts

    def read(self) -> list[Document | Broken]:
        return [Document(text) for text in self.texts]


@pytest.mark.parametrize("part_bytes", [1 << 12, 1 << 27])
def test_planted_duplicates_are_found_and_others_are_not(tmp_path: Path, part_bytes: int) -> None:
    texts = [text_of(seed) for seed in range(200)]
    planted = [edited(texts[i], 0.03, i) for i in range(0, 100, 2)]
    shards = [Texts("a", texts), Texts("b", [text_of(1000 + i) for i in range(50)] + planted)]
    found = find_dropped(
        NearDuplicateKeys(), AlikeEnough(0.7), lambda: iter(shards), tmp_path, "r", part_bytes=part_bytes,  # type: ignore[arg-type, return-value]
    )  # fmt: skip
    assert found.of("a") == frozenset()
    assert found.of("b") <= frozenset(range(50, 100))
    assert len(found.of("b")) >= 47


def test_a_band_that_all_share_stays_linear_and_first_ones_stay() -> None:
    dtype = [("key", ">u8"), ("key_low", ">u8"), ("shard", "<u4"), ("document", "<u4"), ("payload", "<u8")]
    rows = np.zeros(1000, dtype)
    rows["document"] = np.arange(1000)
    rng = np.random.default_rng(0)
    rows["payload"] = rng.integers(0, 1 << 63, 1000, np.uint64)
    rows["payload"][[500, 501, 900]] = rows["payload"][
        [0, 499, 450]
    ]  # the last too far from the other to be seen
    gone = np.flatnonzero(AlikeEnough(0.7)(rows)).tolist()
    assert {500, 501} <= set(gone)
    assert len(gone) < 10
    rows["key"] = np.arange(1000)
    assert not AlikeEnough(0.7)(rows).any()
    assert not AlikeEnough(0.7)(rows[:0]).any()
