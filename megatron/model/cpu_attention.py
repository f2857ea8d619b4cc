# SPDX-License-Identifier: Apache-2.0
"""Causal attention on a CPU, as matrix products over a block of queries and all keys before it.

With whole products this is faster than torch's flash kernel for CPUs (docs/kernels.md has by how much).
Scores are float32, as in flash kernels: in bfloat16 they are too coarse for an exponential. Probabilities of
short sequences are kept for the backward pass, which computes those of longer ones again (FlashAttention's
trade, Dao et al. 2022, section 3.1): the numbers are the same.

Legend: S tokens, B sequences, K KV heads, R query heads of each, H = K * R, D head dimension, G = B * K;
N queries of a block, T keys that they see, X = R * N.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from megatron.model.attention_kernels import Settings, sdpa

# Queries of a block. With fewer the products are thin; with more, what is above the diagonal is wasted.
_BLOCK = 64
# Below, a block is all there is, and one kernel is faster than a dozen calls.
_LEAST_TOKENS = 128
# Beyond, torch's kernel is as fast in float32: its products gain nothing there from being large.
_MOST_FLOAT32_TOKENS = 1024
# Up to here probabilities are kept, [H, S] for each token: about as much as what else a small layer keeps.
_MOST_KEPT_TOKENS = 512


def attention_on_cpu(
    q_SBHD: torch.Tensor, k_SBKD: torch.Tensor, v_SBKD: torch.Tensor, how: Settings
) -> torch.Tensor:
    """Attention by whichever of the two kernels is faster for these shapes; [S, B, H, D].

    Which one depends on shapes and dtype alone, so that a run computes the same numbers on every start.
    """
    if not takes_blocks(q_SBHD.size(0), q_SBHD.dtype, how.dropout):
        return sdpa(q_SBHD, k_SBKD, v_SBKD, how)
    scale = 1 / math.sqrt(q_SBHD.size(-1)) if how.scale is None else how.scale
    return block_attention(q_SBHD, k_SBKD, v_SBKD, scale)


def takes_blocks(tokens: int, dtype: torch.dtype, dropout: float) -> bool:
    """Whether products over blocks are as fast as torch's flash kernel, or faster."""
    if dropout or tokens < _LEAST_TOKENS:
        return False
    if dtype == torch.float32:
        return tokens <= _MOST_FLOAT32_TOKENS
    return dtype == torch.bfloat16 and has_bfloat16_products()


def has_bfloat16_products() -> bool:
    """Whether oneDNN computes products in bfloat16 here; torch's own would be slower than any attention."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def block_attention(
    q_SBHD: torch.Tensor, k_SBKD: torch.Tensor, v_SBKD: torch.Tensor, scale: float
) -> torch.Tensor:
    """Causal attention of any shape, [S, B, H, D]; scores are multiplied by `scale`."""
    is_trained = torch.is_grad_enabled() and any(x.requires_grad for x in (q_SBHD, k_SBKD, v_SBKD))
    keeps = is_trained and q_SBHD.size(0) <= _MOST_KEPT_TOKENS
    out_SBHD: torch.Tensor = _forward(q_SBHD, k_SBKD, v_SBKD, scale, keeps)[0]
    return out_SBHD


# Operations of their own, which torch.compile does not look into: it would compile each block anew, which
# takes minutes with thousands of tokens.
@torch.library.custom_op("llemma::block_attention", mutates_args=())
def _forward(
    q_SBHD: torch.Tensor, k_SBKD: torch.Tensor, v_SBKD: torch.Tensor, scale: float, keeps: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention, and the probabilities of all blocks one after the other, or nothing."""
    q_GRSD, k_GSD, v_GSD = _grouped(q_SBHD, k_SBKD.size(2)), _flat(k_SBKD), _flat(v_SBKD)
    out_GRSD, kept = torch.empty_like(q_GRSD), q_SBHD.new_empty(_kept_elements(q_SBHD) if keeps else 0)
    places = _places(kept, q_GRSD)
    for block, place_GXT in zip(_blocks(q_GRSD.size(2)), places, strict=True):
        p_GXT = _probabilities(q_GRSD[:, :, block], k_GSD[:, : block.stop], scale)
        if place_GXT is not None:
            p_GXT = place_GXT.copy_(p_GXT)
        p_GXT = p_GXT.to(q_GRSD.dtype)
        out_GRSD[:, :, block] = torch.bmm(p_GXT, v_GSD[:, : block.stop]).unflatten(1, (-1, _width(block)))
    return _ungrouped(out_GRSD, q_SBHD.size(1)), kept


@torch.library.custom_op("llemma::block_attention_backward", mutates_args=())
def _backward(
    grad_SBHD: torch.Tensor,
    q_SBHD: torch.Tensor,
    k_SBKD: torch.Tensor,
    v_SBKD: torch.Tensor,
    kept: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dV = P^T dO, dS = P * (dO V^T - rows' sums), dQ = dS K, dK = dS^T Q, block by block."""
    kv_heads, sequences = k_SBKD.size(2), q_SBHD.size(1)
    q_GRSD, k_GSD, v_GSD = _grouped(q_SBHD, kv_heads), _flat(k_SBKD), _flat(v_SBKD)
    grad_GRSD = _grouped(grad_SBHD, kv_heads)
    dq_GRSD = torch.empty_like(q_GRSD)
    dk_GSD, dv_GSD = (torch.zeros_like(k_GSD, dtype=_sum_dtype(k_GSD)) for _ in range(2))
    for block, p_GXT in zip(_blocks(q_GRSD.size(2)), _places(kept, q_GRSD), strict=True):
        k_GTD, v_GTD = k_GSD[:, : block.stop], v_GSD[:, : block.stop]
        q_GXD, grad_GXD = (x[:, :, block].flatten(1, 2) for x in (q_GRSD, grad_GRSD))
        if p_GXT is None:
            p_GXT = _probabilities(q_GRSD[:, :, block], k_GTD, scale).to(q_GRSD.dtype)
        dv_GSD[:, : block.stop] += torch.bmm(p_GXT.mT, grad_GXD)
        dp_GXT = torch.bmm(grad_GXD, v_GTD.mT)
        ds_GXT = torch.ops.aten._softmax_backward_data(dp_GXT, p_GXT, -1, p_GXT.dtype)
        dq_GRSD[:, :, block] = torch.bmm(ds_GXT, k_GTD).unflatten(1, (-1, _width(block)))
        dk_GSD[:, : block.stop] += torch.bmm(ds_GXT.mT, q_GXD)
    dk_GRSD, dv_GRSD = (x.to(k_GSD.dtype)[:, None] for x in (dk_GSD.mul_(scale), dv_GSD))
    dq_SBHD = _ungrouped(dq_GRSD.mul_(scale), sequences)
    return dq_SBHD, _ungrouped(dk_GRSD, sequences), _ungrouped(dv_GRSD, sequences)


@_forward.register_fake
def _(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, keeps: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    return q.new_empty(q.shape), q.new_empty(_kept_elements(q) if keeps else 0)


@_backward.register_fake
def _(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kept: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    q, k, v, ctx.scale, _ = inputs
    ctx.save_for_backward(q, k, v, output[1])
    ctx.set_materialize_grads(False)  # of what is kept there is none


def _gradients(ctx: Any, grad_SBHD: torch.Tensor, _: None) -> tuple[torch.Tensor | None, ...]:
    return (*_backward(grad_SBHD, *ctx.saved_tensors, ctx.scale), None, None)


_forward.register_autograd(_gradients, setup_context=_keep)


def _kept_elements(q_SBHD: torch.Tensor) -> int:
    """How many probabilities all blocks have."""
    tokens, sequences, heads, _ = q_SBHD.shape
    return sequences * heads * sum(_width(block) * block.stop for block in _blocks(tokens))


def _places(kept: torch.Tensor, q_GRSD: torch.Tensor) -> list[torch.Tensor | None]:
    """Where in `kept` the probabilities of each block are, [G, X, T]; None where they are not kept."""
    groups, queries, tokens, _ = q_GRSD.shape
    blocks = _blocks(tokens)
    if not kept.numel():
        return [None] * len(blocks)
    shapes = [(groups, queries * _width(block), block.stop) for block in blocks]
    pieces = kept.split([math.prod(shape) for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _blocks(tokens: int) -> list[slice]:
    return [slice(first, min(first + _BLOCK, tokens)) for first in range(0, tokens, _BLOCK)]


def _width(block: slice) -> int:
    return int(block.stop - block.start)


def _probabilities(q_GRND: torch.Tensor, k_GTD: torch.Tensor, scale: float) -> torch.Tensor:
    """[G, X, T], before they are rounded. The last N of the keys are those of the queries themselves."""
    queries = q_GRND.size(2)
    wide = _sum_dtype(q_GRND)
    scores_GXT = torch.bmm((q_GRND.to(wide) * scale).flatten(1, 2), k_GTD.to(wide).mT)
    hidden_NN = torch.full((queries, queries), -torch.inf, dtype=wide).triu_(1)
    scores_GXT.unflatten(1, (-1, queries))[..., -queries:] += hidden_NN
    return torch.softmax(scores_GXT, -1)


def _sum_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _grouped(x_SBHD: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """[G, R, S, D], contiguous: the query heads of a KV head side by side."""
    x_SBKRD = x_SBHD.unflatten(2, (kv_heads, -1))
    return x_SBKRD.permute(1, 2, 3, 0, 4).flatten(0, 1).contiguous()


def _flat(x_SBKD: torch.Tensor) -> torch.Tensor:
    """[G, S, D], contiguous."""
    return x_SBKD.permute(1, 2, 0, 3).flatten(0, 1).contiguous()


def _ungrouped(x_GRSD: torch.Tensor, sequences: int) -> torch.Tensor:
    """[S, B, H, D] again."""
    x_BKRSD = x_GRSD.unflatten(0, (sequences, -1))
    return x_BKRSD.permute(3, 0, 1, 2, 4).flatten(2, 3).contiguous()
