# SPDX-License-Identifier: Apache-2.0
"""What of a machine's ratings kernels and collectives reach: published measurements, or a calibration's.

Each assumed figure names where it was measured by others; none was measured on a GPU here. Only
`sustained_share` was set so that the model agrees with whole training runs, those of benchmarks/cost_model.py
that say "set by".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from megatron.planning.calibration import Calibration
from megatron.planning.gpus import Gpu


@dataclass(frozen=True)
class AttentionRates:
    """Attention reaches `share * s / (s + half_tokens)` of the peak with sequences of s tokens."""

    forward_share: float
    backward_share: float
    half_tokens: float


# Causal, head dimension 128. Hopper: Shah et al. 2024 (arXiv 2407.08608), figure 5 (forward, causal: 319
# TFLOP/s for FlashAttention-2, 518 for cuDNN, 579 for FlashAttention-3 at 4,096 tokens) and figure 6
# (backward, not causal: 310, 499, 542), the latter times what causal attention loses in the forward pass
# (0.86). Ampere: Dao 2023 (arXiv 2307.08691), section 4.1: up to 73% forward and 63% backward, less the same.
# Blackwell as Hopper: an assumption.
_ATTENTION = {
    ("ampere", "flash"): AttentionRates(0.65, 0.54, 380),
    ("hopper", "flash"): AttentionRates(0.346, 0.283, 380),
    ("hopper", "cudnn"): AttentionRates(0.554, 0.456, 350),
    ("hopper", "flash3"): AttentionRates(0.645, 0.495, 440),
    ("ada", "flash"): AttentionRates(0.55, 0.45, 380),
    ("blackwell", "cudnn"): AttentionRates(0.554, 0.456, 350),
}

# Largest share of the peak that any matrix product reached: Bekman, Machine Learning Engineering,
# "Maximum Achievable Matmul FLOPS" (torch 2.5 to 2.7): A100 271.2, H100 794.5 (H200 the same), B200 1,745
# TFLOP/s. Ada: as Hopper, an assumption.
_MATRIX_SHARE = {"ampere": 0.869, "hopper": 0.803, "ada": 0.80, "blackwell": 0.776}

# The same in fp8 (`float8_e4m3fn`): H100 1,402.6, H200 1,453.4, B200 3,432.5 TFLOP/s. Ampere has none.
_FP8_MATRIX_SHARE = {"ampere": 0.0, "hopper": 0.72, "ada": 0.72, "blackwell": 0.763}

# What remains of it in a training step: power limits lower the clock, and the slowest GPU of a job sets its
# pace. Set by llm-foundry's run on 8 A100 and NVIDIA's on 8 H100 (benchmarks/cost_model.py, "set by").
_SUSTAINED_SHARE = {"ampere": 0.86, "hopper": 0.835, "ada": 0.835, "blackwell": 0.835}

# A ring's rate over the link's, and seconds of each of its steps. NCCL's reduce-scatter in a node of 8 H100
# reaches 362 of 450 GB/s, and 311 with 128 MiB (NVIDIA/nccl issue 1047): 50 microseconds over 7 steps.
# Over nodes, 32 with 8 H100 each reach 300 of 400 GB/s (issue 1229) and 200 with 2 GB (issue 1218): both
# are 0.92 of the rating and 18 microseconds for each of 255 steps.
_NODE_LINK_SHARE, _NODE_STEP_SECONDS = 0.80, 7e-6
_NETWORK_SHARE, _NETWORK_STEP_SECONDS = 0.92, 18e-6


@dataclass(frozen=True)
class Rates:
    """Shares of a machine's ratings, and fixed times. `calibration` replaces what it measured."""

    matrix_share: float
    fp8_matrix_share: float
    sustained_share: float
    attention: AttentionRates
    # By which attention is faster than that, or slower: for asking how much it matters.
    attention_factor: float = 1.0
    # Of the memory's rating, by kernels that stream: a copy reaches 90% and more, one with rows to sum less.
    memory_share: float = 0.85
    # The least that a kernel takes: from its start to the next one's.
    launch_seconds: float = 4e-6
    node_link_share: float = _NODE_LINK_SHARE
    network_share: float = _NETWORK_SHARE
    node_step_seconds: float = _NODE_STEP_SECONDS
    network_step_seconds: float = _NETWORK_STEP_SECONDS
    # Of the multiprocessors, while a collective runs beside kernels: DeepSeek-AI 2024 (arXiv 2412.19437,
    # section 3.2.2) give it 20 of 132.
    slowdown_beside_collectives: float = 0.15
    # Of the bus to the host, for a copy to pinned memory.
    host_share: float = 0.5
    # A save on top of copying: agreeing on its contents. An assumption; docs/checkpoints.md says how it is
    # measured.
    save_seconds: float = 2.0
    calibration: Calibration | None = field(default=None, compare=False)
    corrections: Corrections | None = None


@dataclass(frozen=True)
class Point:
    """Where in the space of shapes something was measured, and by how much the model is corrected there."""

    shape: tuple[float, ...]
    factor: float


@dataclass(frozen=True, eq=False)
class Corrections:
    """Measured over modelled seconds, by kind of kernel, at the shapes that were measured."""

    points: dict[str, tuple[Point, ...]]

    def factor(self, kind: str, shape: Sequence[float]) -> float:
        """1 where nothing was measured; at a measured shape what was measured; between, the near ones count.

        Weights are 1 / distance^2 between the logarithms of shapes (Shepard's interpolation).
        """
        points = self.points.get(kind, ())
        if not points:
            return 1.0
        place = [math.log(size) for size in shape]
        total = weights = 0.0
        for point in points:
            squared = sum((a - math.log(b)) ** 2 for a, b in zip(place, point.shape, strict=True))
            if squared < 1e-12:
                return point.factor
            total += math.log(point.factor) / squared
            weights += 1 / squared
        return math.exp(total / weights)


def attention_kernel(gpu: Gpu) -> str:
    """The kernel that a run takes by itself on such a GPU, where all are there; docs/kernels.md."""
    return "cudnn" if gpu.generation in ("hopper", "blackwell") else "flash"


def assumed_rates(gpu: Gpu) -> Rates:
    """The published figures for a GPU, with the attention that a run takes there."""
    return Rates(
        matrix_share=_MATRIX_SHARE[gpu.generation],
        fp8_matrix_share=_FP8_MATRIX_SHARE[gpu.generation],
        sustained_share=_SUSTAINED_SHARE[gpu.generation],
        attention=_ATTENTION[gpu.generation, attention_kernel(gpu)],
    )


def with_attention(rates: Rates, gpu: Gpu, kernel: str | None) -> Rates:
    """The rates with another attention: `flash`, `cudnn` or `flash3`.

    They stay as they are where attention was measured, and where nobody published that kernel's speed on that
    generation of GPUs.
    """
    measured = rates.calibration is not None and rates.calibration.attention
    curve = _ATTENTION.get((gpu.generation, kernel or attention_kernel(gpu)))
    return rates if measured or curve is None else replace(rates, attention=curve)
