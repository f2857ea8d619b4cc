# SPDX-License-Identifier: Apache-2.0
"""The rank that is slow and the rank that waits, from sums over ranks made by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from megatron.backend import Backend
from megatron.trainer import pace as pace_module
from megatron.trainer.pace import Pace, SlowRank


class Clock:
    """Stands for `time`; moved by hand."""

    def __init__(self) -> None:
        self.seconds = 50.0

    def perf_counter(self) -> float:
        return self.seconds


class Work:
    """Stands for `OwnWork`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def seconds(self) -> float:
        return self._seconds


BACKEND = Backend(torch.device("cpu"), "gloo", 0, 0, 3, 1, 0, 1, 0, 3, 0)


def test_times_of_each_rank_come_through_one_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(pace_module, "time", clock)
    computing, waiting = [1.0, 5.0, 1.0], [0.25, 0.0, 0.5]

    def read(seconds: float) -> Any:
        for number in range(4):
            clock.seconds += seconds  # as a slow disk
            yield number

    paces = [
        Pace(Work(own), dataclasses.replace(BACKEND, rank=rank), 2.0)  # type: ignore[arg-type]
        for rank, own in enumerate(computing)
    ]
    data = [read(seconds) for seconds in waiting]
    for _ in range(2):  # steps of two micro-batches
        for pace, batches in zip(paces, data, strict=True):
            assert len(pace.take_batch(batches, 2)) == 2
            clock.seconds += 7  # computing is no waiting
        sums = [sum(places) for places in zip(*(pace.mine() for pace in paces), strict=True)]
        for pace in paces:
            pace.heard(sums)
    for pace in paces:
        assert pace.slowest() == SlowRank(1, 5.0)
        assert pace.longest_wait() == pytest.approx(2 * 2 * 0.5)
        assert (pace.slowest(), pace.longest_wait()) == (None, 0.0), "told once"
