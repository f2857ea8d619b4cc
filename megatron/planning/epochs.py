# SPDX-License-Identifier: Apache-2.0
"""How often each source is read, from the headers of its token files where they are there."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from megatron.neox_arguments.config import RunConfig

# Megatron's index: magic, version, code of the ids' type, sequences, documents.
_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_BYTES_OF_CODE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 8: 2}


@dataclass(frozen=True)
class SourceUse:
    """A training source: its share of the run, its tokens, and the passes over it; None where not known."""

    name: str
    path: str
    share: float
    tokens_read: int
    tokens: int | None
    epochs: float | None
    why_unknown: str | None


def source_uses(cfg: RunConfig, sequences: int) -> list[SourceUse]:
    """What a run of `sequences` sequences reads of each source."""
    data, length = cfg.data, cfg.model.seq_length
    if data.data_path is not None:
        shares = [float(share) for share in data.split.replace("/", ",").split(",")]
        kept = shares[0] / sum(shares)
        paths: tuple[Path, ...] = (data.data_path,)
        weights: tuple[float, ...] = (1.0,)
    else:
        paths, weights, kept = data.train_data_paths, data.train_data_weights, 1.0
    total = sum(weights) or 1.0
    uses = []
    for name, path, weight in zip(data.data_names, paths, weights, strict=True):
        tokens, why = _tokens(path)
        if tokens is not None:
            tokens = int(tokens * kept)
        read = round(sequences * weight / total * length)
        epochs = None if not tokens else read / tokens
        uses.append(SourceUse(name, str(path), weight / total, read, tokens, epochs, why))
    return uses


def _tokens(prefix: Path) -> tuple[int | None, str | None]:
    """Tokens of a source, or why they are not known: the bytes of `.bin` over those of an id."""
    index = f"{prefix}.idx"
    try:
        with open(index, "rb") as file:
            head = file.read(_HEADER.size)
        size = os.path.getsize(f"{prefix}.bin")
    except OSError as error:
        return None, f"{error.filename} is not there" if isinstance(error, FileNotFoundError) else str(error)
    if len(head) < _HEADER.size or head[: len(_MAGIC)] != _MAGIC:
        return None, f"{index} is not an index of Megatron"
    _, _, code, _, _ = _HEADER.unpack(head)
    if code not in _BYTES_OF_CODE:
        return None, f"{index} has ids of an unknown type ({code})"
    return size // _BYTES_OF_CODE[code], None
