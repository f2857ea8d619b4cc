# SPDX-License-Identifier: Apache-2.0
"""Which rank is slow: each one's own computing time, carried by the reduction of the loss.

A step takes all ranks as long as the slowest, so the time compared is the one before gradients are summed.
Ranks of one tensor or pipeline parallel group wait for each other before that, and appear together.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from megatron.backend import Backend
from megatron.trainer.own_work import OwnWork


@dataclass(frozen=True)
class SlowRank:
    """The slowest rank, and its time as a multiple of the median over all."""

    rank: int
    ratio: float


class Pace:
    """Collects every rank's own time between two log lines."""

    def __init__(self, own_work: OwnWork, backend: Backend, ratio: float) -> None:
        self._own_work, self._backend, self._ratio = own_work, backend, ratio
        self._seconds = [0.0] * backend.world_size

    def mine(self) -> list[float]:
        """A place for every rank, this one's filled: the sum over ranks has all."""
        places = [0.0] * self._backend.world_size
        places[self._backend.rank] = self._own_work.seconds()
        return places

    def heard(self, seconds: Sequence[float]) -> None:
        """Takes that sum."""
        self._seconds = [before + new for before, new in zip(self._seconds, seconds, strict=True)]

    def slowest(self) -> SlowRank | None:
        """The slowest rank since the last call, where it is slower than the ratio allows."""
        seconds, self._seconds = self._seconds, [0.0] * self._backend.world_size
        return slowest_of(seconds, self._ratio)


def slowest_of(seconds: Sequence[float], ratio: float) -> SlowRank | None:
    """The rank with the largest of `seconds`, where it is `ratio` times the median or more; 0: none."""
    median = statistics.median_low(seconds)  # of two ranks the faster
    if ratio == 0 or median <= 0 or max(seconds) < ratio * median:
        return None
    rank = max(range(len(seconds)), key=seconds.__getitem__)
    return SlowRank(rank, seconds[rank] / median)
