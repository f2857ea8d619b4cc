# SPDX-License-Identifier: Apache-2.0
"""Two models on the same items. What counts is where they differ: both meet the same easy and hard items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval_tasks.measures.intervals import SEED, Estimate, bootstrapped, resampled_sums


@dataclass(frozen=True)
class Comparison:
    """`difference` is second minus first, with the interval of the paired bootstrap.

    `only_first` and `only_second` count the items that one model alone gets right, and `p_value` is
    McNemar's exact test on them; all None where an item's values are not right or wrong.
    """

    items: int
    first: float
    second: float
    difference: Estimate
    only_first: int | None
    only_second: int | None
    p_value: float | None


def compare(first: Sequence[float], second: Sequence[float], seed: int = SEED) -> Comparison:
    """Compares two models by one value an item of each, in the same order, at least one."""
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    assert one.shape == other.shape
    drawn = resampled_sums((other - one)[:, None], seed)[:, 0] / len(one)
    difference = bootstrapped(float((other - one).mean()), drawn)
    only_first = only_second = p_value = None
    if set(np.unique(np.concatenate([one, other])).tolist()) <= {0.0, 1.0}:
        only_first, only_second = int((one > other).sum()), int((other > one).sum())
        p_value = mcnemar(only_first, only_second)
    return Comparison(
        len(one), float(one.mean()), float(other.mean()), difference, only_first, only_second, p_value
    )


def compare_ratios(
    first: Sequence[float],
    second: Sequence[float],
    first_below: Sequence[float],
    second_below: Sequence[float],
    seed: int = SEED,
) -> Comparison:
    """Compares two ratios of sums over the same items, such as bits per byte."""
    columns = np.stack(
        [np.asarray(each, dtype=np.float64) for each in (first, second, first_below, second_below)]
    )
    drawn = resampled_sums(columns.T, seed)
    sums = columns.sum(axis=1)
    one, other = float(sums[0] / sums[2]), float(sums[1] / sums[3])
    difference = bootstrapped(other - one, drawn[:, 1] / drawn[:, 3] - drawn[:, 0] / drawn[:, 2])
    return Comparison(columns.shape[1], one, other, difference, None, None, None)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value of McNemar's test (1947): how likely so uneven a split is of fair coins."""
    trials, fewer = only_first + only_second, min(only_first, only_second)
    # Whole numbers throughout: no split is too large for them.
    ways = sum(math.comb(trials, number) for number in range(fewer + 1))
    return min(1.0, 2 * ways / (1 << trials))
