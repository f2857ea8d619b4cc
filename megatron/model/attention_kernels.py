# SPDX-License-Identifier: Apache-2.0
"""Attention kernels by name, each brought to one form of call.

    flash_attn     FlashAttention-2, package flash-attn (Dao 2023)
    flash_attn_3   FlashAttention-3 for Hopper, built from flash-attention's `hopper` (Shah et al. 2024)
    flash_attn_4   FlashAttention-4 for Hopper and Blackwell, package flash-attn-4
    torch_flash    FlashAttention-2 in torch
    cudnn          cuDNN's, through torch
    efficient      xFormers' memory-efficient kernel in torch; the only one of these for float32

Legend: S query tokens, T key tokens, B sequences, H local query heads, K local KV heads, D head dimension.
Query head h reads KV head h // (H / K).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron.model.kernel_choice import Candidate, Unfit


@dataclass(frozen=True)
class Settings:
    """What every kernel is told beside q, k, v. All of them are causal.

    `scale` is what scores are multiplied by; None is 1 / sqrt(D). `dropout` is the share of weights dropped.
    """

    scale: float | None = None
    dropout: float = 0.0


# (q_SBHD, k_TBKD, v_TBKD, how) -> out_SBHD
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Settings], torch.Tensor]


def sdpa(
    q_SBHD: torch.Tensor,
    k_TBKD: torch.Tensor,
    v_TBKD: torch.Tensor,
    how: Settings,
) -> torch.Tensor:
    """torch's scaled dot-product attention, with whatever kernel is enabled around the call."""
    out_BHSD = torch.nn.functional.scaled_dot_product_attention(
        q_SBHD.permute(1, 2, 0, 3),
        k_TBKD.permute(1, 2, 0, 3),
        v_TBKD.permute(1, 2, 0, 3),
        is_causal=True,
        scale=how.scale,
        dropout_p=how.dropout,
        enable_gqa=q_SBHD.size(2) != k_TBKD.size(2),
    )
    return out_BHSD.permute(2, 0, 1, 3)


def _sdpa_with(backend: SDPBackend, *, has_grouped_heads: bool = True) -> Kernel:
    """torch's attention by one kernel. Without grouped heads, each KV head is copied for its query heads."""

    def call(
        q_SBHD: torch.Tensor,
        k_TBKD: torch.Tensor,
        v_TBKD: torch.Tensor,
        how: Settings,
    ) -> torch.Tensor:
        queries = q_SBHD.size(2) // k_TBKD.size(2)
        if queries > 1 and not has_grouped_heads:
            k_TBKD, v_TBKD = (x.repeat_interleave(queries, dim=2) for x in (k_TBKD, v_TBKD))
        with sdpa_kernel(backend):
            return sdpa(q_SBHD, k_TBKD, v_TBKD, how)

    return call


def math_attention(
    q_SBHD: torch.Tensor,
    k_TBKD: torch.Tensor,
    v_TBKD: torch.Tensor,
    how: Settings,
) -> torch.Tensor:
    """The formula, by torch's matrix products: what a kernel is compared with."""
    assert how.dropout == 0.0, "what is dropped is random"
    with sdpa_kernel(SDPBackend.MATH):
        return sdpa(q_SBHD, k_TBKD, v_TBKD, how)


def _of_flash_attention(function: Callable[..., Any], *, has_dropout: bool) -> Kernel:
    """A `flash_attn_func`: [B, S, H, D], keywords softmax_scale and causal.

    Versions differ in whether they return the result alone or with the rows' log-sum-exp behind it.
    """

    def call(
        q_SBHD: torch.Tensor,
        k_TBKD: torch.Tensor,
        v_TBKD: torch.Tensor,
        how: Settings,
    ) -> torch.Tensor:
        keywords: dict[str, Any] = {"softmax_scale": how.scale, "causal": True}
        if has_dropout:
            keywords["dropout_p"] = how.dropout
        assert has_dropout or how.dropout == 0.0
        found = function(*(x.transpose(0, 1) for x in (q_SBHD, k_TBKD, v_TBKD)), **keywords)
        out_BSHD: torch.Tensor = found[0] if isinstance(found, tuple) else found
        return out_BSHD.transpose(0, 1)

    return call


def _flash_attn_2() -> Kernel:
    # With flash-attn-4 alone there is a `flash_attn` too, in which only `cute` lies: an ImportError.
    from flash_attn import flash_attn_func

    return _of_flash_attention(flash_attn_func, has_dropout=True)


def _flash_attn_3(capability: tuple[int, int], drops: bool) -> Kernel:
    if drops:
        raise Unfit("has no dropout")
    # Elsewhere its launch ends the process.
    if capability != (9, 0):
        raise Unfit(f"is for compute capability 9.0, this GPU has {capability[0]}.{capability[1]}")
    try:
        from flash_attn_interface import flash_attn_func
    except ImportError:
        from flash_attn_3.flash_attn_interface import flash_attn_func

    return _of_flash_attention(flash_attn_func, has_dropout=False)


def _flash_attn_4(drops: bool) -> Kernel:
    if drops:
        raise Unfit("has no dropout")
    from flash_attn.cute import flash_attn_func

    return _of_flash_attention(flash_attn_func, has_dropout=False)


def cuda_kernels(capability: tuple[int, int], drops: bool) -> list[Candidate[Kernel]]:
    """All kernels for CUDA devices. `capability` is the device's; `drops` says that there is dropout."""
    return [
        Candidate("flash_attn", _flash_attn_2, ("flash-attn",)),
        Candidate(
            "flash_attn_3",
            functools.partial(_flash_attn_3, capability, drops),
            ("flash-attn-3", "flashattn-hopper"),
        ),
        Candidate("flash_attn_4", functools.partial(_flash_attn_4, drops), ("flash-attn-4",)),
        Candidate("torch_flash", lambda: _sdpa_with(SDPBackend.FLASH_ATTENTION)),
        Candidate("cudnn", lambda: _sdpa_with(SDPBackend.CUDNN_ATTENTION)),
        Candidate("efficient", lambda: _sdpa_with(SDPBackend.EFFICIENT_ATTENTION, has_grouped_heads=False)),
    ]


def flash_on_paper(
    q_SBHD: torch.Tensor,
    k_TBKD: torch.Tensor,
    v_TBKD: torch.Tensor,
    how: Settings,
) -> torch.Tensor:
    """Shapes and kept tensors of a flash kernel, by its name: on meta torch would choose another."""
    q_BHSD, k_BKTD, v_BKTD = (x.permute(1, 2, 0, 3) for x in (q_SBHD, k_TBKD, v_TBKD))
    out_BHSD = torch.ops.aten._scaled_dot_product_flash_attention(
        q_BHSD, k_BKTD, v_BKTD, how.dropout, True, scale=how.scale
    )[0]
    return out_BHSD.permute(2, 0, 1, 3)
