# SPDX-License-Identifier: Apache-2.0
"""Which rank is slow, and which waits for its data: each one's own times, carried by the reduction of the
loss.

A step takes all ranks as long as the slowest, so the time compared is the one before gradients are summed.
Ranks of one tensor or pipeline parallel group wait for each other before that, and appear together.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron.backend import Backend
from megatron.data.loader import MicroBatch
from megatron.trainer.own_work import OwnWork


@dataclass(frozen=True)
class SlowRank:
    """The slowest rank, and its time as a multiple of the median over all."""

    rank: int
    ratio: float


class _OfEachRank:
    """Seconds of every rank, added up between two log lines."""

    def __init__(self, backend: Backend) -> None:
        self._rank, self._size = backend.rank, backend.world_size
        self._seconds = [0.0] * self._size

    def places(self, mine: float) -> list[float]:
        """A place for every rank, this one's filled: the sum over ranks has all."""
        places = [0.0] * self._size
        places[self._rank] = mine
        return places

    def add(self, seconds: Sequence[float]) -> None:
        """Takes that sum."""
        self._seconds = [before + new for before, new in zip(self._seconds, seconds, strict=True)]

    def take(self) -> list[float]:
        """What came together since the last call."""
        seconds, self._seconds = self._seconds, [0.0] * self._size
        return seconds


class Pace:
    """Collects every rank's own time, and its time without data, between two log lines."""

    def __init__(self, own_work: OwnWork, backend: Backend, ratio: float) -> None:
        self._own_work, self._size, self._ratio = own_work, backend.world_size, ratio
        self._computing, self._waiting = _OfEachRank(backend), _OfEachRank(backend)
        self._waited = 0.0

    def take_batch(self, micro_batches: Iterator[MicroBatch], count: int) -> list[MicroBatch]:
        """The next `count` micro-batches. What reading ahead has not brought is waited for, and counted."""
        began = time.perf_counter()
        batch = list(itertools.islice(micro_batches, count))
        self._waited += time.perf_counter() - began
        return batch

    def mine(self) -> list[float]:
        """What this rank adds to the sum over ranks."""
        waited, self._waited = self._waited, 0.0
        return self._computing.places(self._own_work.seconds()) + self._waiting.places(waited)

    def heard(self, seconds: Sequence[float]) -> None:
        """Takes that sum."""
        self._computing.add(seconds[: self._size])
        self._waiting.add(seconds[self._size :])

    def slowest(self) -> SlowRank | None:
        """The slowest rank since the last call, where it is slower than the ratio allows."""
        return slowest_of(self._computing.take(), self._ratio)

    def longest_wait(self) -> float:
        """Seconds that the rank which waited longest for its data has waited since the last call."""
        return max(self._waiting.take())


def slowest_of(seconds: Sequence[float], ratio: float) -> SlowRank | None:
    """The rank with the largest of `seconds`, where it is `ratio` times the median or more; 0: none."""
    median = statistics.median_low(seconds)  # of two ranks the faster
    if ratio == 0 or median <= 0 or max(seconds) < ratio * median:
        return None
    rank = max(range(len(seconds)), key=seconds.__getitem__)
    return SlowRank(rank, seconds[rank] / median)
