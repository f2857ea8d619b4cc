# SPDX-License-Identifier: Apache-2.0
"""RMSNorm in two forms: Llama's, and the one GPT-NeoX had when Llemma was trained.

    rmsnorm       x * w / sqrt(mean(x^2) + eps)       Zhang & Sennrich 2019; Llama
    rmsnorm_neox  x * w / (sqrt(mean(x^2)) + eps)     GPT-NeoX; what Llemma trained with

Shapes: x is [S, B, D] (tokens, sequences, hidden); w is [D].
"""

from __future__ import annotations

from typing import Any

import torch

from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.Module):
    """Llama's RMSNorm, with the constructor that megatron-core's layer specification calls.

    megatron-core's own torch norm refuses sequence parallelism; here the weight says that its
    gradient is to be summed over the tensor parallel ranks, which is all that is needed.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.normalized_shape = (hidden_size,)
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x_SBD: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x_SBD, self.normalized_shape, self.weight, self.eps)


class NeoxRMSNorm(RMSNorm):
    """GPT-NeoX's RMSNorm: eps is added to the root, not under it."""

    def forward(self, x_SBD: torch.Tensor) -> torch.Tensor:
        x_float = x_SBD.float()
        rms = x_float.pow(2).mean(-1, keepdim=True).sqrt()
        return (x_float / (rms + self.eps)).to(x_SBD.dtype) * self.weight


NORMS: dict[str, type[RMSNorm]] = {"rmsnorm": RMSNorm, "rmsnorm_neox": NeoxRMSNorm}
