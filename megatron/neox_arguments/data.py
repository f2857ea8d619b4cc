# SPDX-License-Identifier: Apache-2.0
"""What the model reads: token files, their weights and names, and the tokenizer that made them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from .fields import Concern, FilePath, Names, NonNegative, Paths, Text, Weights, key


def source_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """A short, distinct name for each token file: its own, its folder's where that repeats, else numbered."""
    own = [path.name.removesuffix("_document").removesuffix("_text") for path in paths]
    names: list[str] = []
    for path, name in zip(paths, own, strict=True):
        if own.count(name) > 1 and path.parent.name:
            name = path.parent.name
        if name in names:
            name = next(f"{name}-{n}" for n in range(2, len(paths) + 2) if f"{name}-{n}" not in names)
        names.append(name)
    return tuple(names)


def _train_names(known: dict[str, Any]) -> tuple[str, ...]:
    single = known.get("data_path")
    return source_names(known["train_data_paths"] or ((single,) if single else ()))


def _ones(paths_key: str) -> Any:
    return lambda known: (1.0,) * len(known[paths_key])


class DataConfig(Concern):
    """Token files, as prefixes of `.bin` and `.idx`, with weights and names in the same order."""

    train_data_paths: Paths = key((), "Token files to train on, without `.bin`.")
    train_data_weights: Weights = key(
        _ones("train_data_paths"),
        "How often each training source is drawn, relative to the others.",
        derived="1 for each",
    )
    valid_data_paths: Paths = key((), "Token files of the validation sets, each evaluated by itself.")
    valid_data_weights: Weights = key(
        _ones("valid_data_paths"),
        "0 leaves a validation set out; any other weight is as good as 1.",
        derived="1 for each",
    )
    test_data_paths: Paths = key((), "Token files of the test sets, each evaluated by itself.")
    test_data_weights: Weights = key(
        _ones("test_data_paths"),
        "0 leaves a test set out; any other weight is as good as 1.",
        derived="1 for each",
    )
    data_path: FilePath | None = key(
        None, "One token file that is cut into training, validation and test by split, in place of the lists."
    )
    split: Text = key("969,30,1", "Shares of training, validation and test in data_path.")
    data_names: Names = key(
        _train_names,
        "Name of each training source, for logs and plots.",
        derived="the file's name without `_text_document`, or its folder's where that repeats",
    )
    valid_data_names: Names = key(
        lambda known: source_names(known["valid_data_paths"]),
        "Name of each validation set.",
        derived="as data_names",
    )
    test_data_names: Names = key(
        lambda known: source_names(known["test_data_paths"]),
        "Name of each test set.",
        derived="as data_names",
    )
    data_impl: Literal["mmap"] = key("mmap", "Token files are memory-mapped; there is no other way.")
    data_cache_path: FilePath | None = key(
        None, "Folder for the indices of the blend.", derived="beside the token files"
    )
    num_workers: NonNegative = key(
        2, "Threads of each rank that read batches ahead; 0 reads them when they are wanted."
    )
    eod_mask_loss: bool = key(False, "Leave end-of-document tokens out of the loss.")
    seed: NonNegative = key(1234, "Seed of the data order, of fresh weights and of dropout.")


class TokenizerConfig(Concern):
    """Text to token ids."""

    tokenizer_type: Literal["SPMTokenizer", "HFTokenizer"] = key(
        "SPMTokenizer", "SPMTokenizer reads a SentencePiece model, HFTokenizer a Hugging Face tokenizer.json."
    )
    vocab_file: FilePath | None = key(None, "The tokenizer's file: tokenizer.model or tokenizer.json.")
    eod_token: str | None = key(
        None,
        "Token that ends a document; unk0 is GPT-NeoX's id 0.",
        derived="the tokenizer's end of sequence",
    )
