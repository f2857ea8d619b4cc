# SPDX-License-Identifier: Apache-2.0
"""What every tokenizer here offers, and the padded size of its vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Tokenizer(Protocol):
    """Text to ids and back. No beginning-of-sequence token is ever added: neither GPT-NeoX nor Megatron-LM
    does.
    """

    @property
    def name(self) -> str:
        """The tokenizer type, as `tokenizer_type` spells it."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; each id is below it."""

    @property
    def eod_id(self) -> int:
        """The id that ends a document."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over what defines the ids of a text."""

    @property
    def files(self) -> list[Path]:
        """The files to keep beside a checkpoint: a folder of them builds this tokenizer again."""

    def encode(self, text: str) -> list[int]:
        """The ids of one text."""

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of one text, and the characters `begin` to `end` of it that each stands for.

        The ids of the bytes of one character may all have its place, or a place of no characters before or
        after it."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of several texts, in their order."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens stay visible."""
