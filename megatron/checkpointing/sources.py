# SPDX-License-Identifier: Apache-2.0
"""Models of others, in the formats that they are given away in, each as Hugging Face would hold it.

A format's module knows its files and its layout; what comes out has Hugging Face's names, shapes and
config.json, so that mapping.py stays the only table between here and there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.checkpointing.lazy import LazyTensor
from megatron.neox_arguments.errors import UserError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class Source:
    """A model that is somewhere on the disk."""

    format: str
    folder: Path
    config: dict[str, Any]  # as a config.json
    tensors: Mapping[str, LazyTensor]  # by Hugging Face's names
    tokenizer: Path  # tokenizer.json or tokenizer.model
    notices: tuple[str, ...] = ()  # what was assumed, for the user
    # Files that travel with the weights are looked for here, beside those of the tokenizer.
    companions: Path | None = None


@dataclass(frozen=True)
class Hints:
    """What a folder may not say of itself: --config and --tokenizer."""

    config: Path | None = None
    tokenizer: Path | None = None


def find_tokenizer(hints: Hints, *folders: Path) -> Path:
    """The tokenizer's file: the one that was given, else the first in `folders`.

    Raises:
        UserError: there is none.
    """
    if hints.tokenizer is not None:
        if hints.tokenizer.is_file() and hints.tokenizer.suffix in (".json", ".model"):
            return hints.tokenizer
        folders = (hints.tokenizer,)
    for folder in folders:
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                return _not_tiktoken(folder / name)
    option = "--tokenizer" if hints.tokenizer is not None else "--input"
    raise UserError(
        f"{option}={folders[0]}: neither tokenizer.json nor tokenizer.model there; give one with --tokenizer"
    )


def _not_tiktoken(path: Path) -> Path:
    """Llama 3's tokenizer.model is a text of base64 and numbers under SentencePiece's name."""
    if path.suffix == ".model":
        with open(path, "rb") as file:
            first = file.readline(200).split()
        if len(first) == 2 and first[1].isdigit() and first[0].isascii():
            raise UserError(
                f"{path}: is a tiktoken file, as Llama 3 has it, which is not read here; give the model's "
                "tokenizer.json with --tokenizer"
            )
    return path


def tokenizer_type(path: Path) -> str:
    """The `tokenizer_type` of a tokenizer's file; it may have another name than TOKENIZER_FILES."""
    return "HFTokenizer" if path.suffix == ".json" else "SPMTokenizer"


Detector = Callable[[Path], bool]
Opener = Callable[[Path, Hints], Source]


def _formats() -> list[tuple[Detector, Opener]]:
    from megatron.checkpointing import gguf_file, gpt_neox, huggingface, meta_llama

    return [
        (gpt_neox.is_gpt_neox, gpt_neox.open_gpt_neox),
        (meta_llama.is_meta, meta_llama.open_meta),
        (gguf_file.is_gguf, gguf_file.open_gguf),
        # Last: its own message says what is missing of a folder that is none of the others.
        (lambda path: True, huggingface.open_huggingface),
    ]


def open_source(path: Path, hints: Hints | None = None) -> Source:
    """Opens a model of any format that is known, told by its files.

    Raises:
        UserError: it is of no known format, damaged, or holds what is not opened.
    """
    if not path.exists():
        raise UserError(f"--input={path}: does not exist; give the folder of a model")
    for is_format, opener in _formats():
        if is_format(path):
            return opener(path, hints or Hints())
    raise AssertionError("the last format takes everything")
