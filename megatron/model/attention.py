# SPDX-License-Identifier: Apache-2.0
"""The attention kernel: flash-attn, torch's flash or cuDNN kernel, or the CPU's. Chosen once, and said.

Legend: S query tokens, T key tokens, B sequences, H local query heads, K local KV heads, D head dimension.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.neox_arguments.errors import UserError

# (q_SBHD, k_TBKD, v_TBKD, is_causal, scale, dropout) -> out_SBHD
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool, float | None, float], torch.Tensor]


def _sdpa(
    q_SBHD: torch.Tensor,
    k_TBKD: torch.Tensor,
    v_TBKD: torch.Tensor,
    is_causal: bool,
    scale: float | None,
    dropout: float,
) -> torch.Tensor:
    """torch's scaled dot-product attention, with whatever kernel is enabled around the call."""
    out_BHSD = torch.nn.functional.scaled_dot_product_attention(
        q_SBHD.permute(1, 2, 0, 3),
        k_TBKD.permute(1, 2, 0, 3),
        v_TBKD.permute(1, 2, 0, 3),
        is_causal=is_causal,
        scale=scale,
        dropout_p=dropout,
        enable_gqa=q_SBHD.size(2) != k_TBKD.size(2),
    )
    return out_BHSD.permute(2, 0, 1, 3)


def _sdpa_with(kernel: SDPBackend) -> Kernel:
    def call(*arguments: Any) -> torch.Tensor:
        with sdpa_kernel(kernel):
            return _sdpa(*arguments)

    return call


def _flash_attn(
    q_SBHD: torch.Tensor,
    k_TBKD: torch.Tensor,
    v_TBKD: torch.Tensor,
    is_causal: bool,
    scale: float | None,
    dropout: float,
) -> torch.Tensor:
    from flash_attn import flash_attn_func

    q_BSHD, k_BTKD, v_BTKD = (x.transpose(0, 1) for x in (q_SBHD, k_TBKD, v_TBKD))
    out_BSHD = flash_attn_func(
        q_BSHD, k_BTKD, v_BTKD, dropout_p=dropout, softmax_scale=scale, causal=is_causal
    )
    return out_BSHD.transpose(0, 1)


def _flash_on_paper(
    q_SBHD: torch.Tensor,
    k_TBKD: torch.Tensor,
    v_TBKD: torch.Tensor,
    is_causal: bool,
    scale: float | None,
    dropout: float,
) -> torch.Tensor:
    """Shapes and kept tensors of a flash kernel, by its name: on meta torch would choose another."""
    q_BHSD, k_BKTD, v_BKTD = (x.permute(1, 2, 0, 3) for x in (q_SBHD, k_TBKD, v_TBKD))
    out_BHSD = torch.ops.aten._scaled_dot_product_flash_attention(
        q_BHSD, k_BKTD, v_BKTD, dropout, is_causal, scale=scale
    )[0]
    return out_BHSD.permute(2, 0, 1, 3)


@dataclass(frozen=True)
class AttentionChoice:
    """A kernel, its name, and why it was taken."""

    name: str
    reason: str
    kernel: Kernel

    def describe(self) -> str:
        return f"attention: {self.name} ({self.reason})"


def _fails_on_device(kernel: Kernel, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Tries forward and backward on a few tokens; returns the error in one line, or None."""
    q_SBHD, k_TBKD, v_TBKD = (
        torch.zeros(16, 1, 2, head_dim, dtype=dtype, device=device, requires_grad=True) for _ in range(3)
    )
    try:
        kernel(q_SBHD, k_TBKD, v_TBKD, True, None, 0.0).sum().backward()
    except Exception as error:  # a kernel may fail in any way its author thought of
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def choose_attention(wanted: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> AttentionChoice:
    """Chooses the attention kernel for a run.

    `wanted` is `attention_backend` of the configuration; "auto" takes the first that works, in the
    order flash-attn, torch's flash, cuDNN, torch's efficient kernel on CUDA; the CPU has one.

    Raises:
        UserError: a kernel was asked for by name and cannot run here.
    """
    if device.type == "meta":
        return AttentionChoice("flash on paper", "a plan is made, nothing is computed", _flash_on_paper)
    if device.type == "cpu":
        if wanted not in ("auto", "cpu"):
            raise UserError(
                f"attention_backend={wanted}: this run computes on the CPU, which has one kernel; "
                "use attention_backend: auto"
            )
        return AttentionChoice("cpu", "torch's flash kernel for CPUs; no CUDA device here", _sdpa)
    candidates: dict[str, Kernel] = {
        "flash_attn": _flash_attn,
        "torch_flash": _sdpa_with(SDPBackend.FLASH_ATTENTION),
        "cudnn": _sdpa_with(SDPBackend.CUDNN_ATTENTION),
        "efficient": _sdpa_with(SDPBackend.EFFICIENT_ATTENTION),
    }
    names = list(candidates) if wanted == "auto" else [wanted]
    passed_over: list[str] = []
    for name in names:
        if name not in candidates:
            passed_over.append(f"{name}: not a kernel for CUDA")
        elif name == "flash_attn" and importlib.util.find_spec("flash_attn") is None:
            passed_over.append("flash_attn: not installed")
        elif failure := _fails_on_device(candidates[name], device, dtype, head_dim):
            passed_over.append(f"{name}: {failure}")
        else:
            reason = "by name" if wanted != "auto" else "; ".join([*passed_over, "first that works"])
            return AttentionChoice(name, reason, candidates[name])
    raise UserError(
        f"attention_backend={wanted}: no such attention runs here ({'; '.join(passed_over)}); "
        "use attention_backend: auto, or precision: bfloat16 if this run is in float32"
        if wanted != "auto"
        else f"attention_backend=auto: none runs here ({'; '.join(passed_over)})"
    )


class CoreAttention(MegatronModule):
    """Causal attention between the QKV and the output projection, in megatron-core's place for it."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        *,
        choice: AttentionChoice,
    ) -> None:
        super().__init__(config=config)
        self.softmax_scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.choice = choice

    def forward(
        self,
        q_SBHD: torch.Tensor,
        k_TBKD: torch.Tensor,
        v_TBKD: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """Returns [S, B, H * D]."""
        assert attention_bias is None
        assert packed_seq_params is None
        assert q_SBHD.size(0) == k_TBKD.size(0), "with a KV cache a model is read by model/reading.py"
        dropout = self.dropout if self.training else 0.0
        out_SBHD = self.choice.kernel(q_SBHD, k_TBKD, v_TBKD, True, self.softmax_scale, dropout)
        return out_SBHD.flatten(2)
