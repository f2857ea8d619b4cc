# SPDX-License-Identifier: Apache-2.0
"""AlgebraicStack's steps: a language's conditions, the chunks that duplicates share, and the splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from tools.proof_pile_2.algebraic_stack.conditions import EnglishTex
from tools.proof_pile_2.algebraic_stack.languages import Language
from tools.proof_pile_2.documents import Document, Dropped, version_of

# Released recipe: only whole chunks are compared, so that what is shorter than one is never a duplicate.
CHUNK_CHARACTERS = 2048


@dataclass(frozen=True)
class LanguageRules:
    """A row of the table: a file that fails a condition is dropped under the first that it fails."""

    language: Language
    name: str = "rules"

    @cached_property
    def version(self) -> str:
        """Changes with the row, and with the language identifier where it is asked."""
        conditions = self.language.conditions
        parts: list[object] = [[type(condition).__name__, condition] for condition in conditions]
        if any(isinstance(condition, EnglishTex) for condition in conditions):
            from tools.proof_pile_2.language import identifier

            parts.append(identifier())
        return version_of(1, self.language.name, parts)

    def __call__(self, document: Document) -> Document | Dropped:
        """Try the conditions in order."""
        for condition in self.language.conditions:
            if not condition.holds(document):
                return Dropped(condition.rule)
        return document


@dataclass(frozen=True)
class Chunks:
    """Keys for deduplication: SHA-256 of every whole chunk of 2,048 characters, counted from the start. Of
    the hash 16 bytes are kept; the tail is ignored."""

    name: str = "chunks"
    version: str = "1"

    def __call__(self, document: Document) -> Iterable[tuple[bytes, int]]:
        """The keys of a document."""
        text = document.text
        for start in range(0, len(text) - CHUNK_CHARACTERS + 1, CHUNK_CHARACTERS):
            chunk = text[start : start + CHUNK_CHARACTERS].encode("utf-8", "surrogatepass")
            yield hashlib.sha256(chunk).digest()[:16], 0


SPLITS = ("train", "validation", "test")


def place_of_text(seed: int, text: str) -> float:
    """A number from 0 to 1 that the text and the seed decide, spread evenly."""
    digest = hashlib.sha256(f"{seed}\0".encode() + text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / (1 << 64)


@dataclass(frozen=True)
class HashSplit:
    """Validation and test by a hash of the text: the same text is in the same split everywhere, whatever
    else the corpus holds, and equal texts never stand in two splits."""

    seed: int
    validation: float = 0.005
    test: float = 0.005

    @property
    def version(self) -> str:
        """Changes with the seed and the shares."""
        return version_of(1, self.seed, self.validation, self.test)

    @property
    def routes(self) -> tuple[str, ...]:
        """The splits."""
        return SPLITS

    def __call__(self, document: Document) -> str:
        """The split of a document."""
        place = place_of_text(self.seed, document.text)
        if place < self.validation:
            return "validation"
        return "test" if place < self.validation + self.test else "train"
