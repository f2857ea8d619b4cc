# SPDX-License-Identifier: Apache-2.0
"""Whole tensors in and out of a checkpoint's folder, in one process, without building a model.

The folder is what megatron-core's dist_checkpointing writes and reads (its "torch_dist" form, which is
torch's distributed checkpoint with two small files beside it), so conversions need neither ranks nor
a model, and training loads the result in any layout. One tensor is in memory at a time, both ways.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron.checkpointing.index import damage, read_index, tensors_only
from megatron.checkpointing.lazy import LazyTensor, outline
from megatron.neox_arguments.errors import UserError

# The two files that megatron-core 0.16.1 looks for: dist_checkpointing/core.py.
_METADATA = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
_DATA_FILE = "__0_0.distcp"  # as torch's writer names the first file of rank 0


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """torch warns that there is no process group: here that is the intent. And it wraps what goes wrong."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        try:
            yield
        except CheckpointException as error:  # a BaseException with the cause inside
            raise next(iter(error.failures.values()))[0] from None


def write_model(folder: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Writes whole tensors by their names here; `folder` exists and is empty.

    torch's own writer keeps every tensor that it has written until the file is closed, so the file is written
    here: each tensor as `torch.save` has it, and an index of where it begins.

    Raises:
        OSError: the folder cannot be written.
    """
    entries: dict[str, Any] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    with open(folder / _DATA_FILE, "wb") as file:
        for name, lazy in tensors.items():
            start = file.tell()
            _save_tensor(lazy, file, folder)
            shape = lazy.outline.shape
            chunk = ChunkStorageMetadata(torch.Size([0] * len(shape)), shape)
            entries[name] = TensorStorageMetadata(TensorProperties(lazy.outline.dtype), shape, [chunk])
            places[MetadataIndex(name, chunk.offsets)] = _StorageInfo(_DATA_FILE, start, file.tell() - start)
        file.flush()
        os.fsync(file.fileno())
    index = Metadata(
        state_dict_metadata=entries,
        planner_data={name: (name,) for name in entries},
        storage_data=places,
        storage_meta=StorageMeta(),
        version=CURRENT_DCP_VERSION,
    )
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    torch.save({}, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps(_METADATA), encoding="utf-8")


def _save_tensor(lazy: LazyTensor, file: IO[bytes], folder: Path) -> None:
    tensor = lazy.read()
    assert (tensor.shape, tensor.dtype) == (lazy.outline.shape, lazy.outline.dtype)
    # A view would be written with all of the tensor that it looks into.
    is_whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == lazy.size_bytes
    try:
        torch.save(tensor if is_whole else tensor.clone(memory_format=torch.contiguous_format), file)
    except RuntimeError as error:  # torch does not say what the file said
        is_full = shutil.disk_usage(folder).free < lazy.size_bytes
        number = errno.ENOSPC if is_full else errno.EIO
        raise OSError(number, os.strerror(number) if is_full else str(error).split("\n")[0]) from None


class _Reader(FileSystemReader):
    """torch's reader, which would read the index of all tensors anew for each."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._metadata = read_index(folder)

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        return self._metadata


def open_model(folder: Path) -> dict[str, LazyTensor]:
    """All tensors of a checkpoint by name, optimizer states included, whatever layout wrote them.

    Raises:
        UserError: a file of it is missing, cut short or damaged.
    """
    if found := damage(folder):
        raise UserError(f"{folder}: cannot be read ({found}); copy it again, or take an older checkpoint")
    reader = _Reader(folder)

    def tensor(name: str, shape: torch.Tensor) -> LazyTensor:
        def read() -> torch.Tensor:
            target = {name: torch.empty(shape.shape, dtype=shape.dtype)}
            with _alone(), tensors_only():
                dcp.load(target, storage_reader=reader, no_dist=True)
            return target[name]

        return LazyTensor(shape, read)

    return {
        name: tensor(name, outline(entry.size, entry.properties.dtype))
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
