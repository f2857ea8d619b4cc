# SPDX-License-Identifier: Apache-2.0
"""Whole tensors in and out of a checkpoint's folder, in one process, without building a model.

The folder is what megatron-core's dist_checkpointing writes and reads (its "torch_dist" form, which is
torch's distributed checkpoint with two small files beside it), so conversions need neither ranks nor
a model, and training loads the result in any layout.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

# The two files that megatron-core 0.16.1 looks for: dist_checkpointing/core.py.
_METADATA = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """torch warns that there is no process group: here that is the intent."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def write_model(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes whole tensors by their names here; `folder` exists and is empty."""
    with _alone():
        dcp.save(dict(tensors), storage_writer=FileSystemWriter(folder, thread_count=1), no_dist=True)
    torch.save({}, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps(_METADATA), encoding="utf-8")


def stored_tensors(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Names, shapes and dtypes of all tensors of a checkpoint, optimizer states included."""
    metadata = FileSystemReader(folder).read_metadata()
    return {
        name: entry
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def read_model(folder: Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Reads whole tensors by name, whatever layout wrote them.

    Raises:
        KeyError: a name that is not there.
    """
    stored = stored_tensors(folder)
    tensors = {name: torch.empty(stored[name].size, dtype=stored[name].properties.dtype) for name in names}
    with _alone():
        dcp.load(tensors, storage_reader=FileSystemReader(folder), no_dist=True)
    return tensors
