# SPDX-License-Identifier: Apache-2.0
"""Test items and the n-grams that betray them.

An n-gram of an item is n consecutive units of it: whitespace words, joined by one space, or token ids. An
item of fewer than n units has none. It is counted, and where the user asks for it, matched whole."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import orjson

from megatron.data.readers import Broken, JsonLines
from megatron.neox_arguments.errors import UserError

Gram = TypeVar("Gram", str, bytes)


@dataclass(frozen=True)
class Item:
    """One question of a test set."""

    id: str | int
    text: str
    level: str | None = None


@dataclass(frozen=True)
class Spec:
    """What is searched for: enough for a process to build the search anew. Picklable and hashable."""

    test: Path
    key: str
    ngram: int
    id_key: str | None = None
    level_key: str = "level"
    match_short_from: int | None = None
    unit: str = "words"
    tokenizer_type: str | None = None
    vocab_file: Path | None = None

    def digest(self) -> str:
        """Of the test set's content and of all that decides what a hit is."""
        hasher = hashlib.sha256(repr((self.key, self.ngram, self.id_key, self.match_short_from)).encode())
        hasher.update(repr((self.unit, self.tokenizer_type, self.level_key)).encode())
        hasher.update(hashlib.sha256(_bytes_of(self.test)).digest())
        if self.vocab_file is not None and self.vocab_file.is_file():
            hasher.update(hashlib.sha256(self.vocab_file.read_bytes()).digest())
        return hasher.hexdigest()


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"--test={path}: cannot be read ({error.strerror}); give a JSONL file") from None


@functools.lru_cache(maxsize=1)
def read_items(test: Path, key: str, id_key: str | None, level_key: str) -> tuple[Item, ...]:
    """The items of a JSONL file, in order; an item's id is its number from 0, or what stands under `id_key`.

    Raises:
        UserError: the file is missing, empty or broken, or two items have one id.
    """
    items: list[Item] = []
    lines = _bytes_of(test).split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = next(iter(JsonLines(str(test), number, key, line).records()))
        if isinstance(record, Broken):
            raise UserError(f"--test={record.where}: {record.reason}; name the text of an item with --key")
        fields: dict[str, Any] = orjson.loads(line)
        items.append(Item(_id_of(fields, id_key, len(items), record.where), record.text,
                          _level_of(fields, level_key)))  # fmt: skip
    if not items:
        raise UserError(f"--test={test}: holds no item; give one JSON object a line")
    if len({item.id for item in items}) < len(items):
        raise UserError(f"--id-key={id_key}: several items of {test} have the same one; leave it out")
    return tuple(items)


def _id_of(fields: dict[str, Any], id_key: str | None, number: int, where: str) -> str | int:
    if id_key is None:
        return number
    value = fields.get(id_key)
    if not isinstance(value, (str, int)):
        raise UserError(f"--id-key={id_key}: {where} has no string or number there; leave --id-key out")
    return value


def _level_of(fields: dict[str, Any], level_key: str) -> str | None:
    value = fields.get(level_key)
    return None if value is None else str(value)


@dataclass
class Patterns(Generic[Gram]):
    """All n-grams, each with the numbers of the items it stands in.

    `lengths` are the distinct lengths in units, ascending; `sequences` are the units of each item or, for
    items matched whole, all of it, with the length of their n-grams."""

    grams: dict[Gram, tuple[int, ...]] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()
    sequences: list[tuple[Sequence[Any], int]] = field(default_factory=list)
    short_items: list[int] = field(default_factory=list)
    """Items without an n-gram of the full length."""
    unmatched_items: list[int] = field(default_factory=list)
    """Those of them that cannot hit at all."""


def word_patterns(texts: Sequence[str], ngram: int, match_short_from: int | None) -> Patterns[str]:
    """The n-grams of words; a word is what `str.split()` finds."""
    patterns: Patterns[str] = Patterns()
    joined: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        words = text.split()
        length = _length(len(words), number, ngram, match_short_from, patterns)
        for start in range(len(words) - length + 1) if length else ():
            _note(joined, " ".join(words[start : start + length]), number)
        if length:
            patterns.sequences.append((words, length))
    return _finished(patterns, joined)


def token_patterns(ids: Sequence[Sequence[int]], ngram: int, match_short_from: int | None) -> Patterns[bytes]:
    """The n-grams of token ids, each as the bytes of its int32 ids."""
    patterns: Patterns[bytes] = Patterns()
    joined: dict[bytes, list[int]] = {}
    for number, of_item in enumerate(ids):
        ids_T = np.asarray(of_item, dtype=np.int32)
        length = _length(len(ids_T), number, ngram, match_short_from, patterns)
        for start in range(len(ids_T) - length + 1) if length else ():
            _note(joined, ids_T[start : start + length].tobytes(), number)
        if length:
            patterns.sequences.append((ids_T.tolist(), length))
    return _finished(patterns, joined)


def _note(joined: dict[Gram, list[int]], gram: Gram, number: int) -> None:
    numbers = joined.setdefault(gram, [])
    if not numbers or numbers[-1] != number:
        numbers.append(number)


def _length(
    units: int, number: int, ngram: int, match_short_from: int | None, patterns: Patterns[Any]
) -> int:
    """The length of this item's n-grams; 0 where it has none."""
    if units >= ngram:
        return ngram
    patterns.short_items.append(number)
    if match_short_from is not None and units >= match_short_from:
        return units
    patterns.unmatched_items.append(number)
    return 0


def _finished(patterns: Patterns[Gram], joined: dict[Gram, list[int]]) -> Patterns[Gram]:
    patterns.grams = {gram: tuple(numbers) for gram, numbers in joined.items()}
    patterns.lengths = tuple(sorted({length for _, length in patterns.sequences}))
    return patterns
