# SPDX-License-Identifier: Apache-2.0
"""Queries, keys and values out of one product, turned on the way: one Triton kernel forward and one backward.

The product has, for each KV head, its queries, the key and the value. Cutting it leaves views, so that the
values that attention keeps for its backward pass keep the whole product alive beside the turned queries and
keys: five parts where three are needed (without grouped heads). Here each number is read once and written
once, and nothing of the product is kept. No library does this without the rest of its layers.

A pair (x1, x2), half a head apart, becomes (x1 cos - x2 sin, x2 cos + x1 sin), in float32 with float32
angles, rounded once. The backward pass turns back and writes the gradient of the product.

Legend: S tokens, B sequences, G local KV heads, R query heads of each, D head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def _turn(from_ptr, to_ptr, inside, cos, sin, HALF: tl.constexpr):
    """Pairs by their angles. For the backward pass `sin` is negative: the turn back."""
    one = tl.load(from_ptr, mask=inside).to(tl.float32)
    two = tl.load(from_ptr + HALF, mask=inside).to(tl.float32)
    tl.store(to_ptr, (one * cos - two * sin).to(to_ptr.dtype.element_ty), mask=inside)
    tl.store(to_ptr + HALF, (two * cos + one * sin).to(to_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _kernel(
    qkv_ptr, q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, sequences,
    q_token, q_sequence, k_token, k_sequence, v_token, v_sequence,
    KV_HEADS: tl.constexpr, QUERIES: tl.constexpr, HALF: tl.constexpr,
    TILE_QUERY_HEADS: tl.constexpr, TILE_KV_HEADS: tl.constexpr, TILE_HALF: tl.constexpr,
    IS_BACKWARD: tl.constexpr,
):  # fmt: skip
    """One program a token: all its heads. Strides are in elements, of tokens and of sequences."""
    place = tl.program_id(0).to(tl.int64)
    token, sequence = place // sequences, place % sequences
    D: tl.constexpr = 2 * HALF
    qkv_ptr += place * KV_HEADS * (QUERIES + 2) * D
    pair = tl.arange(0, TILE_HALF)
    cos = tl.load(cos_ptr + token * D + pair, mask=pair < HALF, other=0.0)[None, :]
    sin = tl.load(sin_ptr + token * D + pair, mask=pair < HALF, other=0.0)[None, :]
    q_ptr += token * q_token + sequence * q_sequence
    k_ptr += token * k_token + sequence * k_sequence
    v_ptr += token * v_token + sequence * v_sequence

    head = tl.arange(0, TILE_QUERY_HEADS)
    inside = (head < KV_HEADS * QUERIES)[:, None] & (pair < HALF)[None, :]
    in_qkv = qkv_ptr + ((head // QUERIES) * (QUERIES + 2) + head % QUERIES)[:, None] * D + pair[None, :]
    in_part = head[:, None] * D + pair[None, :]
    if IS_BACKWARD:
        _turn(q_ptr + in_part, in_qkv, inside, cos, -sin, HALF)
    else:
        _turn(in_qkv, q_ptr + in_part, inside, cos, sin, HALF)

    head = tl.arange(0, TILE_KV_HEADS)
    inside = (head < KV_HEADS)[:, None] & (pair < HALF)[None, :]
    in_qkv = qkv_ptr + (head * (QUERIES + 2) + QUERIES)[:, None] * D + pair[None, :]
    in_part = head[:, None] * D + pair[None, :]
    if IS_BACKWARD:
        _turn(k_ptr + in_part, in_qkv, inside, cos, -sin, HALF)
        tl.store(in_qkv + D, tl.load(v_ptr + in_part, mask=inside), mask=inside)
        tl.store(in_qkv + D + HALF, tl.load(v_ptr + in_part + HALF, mask=inside), mask=inside)
    else:
        _turn(in_qkv, k_ptr + in_part, inside, cos, sin, HALF)
        tl.store(v_ptr + in_part, tl.load(in_qkv + D, mask=inside), mask=inside)
        tl.store(v_ptr + in_part + HALF, tl.load(in_qkv + D + HALF, mask=inside), mask=inside)


def _launch(
    qkv_SBE: torch.Tensor,
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    cos_SD: torch.Tensor,
    sin_SD: torch.Tensor,
    *,
    is_backward: bool,
) -> None:
    tokens, sequences = qkv_SBE.shape[:2]
    q_SBHD, k_SBGD, _ = parts
    kv_heads, head_dim = k_SBGD.shape[2:]
    tile_half, tile_heads = triton.next_power_of_2(head_dim // 2), triton.next_power_of_2(q_SBHD.size(2))
    strides = [stride for part in parts for stride in part.stride()[:2]]
    _kernel[(tokens * sequences,)](
        qkv_SBE, *parts, cos_SD, sin_SD, sequences, *strides,
        KV_HEADS=kv_heads, QUERIES=q_SBHD.size(2) // kv_heads, HALF=head_dim // 2,
        TILE_QUERY_HEADS=tile_heads, TILE_KV_HEADS=triton.next_power_of_2(kv_heads), TILE_HALF=tile_half,
        IS_BACKWARD=is_backward, num_warps=min(8, max(1, tile_heads * tile_half // 256)),
    )  # fmt: skip


class _SplitAndRotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv_SBE: torch.Tensor,
        cos_SD: torch.Tensor,
        sin_SD: torch.Tensor,
        kv_heads: int,
        queries: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens, sequences, width = qkv_SBE.shape
        head_dim = width // (kv_heads * (queries + 2))
        heads = (kv_heads * queries, kv_heads, kv_heads)
        q, k, v = (qkv_SBE.new_empty(tokens, sequences, count, head_dim) for count in heads)
        _launch(qkv_SBE, (q, k, v), cos_SD, sin_SD, is_backward=False)
        ctx.save_for_backward(cos_SD, sin_SD)
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        cos_SD, sin_SD = ctx.saved_tensors
        q, k, v = (_with_packed_heads(gradient) for gradient in gradients)
        tokens, sequences, _, head_dim = q.shape
        width = (q.size(2) + 2 * k.size(2)) * head_dim
        dqkv_SBE = q.new_empty(tokens, sequences, width)
        _launch(dqkv_SBE, (q, k, v), cos_SD, sin_SD, is_backward=True)
        return dqkv_SBE, None, None, None, None


def _with_packed_heads(x_SBHD: torch.Tensor) -> torch.Tensor:
    """With each token's heads one after the other; tokens and sequences may lie in either order."""
    if x_SBHD.stride(3) == 1 and x_SBHD.stride(2) == x_SBHD.size(3):
        return x_SBHD
    return x_SBHD.contiguous()


def split_and_rotate(
    qkv_SBE: torch.Tensor, cos_SD: torch.Tensor, sin_SD: torch.Tensor, kv_heads: int, queries: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [S, B, G * R, D], keys and values [S, B, G, D] of `qkv_SBE`, E = G * (R + 2) * D.

    `cos_SD` and `sin_SD` are float32, and the same in both halves of D.
    """
    assert cos_SD.is_contiguous()
    assert sin_SD.is_contiguous()
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _SplitAndRotate.apply(
        qkv_SBE.contiguous(), cos_SD, sin_SD, kv_heads, queries
    )
    return found
