# SPDX-License-Identifier: Apache-2.0
"""safetensors files, read and written one tensor at a time.

The library maps a file into memory, where every page that was touched counts until the file is closed, and
writes from tensors that are all there. The format is small: the length of the header in 8 bytes, the header
(JSON: dtype, shape and place of each tensor), the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from megatron.checkpointing.lazy import LazyTensor, outline
from megatron.neox_arguments.errors import UserError

# Names of the format's specification.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# The data begin at a multiple of 8, as the library's own writer has it.
_ALIGNMENT_BYTES = 8


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor as they lie in memory."""
    flat: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the data begin; the library has looked at all of it first."""
    try:
        with safe_open(path, framework="pt"):  # checks lengths, overlaps, holes and shapes
            pass
    except Exception as error:  # safetensors raises its own type for damaged headers
        raise UserError(f"{path}: not a whole safetensors file ({error}); download it again") from None
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a file by name.

    Raises:
        UserError: the file is damaged, or has a dtype that is not known here.
    """
    header, data_start = _read_header(path)
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise UserError(f"{path}: {name} has dtype {entry['dtype']}, which is not converted")
        shape = outline(entry["shape"], _DTYPES[entry["dtype"]])
        start = data_start + entry["data_offsets"][0]
        tensors[name] = LazyTensor(shape, _reader(path, shape, start))
    return tensors


def _reader(path: Path, shape: torch.Tensor, start: int) -> Any:
    def read() -> torch.Tensor:
        tensor = torch.empty(shape.shape, dtype=shape.dtype)
        target = bytes_of(tensor)
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            done = 0
            while done < len(target):
                count = file.readinto(target[done:])
                if not count:
                    raise UserError(f"{path}: became shorter while it was read; download it again")
                done += count
        return tensor

    return read


def write_safetensors(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Writes a file, one tensor in memory at a time.

    Raises:
        OSError: it cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, lazy in tensors.items():
        start, end = end, end + lazy.size_bytes
        header[name] = {
            "dtype": _NAMES[lazy.outline.dtype],
            "shape": list(lazy.outline.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, lazy in tensors.items():
            tensor = lazy.read()
            assert (tensor.shape, tensor.dtype) == (lazy.outline.shape, lazy.outline.dtype), name
            file.write(bytes_of(tensor))
            del tensor
