# SPDX-License-Identifier: Apache-2.0
"""RMSNorm in both forms as one Triton kernel forward and one backward. Imported where Triton is wanted only.

    rmsnorm       y = x * w / r,   r = sqrt(mean(x^2) + eps)
    rmsnorm_neox  y = x * w / r,   r = sqrt(mean(x^2)) + eps

With g = dL/dy, n columns and q the square root in either form (r = q, or r = q + eps):

    dL/dx = g w / r - x * sum(g w x) / (r^2 n q)        dL/dw = sum over rows of g x / r

Everything between load and store is float32, so that a result is rounded once. x and one number for each row
are kept for the backward pass. No library has the second form fused; the first costs nothing more here.

Legend: N rows, D columns; P programs of the backward pass, each with its own sum for dL/dw.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

# Elements of a tile that one thread holds: 16 of bfloat16 are two loads of 16 bytes.
_ELEMENTS_A_THREAD = 16
# A tile of short rows (norms of heads) has several, so that it still has work for its threads.
_SMALLEST_TILE = 2048
# Programs of the backward pass for each multiprocessor: enough to hide loads, few partial sums of dL/dw.
_PROGRAMS_A_MULTIPROCESSOR = 2


@triton.jit
def _forward_kernel(
    x_ptr, w_ptr, y_ptr, root_ptr, rows,
    EPS: tl.constexpr, IS_NEOX: tl.constexpr, COLUMNS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    column = tl.arange(0, TILE_COLUMNS)
    inside = (row < rows)[:, None] & (column < COLUMNS)[None, :]
    place = row[:, None] * COLUMNS + column[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
    mean_square = tl.sum(x * x, 1) / COLUMNS
    if IS_NEOX:
        root = tl.sqrt(mean_square)
        divisor = root + EPS
    else:
        root = tl.sqrt(mean_square + EPS)
        divisor = root
    y = x * (1.0 / divisor)[:, None] * w[None, :]
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(root_ptr + row, root, mask=row < rows)


@triton.jit
def _backward_kernel(
    g_ptr, x_ptr, w_ptr, root_ptr, dx_ptr, dw_ptr, rows,
    EPS: tl.constexpr, IS_NEOX: tl.constexpr, COLUMNS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    column = tl.arange(0, TILE_COLUMNS)
    w = tl.load(w_ptr + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
    dw = tl.zeros((TILE_ROWS, TILE_COLUMNS), tl.float32)
    for first in range(program * TILE_ROWS, rows, tl.num_programs(0) * TILE_ROWS):
        row = first + tl.arange(0, TILE_ROWS).to(tl.int64)
        inside = (row < rows)[:, None] & (column < COLUMNS)[None, :]
        place = row[:, None] * COLUMNS + column[None, :]
        x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(g_ptr + place, mask=inside, other=0.0).to(tl.float32)
        root = tl.load(root_ptr + row, mask=row < rows, other=1.0)
        inverse = 1.0 / (root + EPS) if IS_NEOX else 1.0 / root
        gw = g * w[None, :]
        slope = tl.sum(gw * x, 1) * inverse * inverse / (COLUMNS * root)
        slope = tl.where(root > 0, slope, 0.0)  # a row of zeros: the root has no slope there
        dx = gw * inverse[:, None] - x * slope[:, None]
        tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        dw += g * x * inverse[:, None]
    tl.store(dw_ptr + program.to(tl.int64) * COLUMNS + column, tl.sum(dw, 0), mask=column < COLUMNS)


def _tile(columns: int) -> dict[str, int]:
    """The shape of a tile and the warps that work on it."""
    tile_columns = triton.next_power_of_2(columns)
    tile_rows = max(1, _SMALLEST_TILE // tile_columns)
    warps = tile_rows * tile_columns // (32 * _ELEMENTS_A_THREAD)
    return {"TILE_ROWS": tile_rows, "TILE_COLUMNS": tile_columns, "num_warps": min(16, max(1, warps))}


def _programs(device: torch.device, rows: int, tile_rows: int) -> int:
    multiprocessors = 2  # Triton's interpreter: any number serves
    if device.type == "cuda":
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    return min(triton.cdiv(rows, tile_rows), _PROGRAMS_A_MULTIPROCESSOR * multiprocessors)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: torch.Tensor, w_D: torch.Tensor, eps: float, is_neox: bool) -> torch.Tensor:
        rows, columns = x_ND.shape
        tile = _tile(columns)
        y_ND = torch.empty_like(x_ND)
        root_N = torch.empty(rows, dtype=torch.float32, device=x_ND.device)
        _forward_kernel[(triton.cdiv(rows, tile["TILE_ROWS"]),)](
            x_ND, w_D, y_ND, root_N, rows, EPS=eps, IS_NEOX=is_neox, COLUMNS=columns, **tile
        )
        ctx.save_for_backward(x_ND, w_D, root_N)
        ctx.eps, ctx.is_neox = eps, is_neox
        return y_ND

    @staticmethod
    def backward(ctx: Any, g_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        x_ND, w_D, root_N = ctx.saved_tensors
        rows, columns = x_ND.shape
        tile = _tile(columns)
        programs = _programs(x_ND.device, rows, tile["TILE_ROWS"])
        dx_ND = torch.empty_like(x_ND)
        dw_PD = torch.empty(programs, columns, dtype=torch.float32, device=x_ND.device)
        _backward_kernel[(programs,)](
            g_ND.contiguous(), x_ND, w_D, root_N, dx_ND, dw_PD, rows,
            EPS=ctx.eps, IS_NEOX=ctx.is_neox, COLUMNS=columns, **tile,
        )  # fmt: skip
        return dx_ND, dw_PD.sum(0).to(w_D.dtype), None, None


def rms_norm(x: torch.Tensor, weight_D: torch.Tensor, eps: float, *, is_neox: bool) -> torch.Tensor:
    """The norm over the last dimension of `x`, in its dtype; [..., D]."""
    y: torch.Tensor = _RMSNorm.apply(x.reshape(-1, x.size(-1)).contiguous(), weight_D, eps, is_neox)
    return y.view(x.shape)
