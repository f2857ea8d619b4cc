# SPDX-License-Identifier: Apache-2.0
"""Deduplication in two passes finds what a plain loop over all documents finds, in any number of pieces."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tools.proof_pile_2.corpora import read_lines, tree, write_lines
from tools.proof_pile_2 import keys
from tools.proof_pile_2.pipeline import (
    Document,
    LaterDocuments,
    ReadOptions,
    Shard,
    Stage,
    find_dropped,
    plan_shards,
    run_stage,
)


@dataclass(frozen=True)
class Words:
    """Every word is a key."""

    name: str = "words"
    version: str = "1"

    def __call__(self, document: Document) -> Iterable[tuple[bytes, int]]:
        return [(hashlib.sha256(word.encode()).digest()[:16], 0) for word in document.text.split()]


def corpus(folder: Path, shards: int = 4, documents: int = 50) -> list[list[str]]:
    rng = random.Random(1)
    texts = [
        [" ".join(str(rng.randrange(3000)) for _ in range(rng.randrange(1, 6))) for _ in range(documents)]
        for _ in range(shards)
    ]
    for number, of_shard in enumerate(texts):
        write_lines(folder / f"{number}.jsonl", of_shard)
    return texts


def later(texts: list[list[str]]) -> list[set[int]]:
    """The plain loop: a document goes when an earlier one has one of its words."""
    seen: set[str] = set()
    gone: list[set[int]] = []
    for of_shard in texts:
        gone.append({n for n, text in enumerate(of_shard) if _is_later(text, seen)})
    return gone


def _is_later(text: str, seen: set[str]) -> bool:
    found = not seen.isdisjoint(text.split())
    seen.update(text.split())
    return found


def plan(folder: Path) -> list[Shard]:
    return list(plan_shards(sorted(folder.iterdir()), ReadOptions()))


@pytest.mark.parametrize(("part_bytes", "workers"), [(1 << 20, 1), (1000, 1), (3000, 2)])
def test_the_same_documents_go_as_in_a_plain_loop(tmp_path: Path, part_bytes: int, workers: int) -> None:
    texts = corpus(tmp_path / "in")
    lists = find_dropped(
        Words(), LaterDocuments(), lambda: plan(tmp_path / "in"), tmp_path / "work", "words: later",
        part_bytes=part_bytes, workers=workers,
    )  # fmt: skip
    assert [set(lists.of(f"{n:05}")) for n in range(4)] == later(texts)
    run_stage(Stage("Test", (), omissions=(lists,)), lambda: plan(tmp_path / "in"), tmp_path / "out")
    for number, gone in enumerate(later(texts)):
        kept = [record["text"] for record in read_lines(tmp_path / f"out/documents/{number:05}.jsonl.zst")]
        assert kept == [text for n, text in enumerate(texts[number]) if n not in gone]
    assert (
        f'"words: later": {{\n      "all": [\n        {sum(map(len, later(texts)))},'
        in (tmp_path / "out/report.json").read_text()
    )


def test_broken_off_anywhere_it_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus(tmp_path / "in")

    def find(folder: str) -> None:
        find_dropped(Words(), LaterDocuments(), lambda: plan(tmp_path / "in"), tmp_path / folder, "r: r",
                     part_bytes=5000)  # fmt: skip

    find("whole")
    write, rng = keys._write_array, random.Random(5)

    def breaks(path: Path, array: keys.Rows) -> None:
        if rng.random() < 0.25:
            raise KeyboardInterrupt
        write(path, array)

    monkeypatch.setattr(keys, "_write_array", breaks)
    interruptions = 0
    while True:
        try:
            find("broken")
        except KeyboardInterrupt:
            interruptions += 1
        else:
            break
        assert interruptions < 30
    assert interruptions > 3
    whole, broken = tree(tmp_path / "whole"), tree(tmp_path / "broken")
    assert {name: data for name, data in broken.items() if not name.startswith("keys/.")} == whole


def test_other_input_is_compared_anew(tmp_path: Path) -> None:
    texts = corpus(tmp_path / "in")
    for words in ("1 2 3", "5000"):
        texts[0][7] = words
        write_lines(tmp_path / "in/0.jsonl", texts[0])
        lists = find_dropped(
            Words(), LaterDocuments(), lambda: plan(tmp_path / "in"), tmp_path / "work", "r: r"
        )
        assert [set(lists.of(f"{n:05}")) for n in range(4)] == later(texts)
