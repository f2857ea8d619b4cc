# SPDX-License-Identifier: Apache-2.0
"""The learning rate of an iteration: warm-up, then cosine, linear, constant or WSD."""

from __future__ import annotations

import math

from megatron.neox_arguments.config import RunConfig


def learning_rate(cfg: RunConfig, iteration: int) -> float:
    """The learning rate of update `iteration`, counted from 1.

    Warm-up is linear from 0, and its last iteration has `lr`. Cosine: Loshchilov & Hutter 2017; WSD
    (warm-up, stable, decay): Hu et al. 2024, MiniCPM, with a linear decay over `wsd_decay_iters`.
    """
    schedule = cfg.schedule
    peak, lowest = cfg.optimizer.lr, schedule.min_lr
    warmup, end = schedule.warmup_iters, schedule.lr_decay_iters
    if iteration <= warmup:
        return peak * iteration / warmup
    if schedule.lr_decay_style == "constant":
        return peak
    if iteration >= end:
        return lowest
    if schedule.lr_decay_style == "wsd":
        share_left = min(1.0, (end - iteration) / max(1, schedule.wsd_decay_iters))
        return lowest + (peak - lowest) * share_left
    progress = (iteration - warmup) / (end - warmup)
    if schedule.lr_decay_style == "linear":
        return peak + (lowest - peak) * progress
    return lowest + (peak - lowest) * 0.5 * (1.0 + math.cos(math.pi * progress))
