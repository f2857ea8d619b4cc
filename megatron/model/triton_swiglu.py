# SPDX-License-Identifier: Apache-2.0
"""SwiGLU of a product that holds gate and up beside each other: one Triton kernel forward and one backward.

    y = silu(gate) * up,   silu(x) = x sigmoid(x)        (Shazeer 2020)

In float32, rounded once; of the forward pass the product itself is kept and nothing else.
megatron-core's form is compiled by torch at a run's first steps, Liger-Kernel's rounds silu(gate) as well.

Legend: N rows, F width of the MLP.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

# Columns of a program: 8 of bfloat16 a thread, one load of 16 bytes.
_TILE, _WARPS = 1024, 4


@triton.jit
def _forward_kernel(product_ptr, y_ptr, WIDTH: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < WIDTH
    gate = tl.load(product_ptr + row * 2 * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(product_ptr + row * 2 * WIDTH + WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(y_ptr + row * WIDTH + column, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(g_ptr, product_ptr, gradient_ptr, WIDTH: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < WIDTH
    place = row * 2 * WIDTH + column
    g = tl.load(g_ptr + row * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(product_ptr + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(product_ptr + place + WIDTH, mask=inside, other=0.0).to(tl.float32)
    open_part = tl.sigmoid(gate)
    dgate = g * up * open_part * (1.0 + gate * (1.0 - open_part))
    dup = g * gate * open_part
    element = gradient_ptr.dtype.element_ty
    tl.store(gradient_ptr + place, dgate.to(element), mask=inside)
    tl.store(gradient_ptr + place + WIDTH, dup.to(element), mask=inside)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, product_N2F: torch.Tensor) -> torch.Tensor:
        rows, width = len(product_N2F), product_N2F.size(1) // 2
        y_NF = product_N2F.new_empty(rows, width)
        grid = (rows, triton.cdiv(width, _TILE))
        _forward_kernel[grid](product_N2F, y_NF, WIDTH=width, TILE=_TILE, num_warps=_WARPS)
        ctx.save_for_backward(product_N2F)
        return y_NF

    @staticmethod
    def backward(ctx: Any, g_NF: torch.Tensor) -> torch.Tensor:
        [product_N2F] = ctx.saved_tensors
        rows, width = g_NF.shape
        gradient_N2F = torch.empty_like(product_N2F)
        _backward_kernel[(rows, triton.cdiv(width, _TILE))](
            g_NF.contiguous(), product_N2F, gradient_N2F, WIDTH=width, TILE=_TILE, num_warps=_WARPS
        )
        return gradient_N2F


def swiglu(product: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of `product` = [gate; up] in the last dimension; [..., 2F] -> [..., F]."""
    y: torch.Tensor = _Swiglu.apply(product.reshape(-1, product.size(-1)).contiguous())
    return y.view(*product.shape[:-1], product.size(-1) // 2)
