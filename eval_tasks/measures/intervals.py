# SPDX-License-Identifier: Apache-2.0
"""Means over items with intervals at 95%. Items are what is drawn: samples of one item are not independent.

The usual interval is the percentile bootstrap (B. Efron, 1979): items are drawn anew with replacement, and
the interval holds the middle 95% of the means. Where nearly all items are right or nearly all wrong it is
too narrow, and empty at 0 and at 100%; there it is Wilson's score interval (E. B. Wilson, 1927). The same
holds for shares (of several samples an item) where nearly all are 0 or nearly all are 1, or all are alike:
nothing between 0 and 1 of the same mean varies more than right and wrong do, so Wilson's is never too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Z_95 = 1.959963984540054  # of the normal distribution, two-sided
RESAMPLES = 10_000
SEED = 0
# Below so many right or wrong items the two intervals differ visibly, and Wilson's covers better.
FEW_ITEMS = 10
_DRAWN_AT_ONCE = 2_000_000  # items, so that memory does not grow with the number of resamples


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; `method` is `bootstrap`, `wilson`, or `none` where the data give no interval:
    both bounds are the value then."""

    value: float
    low: float
    high: float
    method: str = "bootstrap"

    def as_fields(self) -> dict[str, float | str]:
        """For results.json."""
        return {"value": self.value, "low": self.low, "high": self.high, "interval": self.method}


def mean(values: Sequence[float] | Sequence[bool], seed: int = SEED) -> Estimate:
    """The mean of one value an item, at least one item."""
    found = np.asarray(values, dtype=np.float64)
    distinct, counts = np.unique(found, return_counts=True)
    if distinct[0] >= 0 and distinct[-1] <= 1:
        few = min((found > 0).sum(), (found < 1).sum()) < FEW_ITEMS
        if few or len(distinct) == 1:
            right = float(found.sum())
            return Estimate(right / len(found), *wilson(right, len(found)), "wilson")
    # Drawing items is drawing how often each of their values occurs.
    drawn = np.random.default_rng(seed).multinomial(len(found), counts / len(found), size=RESAMPLES)
    return bootstrapped(float(found.mean()), drawn @ distinct / len(found))


def ratio(above: Sequence[float], below: Sequence[float], seed: int = SEED) -> Estimate:
    """The ratio of two sums over items, such as bits and bytes, with items drawn in pairs."""
    pairs = np.stack([np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)], axis=1)
    sums = resampled_sums(pairs, seed)
    total = pairs.sum(axis=0)
    return bootstrapped(float(total[0] / total[1]), sums[:, 0] / sums[:, 1])


def wilson(right: float, of: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a share of `of` > 0 trials."""
    share, square = right / of, z * z
    center = (share + square / (2 * of)) / (1 + square / of)
    reach = z / (1 + square / of) * math.sqrt(share * (1 - share) / of + square / (4 * of * of))
    # At the ends the bound is exact; rounding would leave 1e-17 of it.
    low = 0.0 if right == 0 else max(0.0, center - reach)
    return low, 1.0 if right == of else min(1.0, center + reach)


def resampled_sums(values: npt.NDArray[np.float64], seed: int = SEED) -> npt.NDArray[np.float64]:
    """The sums of each column in each of `RESAMPLES` drawings of rows (items) with replacement."""
    draw = np.random.default_rng(seed)
    items = len(values)
    at_once = max(1, _DRAWN_AT_ONCE // items)
    sums = [
        values[draw.integers(0, items, size=(min(at_once, RESAMPLES - done), items))].sum(axis=1)
        for done in range(0, RESAMPLES, at_once)
    ]
    return np.concatenate(sums)


def bootstrapped(value: float, drawn: npt.NDArray[np.float64]) -> Estimate:
    """A value with the middle 95% of what was drawn. Drawings that are all alike say nothing of its error:
    there was one item, or all were alike."""
    low, high = middle(drawn)
    # One item times itself over itself may differ in the last digits.
    if high - low <= 1e-12 * abs(value):
        return Estimate(value, value, value, "none")
    return Estimate(value, low, high)


def middle(drawn: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The bounds of the middle 95%."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
