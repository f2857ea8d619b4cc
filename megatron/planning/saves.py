# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints a run from iteration 0 writes, and which of them stay: as trainer/checkpoints.py does."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from megatron.neox_arguments.config import RunConfig


@dataclass(frozen=True)
class Saves:
    """Numbers of checkpoints. Milestones, which are never removed, are among those written and kept."""

    written: int
    kept: int
    milestones: int


def saves_of(cfg: RunConfig) -> Saves:
    """Every `checkpoint_factor` steps, at milestones, and at the end; a checkpoint due twice is one.

    Counted without going through them: a plan takes no longer for a run of more steps.
    """
    checkpoint, steps = cfg.checkpoint, cfg.schedule.train_iters
    if checkpoint.save is None:
        return Saves(0, 0, 0)
    every, milestone = checkpoint.checkpoint_factor, checkpoint.checkpoint_milestone_factor
    before = steps - 1  # the last step's checkpoint is of no interval
    extra = {step for step in checkpoint.extra_save_iters if step <= before and not _divides(milestone, step)}
    milestones = (before // milestone if milestone else 0) + len(extra)
    others = 0
    if every:
        of_both = before // math.lcm(every, milestone) if milestone else 0
        others = before // every - of_both - sum(_divides(every, step) for step in extra)
    if checkpoint.is_milestone(steps):
        milestones += 1
    else:
        others += 1
    kept = milestones + min(others, checkpoint.keep_last_n_checkpoints or others)
    return Saves(milestones + others, kept, milestones)


def saved_iterations(cfg: RunConfig) -> Iterator[int]:
    """The iterations that are saved, in their order, each once."""
    checkpoint, steps = cfg.checkpoint, cfg.schedule.train_iters
    if checkpoint.save is None:
        return
    factors = (checkpoint.checkpoint_factor, checkpoint.checkpoint_milestone_factor)
    due: list[Iterable[int]] = [range(factor, steps, factor) for factor in factors if factor]
    extra = sorted(step for step in checkpoint.extra_save_iters if step < steps)
    for iteration, _ in groupby(heapq.merge(*due, extra, [steps])):
        yield iteration


def _divides(factor: int | None, step: int) -> bool:
    return factor is not None and step % factor == 0
