# SPDX-License-Identifier: Apache-2.0
"""The attention of a layer, and which kernel computes it: by name, or the fastest of those that run here.

Legend: S query tokens, T key tokens, B sequences, H local query heads, K local KV heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.model.attention_kernels import (
    Kernel,
    Settings,
    cuda_kernels,
    flash_on_paper,
    math_attention,
    sdpa,
)
from megatron.model.cpu_attention import attention_on_cpu
from megatron.model.kernel_choice import Cache, Candidate, Choice, Clock, Task, choose, cuda_clock
from megatron.neox_arguments.errors import UserError

AttentionChoice = Choice[Kernel]


@dataclass(frozen=True)
class AttentionShape:
    """The attention of one layer on one rank, as training calls it."""

    tokens: int
    sequences: int
    heads: int
    kv_heads: int
    head_dim: int
    dropout: float = 0.0


def attention_task(shape: AttentionShape, device: torch.device, dtype: torch.dtype) -> Task[Kernel]:
    """Causal attention forward and backward. Nothing is dropped, so that results can be compared."""

    def inputs(is_small: bool) -> list[torch.Tensor]:
        tokens = min(64, shape.tokens) if is_small else shape.tokens
        generator = torch.Generator(device).manual_seed(1)  # the run's random state stays as it is
        return [
            torch.randn(
                tokens,
                shape.sequences,
                heads,
                shape.head_dim,
                dtype=dtype,
                device=device,
                generator=generator,
            ).requires_grad_()
            for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
        ]

    return Task(
        kind="attention",
        shape={
            "tokens": shape.tokens, "sequences": shape.sequences, "heads": shape.heads,
            "kv_heads": shape.kv_heads, "head_dim": shape.head_dim, "dtype": str(dtype), "causal": True,
            "has_dropout": shape.dropout > 0,
        },
        inputs=inputs,
        call=lambda kernel, given: [kernel(given[0], given[1], given[2], Settings())],
        reference=math_attention,
    )  # fmt: skip


def choose_attention(
    wanted: str,
    device: torch.device,
    dtype: torch.dtype,
    shape: AttentionShape,
    *,
    is_trained: bool = True,
    candidates: Sequence[Candidate[Kernel]] | None = None,
    clock: Clock = cuda_clock,
    cache: Cache | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> AttentionChoice:
    """Chooses the attention kernel for a run. Every rank calls this.

    `wanted` is `attention_backend` of the configuration; "auto" takes the fastest of those that run, as
    `kernel_choice.py` measures or remembers them; the CPU has one.

    Raises:
        UserError: a kernel was asked for by name and cannot run here.
    """
    if device.type == "meta":
        return Choice("attention", "flash on paper", "a plan is made, nothing is computed", flash_on_paper)
    if not is_trained:
        return Choice("attention", "torch", "the model is only read, by kernels of its own", sdpa)
    if device.type == "cpu" and candidates is None:
        if wanted not in ("auto", "cpu"):
            raise UserError(
                f"attention_backend={wanted}: this run computes on the CPU, which has one kernel; "
                "use attention_backend: auto"
            )
        return Choice("attention", "cpu", "no CUDA device here", attention_on_cpu)
    if candidates is None:
        candidates = cuda_kernels(torch.cuda.get_device_capability(device), shape.dropout > 0)
    return choose(
        attention_task(shape, device, dtype),
        candidates,
        wanted,
        device,
        key="attention_backend",
        remedy="use attention_backend: auto, or precision: bfloat16 if this run is in float32",
        clock=clock,
        cache=cache,
        log=log,
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
        out_SBHD = self.choice.kernel(q_SBHD, k_TBKD, v_TBKD, Settings(self.softmax_scale, dropout))
        return out_SBHD.flatten(2)
