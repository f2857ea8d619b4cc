# SPDX-License-Identifier: Apache-2.0
"""Tensors in files of `torch.save` that others wrote: pickles, of which nothing but tensors is accepted."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from megatron.checkpointing.lazy import LazyTensor, outline
from megatron.neox_arguments.errors import UserError

# A file is mapped into memory, and its pages count while it is: it is mapped anew after so many bytes.
_MAPPED_BYTES = 256 * 2**20


class TorchFile:
    """One file of `torch.save`; its tensors are read when they are asked for."""

    def __init__(self, path: Path, allowed: Sequence[Any] = ()) -> None:
        """`allowed`: what may be in it beside tensors, numbers, texts, lists and dictionaries."""
        self._path = path
        self._allowed = list(allowed)
        self._content: Any = None
        self._read_bytes = 0

    def content(self) -> Any:
        """Everything in the file; the bytes of tensors are read when they are used.

        Raises:
            UserError: the file is damaged, too old, or holds what could run a program.
        """
        if self._content is None:
            try:
                with torch.serialization.safe_globals(self._allowed):
                    self._content = torch.load(self._path, map_location="cpu", mmap=True, weights_only=True)
            except pickle.UnpicklingError as error:
                why = str(error).split("\n")
                named = next((line for line in why if "GLOBAL" in line or "Unsupported" in line), why[0])
                raise UserError(
                    f"{self._path}: holds more than tensors and is not opened ({named.strip()}); "
                    "do not use this file, or have it saved as safetensors by whom you trust"
                ) from None
            except (RuntimeError, ValueError, EOFError, OSError) as error:
                if "mmap can only be used" in str(error):
                    raise UserError(
                        f"{self._path}: is a pickle of the form before torch 1.6, or of something else, and "
                        "is not opened; take safetensors, or have it saved anew by whom you trust"
                    ) from None
                why = str(error).strip().split("\n")
                raise UserError(f"{self._path}: cannot be read ({why[0]}); download it again") from None
        return self._content

    def tensors(self, within: Sequence[str] = ()) -> dict[str, LazyTensor]:
        """The tensors by name in the dictionary that lies under the keys `within`.

        Raises:
            UserError: there is no such dictionary.
        """
        found = self._at(within)
        if not isinstance(found, Mapping):
            raise UserError(
                f"{self._path}: holds no dictionary of tensors"
                + (f" under {'.'.join(within)}" if within else "")
            )
        return {
            str(name): LazyTensor(outline(value.shape, value.dtype), self._reader([*within, name]))
            for name, value in found.items()
            if isinstance(value, torch.Tensor)
        }

    def _at(self, keys: Sequence[Any]) -> Any:
        found = self.content()
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def _reader(self, keys: Sequence[Any]) -> Any:
        def read() -> torch.Tensor:
            if self._read_bytes > _MAPPED_BYTES:
                self._content, self._read_bytes = None, 0
            mapped = self._at(keys)
            self._read_bytes += mapped.numel() * mapped.element_size()
            copied: torch.Tensor = mapped.detach().clone(memory_format=torch.contiguous_format)
            return copied

        return read
