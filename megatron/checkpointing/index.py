# SPDX-License-Identifier: Apache-2.0
"""The index of a checkpoint's tensors, and reading checkpoints of others without running what is in them.

torch's distributed checkpoint pickles its index (`.metadata`), and both it and megatron-core unpickle small
objects (`common.pt`, random states) whatever they hold. Unpickling may call anything, so the index is read
with the classes of an index alone, and everything else as tensors and plain values.
"""

from __future__ import annotations

import contextlib
import enum
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

_DTYPES = {str(value).removeprefix("torch.") for value in vars(torch).values() if type(value) is torch.dtype}
_INDEX_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex",
        "BytesStorageMetadata", "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size", *_DTYPES},
    "torch.serialization": {"_get_layout"},  # looks a name up in a table
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "collections": {"OrderedDict"},
}  # fmt: skip


def _member(owner: Any, name: str) -> Any:
    """A member of an enumeration: Python 3.11.0 to 3.11.3 pickles them as `getattr(class, name)`."""
    if isinstance(owner, enum.EnumMeta) and name in owner.__members__:
        return owner[name]
    raise pickle.UnpicklingError(f"it asks for {name} of {owner!r}, which is not of an index")


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if name in _INDEX_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not of an index")


def read_index(folder: Path) -> Metadata:
    """What `.metadata` says: which tensor lies where.

    Raises:
        FileNotFoundError: there is none.
        pickle.UnpicklingError: it is damaged, holds what is not of an index, or leads out of the folder.
    """
    content = (folder / ".metadata").read_bytes()
    try:
        index = _IndexUnpickler(io.BytesIO(content)).load()
        places = {str(entry.relative_path) for entry in index.storage_data.values()}
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # damaged pickles raise nearly anything
        raise pickle.UnpicklingError(str(error).split("\n")[0] or type(error).__name__) from None
    for place in sorted(places):
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise pickle.UnpicklingError(f"it names {place}, which lies outside the checkpoint")
    assert isinstance(index, Metadata)
    return index


def damage(folder: Path) -> str | None:
    """The first file that is missing or shorter than the index of the tensors says, in words."""
    try:
        entries = read_index(folder).storage_data.values()
    except FileNotFoundError:
        return "the file .metadata is missing"
    except pickle.UnpicklingError as error:
        return f"the file .metadata is damaged: {error}"
    expected_bytes: dict[str, int] = {}
    for entry in entries:
        end = entry.offset + entry.length
        expected_bytes[entry.relative_path] = max(end, expected_bytes.get(entry.relative_path, 0))
    for name, size in sorted(expected_bytes.items()):
        path = folder / name
        if not path.is_file():
            return f"the file {name} is missing"
        if path.stat().st_size < size:
            return f"the file {name} has {path.stat().st_size:,} of its {size:,} bytes"
    return None


@contextlib.contextmanager
def tensors_only() -> Iterator[None]:
    """`torch.load` takes tensors and plain values alone, whatever its caller asks for."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
