# SPDX-License-Identifier: Apache-2.0
"""Tensors that are read when they are asked for, with shape and dtype known before.

Conversions are made of them: what has to be written is planned on outlines (tensors on torch's meta device,
which have no bytes), and then one tensor at a time is read, changed, written and forgotten.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LazyTensor:
    """A tensor to be read; `outline` has its shape and dtype, on the meta device."""

    outline: torch.Tensor
    read: Callable[[], torch.Tensor]

    @staticmethod
    def of(tensor: torch.Tensor) -> LazyTensor:
        """A tensor that is in memory already."""
        return LazyTensor(outline(tensor.shape, tensor.dtype), lambda: tensor)

    @property
    def size_bytes(self) -> int:
        return self.outline.numel() * self.outline.element_size()

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> LazyTensor:
        return LazyTensor(function(self.outline), lambda: function(self.read()))


def outline(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def join(
    parts: Sequence[LazyTensor], function: Callable[[Sequence[torch.Tensor]], torch.Tensor]
) -> LazyTensor:
    """One tensor made of several."""
    return LazyTensor(
        function([part.outline for part in parts]), lambda: function([part.read() for part in parts])
    )


class Splitter:
    """Several tensors made of one, which is read once where its parts are asked for one after another."""

    def __init__(self) -> None:
        self._whole: LazyTensor | None = None
        self._parts: Sequence[torch.Tensor] = ()

    def split(
        self, whole: LazyTensor, function: Callable[[torch.Tensor], Sequence[torch.Tensor]]
    ) -> list[LazyTensor]:
        def part(index: int) -> torch.Tensor:
            if self._whole is not whole:
                self._whole, self._parts = None, ()  # before the next is read: two would be in memory
                self._parts = function(whole.read())
                self._whole = whole
            return self._parts[index]

        outlines = function(whole.outline)
        return [LazyTensor(piece, functools.partial(part, index)) for index, piece in enumerate(outlines)]
