# SPDX-License-Identifier: Apache-2.0
"""Products of tokens with weights that stay as they are: on a CPU in the layout that oneDNN computes in.

A plain product lays its weight out anew at every call, or goes to a library that some processors are slow
with; `benchmarks/generation_cpu.py` measures both. The laid out weights are copies, so they are made where
memory is plenty.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import psutil
import torch
from torch.nn.functional import linear

# tokens [N, C] -> [N, outputs]
Product = Callable[[torch.Tensor], torch.Tensor]

# The layout is chosen for about as many tokens as a step of generation has; it serves all others.
TOKENS_OF_LAYOUT = 16
# Of the free memory, at most this part goes into copies.
PART_OF_FREE_MEMORY = 0.5


def plain(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Product:
    """With the weight where it lies."""
    return functools.partial(linear, weight=weight, bias=bias)


def laid_out(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Product:
    """With a copy of the weight in oneDNN's layout."""
    copy = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), TOKENS_OF_LAYOUT)

    def product(x_NC: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_NC, copy, bias, "none", [], "")
        return out

    return product


def choose_products(
    device: torch.device, dtype: torch.dtype, weights_bytes: int
) -> tuple[Callable[..., Product], str]:
    """Which of the two serves here, and why, in words for a log."""
    if device.type != "cpu":
        return plain, "weights as they lie (a GPU)"
    ops = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(ops, "_linear_pointwise"):
        return plain, "weights as they lie (this torch has no oneDNN)"
    if dtype == torch.bfloat16 and not ops._is_mkldnn_bf16_supported():
        return plain, "weights as they lie (this CPU has no bfloat16)"
    free_bytes = psutil.virtual_memory().available
    size, free = f"{weights_bytes / 1e9:.1f} GB", f"{free_bytes / 1e9:.1f} GB are free"
    if weights_bytes > PART_OF_FREE_MEMORY * free_bytes:
        return plain, f"weights as they lie (copies in oneDNN's layout would take {size}, and {free})"
    return laid_out, f"copies of the weights in oneDNN's layout ({size})"
