# SPDX-License-Identifier: Apache-2.0
"""Optimizer states in 16 bits: which, and how numbers are rounded so that training stays sound.

**Moments** in bfloat16 are rounded stochastically: up with the probability of how far the number is on the
way up, so that the rounded numbers are right on average (Gupta et al. 2015, arXiv 1502.02551; for bfloat16
Zamirai et al. 2020, arXiv 2010.06192). Rounded to nearest they can stand still: with adam_beta2 0.999 a
second moment falls by 0.1% a step where gradients vanish, and bfloat16's neighbours are 0.4% to 0.8% apart,
so that it would never fall. (DeepSeek-V3, arXiv 2412.19437 section 3.3.2, trained with both moments in
bfloat16; its beta2 is 0.95.) The chance is a hash of the number, the parameter it belongs to and the step,
not a random generator's: ranks that hold the same round it alike, in every layout, and a resumed run repeats
it.

**Main parameters** stay float32 to the bit in 16 bits more than the bfloat16 weight: the weight is the main
parameter rounded to nearest, and a signed remainder says what was lost. (TransformerEngine's FusedAdam and
megatron-core call it store_param_remainders.) Halves are rounded away from zero, where torch rounds them to
even, which is one number in 65,536.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron.neox_arguments.config import RunConfig

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# The finalizer of MurmurHash3, 32 bits (Appleby, public domain); as signed numbers.
_MIX_1, _MIX_2 = 0x85EBCA6B - 2**32, 0xC2B2AE35 - 2**32
_GOLDEN = 0x9E3779B9  # 2^32 over the golden ratio: successive multiples are far apart
_SPREAD = _GOLDEN - 2**32


@dataclass(frozen=True)
class StateFormats:
    """In what the optimizer keeps its states."""

    exp_avg: torch.dtype = torch.float32
    exp_avg_sq: torch.dtype = torch.float32
    remainders: bool = False
    gradients: torch.dtype = torch.float32

    @staticmethod
    def of(cfg: RunConfig) -> StateFormats:
        optimizer = cfg.optimizer
        return StateFormats(
            _DTYPES[optimizer.exp_avg_dtype],
            _DTYPES[optimizer.exp_avg_sq_dtype],
            optimizer.store_param_remainders,
            _DTYPES[cfg.precision.grad_accum_dtype],
        )

    @property
    def are_plain(self) -> bool:
        """Whether all is in float32, as torch's kernel has it."""
        return self == StateFormats()

    def in_words(self) -> str:
        main = "16 bits beside the weight" if self.remainders else "float32"
        moments = f"first moments in {_name(self.exp_avg)}, second in {_name(self.exp_avg_sq)}"
        return f"{moments}, main parameters in {main}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def chance_of(step: int, which: int) -> int:
    """A signed 32-bit number for a step and a state, that makes their roundings differ."""
    mixed = (step * _GOLDEN + which * 0x7F4A7C15) % 2**32
    return mixed - 2**32 if mixed >= 2**31 else mixed


def round_stochastically(numbers: torch.Tensor, beside: torch.Tensor, chance: int) -> torch.Tensor:
    """float32 numbers in bfloat16, one of the two neighbours of each; a number bfloat16 has stays itself.

    `beside` are as many float32 numbers: equal numbers with others beside them are rounded apart.
    """
    bits = numbers.view(torch.int32)
    mixed = beside.view(torch.int32) * _SPREAD
    mixed ^= chance
    mixed ^= bits
    mixed ^= (mixed >> 16) & 0xFFFF
    mixed *= _MIX_1
    mixed ^= (mixed >> 13) & 0x7FFFF
    mixed *= _MIX_2
    mixed ^= (mixed >> 16) & 0xFFFF
    mixed &= 0xFFFF
    mixed += bits
    return (mixed >> 16).to(torch.int16).view(torch.bfloat16)


def split(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 numbers as bfloat16, rounded to nearest, and the 16 bits that were lost, int16."""
    bits = numbers.view(torch.int32)
    upper = (bits + 0x8000) >> 16
    return upper.to(torch.int16).view(torch.bfloat16), (bits - (upper << 16)).to(torch.int16)


def join(rounded: torch.Tensor, remainders: torch.Tensor) -> torch.Tensor:
    """The float32 numbers that were split."""
    bits = (rounded.view(torch.int16).to(torch.int32) << 16).add_(remainders)
    return bits.view(torch.float32)
