# SPDX-License-Identifier: Apache-2.0
"""Reports as a trainer would hand them over."""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron.monitoring import StepReport

STEP = StepReport(
    iteration=120,
    train_iters=48_000,
    loss=1.23456,
    lr=9.8e-5,
    grad_norm=0.8512,
    tokens_per_second=541_000.0,
    tokens_per_second_per_gpu=2113.3,
    mfu=0.3141,
    memory_bytes=int(37.25 * 2**30),
    tokens_seen=503_316_480,
    seconds_left=7 * 86_400 + 3 * 3600.0,
    step_seconds=7.75,
)


def step(iteration: int, **changes: Any) -> StepReport:
    """STEP at another iteration, with other values."""
    return dataclasses.replace(STEP, iteration=iteration, **changes)
