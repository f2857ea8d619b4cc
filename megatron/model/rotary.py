# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding: its table of inverse frequencies, its scalings, and period contraction.

A rotary base b turns dimension pair i of a head with the period 2 pi b^(2i/d) tokens (Su et al. 2021,
section 3.4.2). Llemma continued Code Llama (b = 1e6) at b = 1e4: all long periods became shorter,
which is what "rotary period contraction" names here. The table is always float32: in half precision
neighbouring positions of long periods would be the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from megatron.neox_arguments.config import ModelConfig, RotaryScaling


def _scale_llama3(inverse_frequencies: torch.Tensor, scaling: RotaryScaling) -> torch.Tensor:
    """Llama 3.1's scaling: long periods by `factor`, short ones not, a ramp between (Llama 3 herd, 2024).

    `inverse_frequencies` is [head_dim / 2], float32; so is the result.
    """
    context_tokens = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    period_tokens = 2 * math.pi / inverse_frequencies
    scaled = torch.where(
        period_tokens > context_tokens / low, inverse_frequencies / scaling.factor, inverse_frequencies
    )
    ramp = (context_tokens / period_tokens - low) / (high - low)
    between = (1 - ramp) * scaled / scaling.factor + ramp * scaled
    is_between = (period_tokens >= context_tokens / high) & (period_tokens <= context_tokens / low)
    return torch.where(is_between, between, scaled)


def inverse_frequencies(
    head_dim: int, rotary_base: float, scaling: RotaryScaling | None = None
) -> torch.Tensor:
    """Returns b^(-2i/d) for i in 0 … d/2 - 1, scaled if asked; [head_dim / 2], float32, on the CPU.

    The exponent is computed as transformers computes it, so that tables are equal bit for bit.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    table = 1.0 / (rotary_base**exponents)
    if scaling is None:
        return table
    if scaling.type == "linear":
        return table / scaling.factor
    return _scale_llama3(table, scaling)


def table_of(model: ModelConfig) -> torch.Tensor:
    """The inverse frequencies of a run's model; [head_dim / 2], float32."""
    return inverse_frequencies(model.head_dim, model.rotary_emb_base, model.rotary_scaling)


@dataclass(frozen=True)
class PeriodChange:
    """The rotary base a checkpoint was trained with, and the base this run goes on with."""

    checkpoint_base: float
    run_base: float

    @property
    def is_change(self) -> bool:
        return self.checkpoint_base != self.run_base

    def describe(self, head_dim: int) -> str:
        """The change in words, with the longest period before and after."""
        if not self.is_change:
            return f"rotary base {self.run_base:,.0f}, as in the checkpoint"
        verb = "contracted" if self.run_base < self.checkpoint_base else "extended"
        longest = [
            2 * math.pi * base ** ((head_dim - 2) / head_dim)
            for base in (self.checkpoint_base, self.run_base)
        ]
        return (
            f"rotary period {verb}: base {self.checkpoint_base:,.0f} in the checkpoint, {self.run_base:,.0f} "
            f"in this run; the longest period goes from {longest[0]:,.0f} to {longest[1]:,.0f} tokens"
        )
