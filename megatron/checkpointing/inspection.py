# SPDX-License-Identifier: Apache-2.0
"""What is in a model of any known format, and how two of them differ: one tensor in memory at a time.

All are seen as Hugging Face would hold them, so that a checkpoint can be compared with the base it came from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from megatron.checkpointing import folders, huggingface, tensors
from megatron.checkpointing.convert import exported_tensors
from megatron.checkpointing.gpt_neox import is_gpt_neox
from megatron.checkpointing.lazy import LazyTensor
from megatron.checkpointing.record import BASE_FILES, RECORD, CheckpointRecord
from megatron.checkpointing.sources import TOKENIZER_FILES, Hints, open_source, tokenizer_type
from megatron.tokenizer import build_tokenizer

# Elements taken at once where a tensor is looked through in float64.
_CHUNK = 2**22


@dataclass(frozen=True)
class Opened:
    """A model: `facts` can be written as JSON, `tensors` have Hugging Face's names."""

    path: Path
    facts: dict[str, Any]
    tensors: Mapping[str, LazyTensor]


@dataclass(frozen=True)
class Summary:
    """One tensor; `norm` is the root of the sum of squares, `largest` the largest magnitude."""

    dtype: str
    shape: list[int]
    norm: float | None = None
    largest: float | None = None


def open_any(path: Path, iteration: int | None = None, hints: Hints | None = None) -> Opened:
    """Opens a checkpoint of this program or a model of others.

    Raises:
        UserError: there is none, or it is damaged.
    """
    is_ours = not is_gpt_neox(path) and (
        (path / RECORD).is_file() or (path / folders.LATEST).is_file() or bool(folders.iterations_in(path))
    )
    if is_ours:
        folder = folders.find(path, iteration)
        assert folder is not None
        return _open_checkpoint(folder)
    source = open_source(path, hints)
    facts = {
        "format": source.format,
        "folder": str(source.folder),
        "model": huggingface.model_keys(source.config),
        "tokenizer": _tokenizer_facts(source.tokenizer),
        "notices": list(source.notices),
    }
    return Opened(path, facts, source.tensors)


def _open_checkpoint(folder: Path) -> Opened:
    record = CheckpointRecord.read(folder)
    exported = exported_tensors(folder, record)
    stored = tensors.open_model(folder)
    others = [tensor for name, tensor in stored.items() if name.startswith("optimizer")]
    base = [folder / BASE_FILES / name for name in TOKENIZER_FILES]
    found = [path for path in base if path.is_file()]
    tokenizer = _tokenizer_facts(found[0]) if found else {"file": None}
    facts = {
        "format": "checkpoint of this program",
        "folder": str(folder),
        "model": {**record.model, "vocab_size": record.vocab_size},
        "tokenizer": {**tokenizer, "fingerprint": record.tokenizer_fingerprint},
        "iteration": record.iteration,
        "tokens_seen": record.tokens_seen,
        "sequences_seen": record.sequences_seen,
        "layout": record.layout,
        "padded_vocab_size": record.padded_vocab_size,
        "rotary_history": record.rotary_history,
        "optimizer_tensors": len(others),
        "optimizer_bytes": sum(tensor.size_bytes for tensor in others),
    }
    return Opened(folder, facts, exported)


def _tokenizer_facts(path: Path) -> dict[str, Any]:
    tokenizer = build_tokenizer(tokenizer_type(path), path)
    return {
        "file": str(path),
        "type": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
    }


def _chunks(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tensor.detach().reshape(-1).split(_CHUNK)


def summary_of(lazy: LazyTensor, with_values: bool = True) -> Summary:
    """Shape and dtype; with values also what reading it shows, NaN where it holds what is no number."""
    dtype = str(lazy.outline.dtype).removeprefix("torch.")
    if not with_values:
        return Summary(dtype, list(lazy.outline.shape))
    squares = largest = 0.0
    for chunk in _chunks(lazy.read()):
        values = chunk.double()
        squares += float(values.square().sum())
        peak = float(values.abs().max())
        largest = peak if math.isnan(peak) else max(largest, peak)
        if math.isnan(largest):
            break
    return Summary(
        dtype, list(lazy.outline.shape), math.sqrt(squares) if squares == squares else squares, largest
    )


def max_difference(first: LazyTensor, second: LazyTensor) -> float:
    """The largest difference of two tensors of one shape; infinite where one has what is no number."""
    largest = 0.0
    for a, b in zip(_chunks(first.read()), _chunks(second.read()), strict=True):
        if a.dtype == b.dtype and torch.equal(
            a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
        ):
            continue  # also NaN that stands in both
        gap = float((a.double() - b.double()).abs().max())
        largest = max(largest, gap if gap == gap else math.inf)
    return largest


@dataclass(frozen=True)
class Comparison:
    """What two models differ in. `differing` has tensors of one shape: name, (dtypes, largest difference)."""

    configuration: dict[str, tuple[Any, Any]]
    only_first: list[str]
    only_second: list[str]
    other_shape: dict[str, tuple[list[int], list[int]]]
    differing: dict[str, tuple[str, str, float]]
    equal: int

    @property
    def tensors_are_equal(self) -> bool:
        return not (self.only_first or self.only_second or self.other_shape or self.differing)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "tensors_are_equal": self.tensors_are_equal}


def compare(first: Opened, second: Opened) -> Comparison:
    """Reads both models once, tensor by tensor."""
    shared = [name for name in first.tensors if name in second.tensors]
    other_shape: dict[str, tuple[list[int], list[int]]] = {}
    differing: dict[str, tuple[str, str, float]] = {}
    for name in shared:
        a, b = first.tensors[name], second.tensors[name]
        if a.outline.shape != b.outline.shape:
            other_shape[name] = (list(a.outline.shape), list(b.outline.shape))
            continue
        gap = max_difference(a, b)
        if gap or a.outline.dtype != b.outline.dtype:
            dtypes = [str(side.outline.dtype).removeprefix("torch.") for side in (a, b)]
            differing[name] = (dtypes[0], dtypes[1], gap)
    return Comparison(
        configuration=_differing_keys(first.facts, second.facts),
        only_first=sorted(set(first.tensors) - set(second.tensors)),
        only_second=sorted(set(second.tensors) - set(first.tensors)),
        other_shape=other_shape,
        differing=differing,
        equal=len(shared) - len(other_shape) - len(differing),
    )


def _differing_keys(first: dict[str, Any], second: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Model keys that both have with other values, and the tokenizers' fingerprints."""
    pairs = {
        key: (first["model"][key], second["model"][key])
        for key in first["model"]
        if key in second["model"] and first["model"][key] != second["model"][key]
    }
    prints = tuple(side["tokenizer"].get("fingerprint") for side in (first, second))
    if prints[0] != prints[1]:
        pairs["tokenizer fingerprint"] = (prints[0], prints[1])
    return pairs
