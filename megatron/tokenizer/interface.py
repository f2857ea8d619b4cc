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

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of several texts, in their order."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens stay visible."""


def pad_vocab(vocab_size: int, divisible_by: int, tp: int) -> int:
    """Rows of the embedding: `vocab_size` rounded up to a multiple of `divisible_by` x `tp`, as GPT-NeoX
    pads.
    """
    for name, value in (("vocab_size", vocab_size), ("divisible_by", divisible_by), ("tp", tp)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    multiple = divisible_by * tp
    return -(-vocab_size // multiple) * multiple
