# SPDX-License-Identifier: Apache-2.0
"""What a run reports, and the fan-out to the places it is shown.

The trainer measures and hands over a `StepReport` or an `EvalReport`; a `Sink` shows or stores them. Numbers
arrive here finished: nothing is computed from the model, and nothing is reduced over ranks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType


@dataclass(frozen=True)
class StepReport:
    """One log line of training: the state after `iteration`, rates since the last line."""

    iteration: int  # iterations done since the start of the run, the first one is 1
    train_iters: int  # iterations the run will have done at its end
    loss: float  # mean negative log-likelihood, nats per token
    lr: float
    grad_norm: float  # global L2 norm before clipping
    tokens_per_second: float  # of the whole run
    tokens_per_second_per_gpu: float  # per rank on CPU
    mfu: float | None  # share of the GPUs' peak, 0 to 1; None where the peak is not known
    memory_bytes: int  # largest amount in use on one rank so far
    tokens_seen: int  # since the start of the run
    seconds_left: float
    step_seconds: float  # of one iteration
    mfu_causal: float | None = None  # the same with causal attention counted at half
    data_wait_seconds: float = 0.0  # of one iteration, in which the rank that waited longest had no data
    slowest_rank: int | None = None  # only where it is slower than `slow_rank_ratio` allows
    slowest_rank_ratio: float | None = None  # its own computing time over the median of all ranks'


@dataclass(frozen=True)
class EvalReport:
    """Losses on held-out text after `iteration`, one per source, nats per token."""

    iteration: int
    split: str  # "valid" or "test"
    losses: Mapping[str, float]


class Sink:
    """A place where reports go. Each method does nothing unless the sink overrides it."""

    name = "sink"

    def tick(self, iteration: int) -> None:
        """An iteration is done that has no report of its own."""

    def step(self, report: StepReport) -> None:
        """A log line of training."""

    def evaluation(self, report: EvalReport) -> None:
        """Losses per source."""

    def event(self, kind: str, fields: Mapping[str, object]) -> None:
        """Something that happened: `start`, `checkpoint`, `stop`, ... with its particulars."""

    def close(self) -> None:
        """Nothing more comes."""


class Monitor:
    """Hands each report to every sink. Ranks other than 0 hold one without sinks.

    A sink that fails with `OSError` (a full disk, a lost connection) must not end a run of days: the failure
    is said on stderr, once until that sink works again, and the next report is tried as usual.
    """

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self.sinks = list(sinks)
        # Asked before anything is written: False where this run may not write any more.
        self.may_write: Callable[[], bool] = lambda: True
        self._failing: set[int] = set()

    def tick(self, iteration: int) -> None:
        self._each(lambda sink: sink.tick(iteration))

    def step(self, report: StepReport) -> None:
        self._each(lambda sink: sink.step(report))

    def evaluation(self, report: EvalReport) -> None:
        self._each(lambda sink: sink.evaluation(report))

    def event(self, kind: str, fields: Mapping[str, object] | None = None) -> None:
        self._each(lambda sink: sink.event(kind, fields or {}))

    def close(self) -> None:
        """Closes all sinks; a second call does nothing."""
        self.may_write = lambda: True
        self._each(lambda sink: sink.close())
        self.sinks = []

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _each(self, call: Callable[[Sink], None]) -> None:
        if not self.may_write():
            return
        for number, sink in enumerate(self.sinks):
            try:
                call(sink)
            except OSError as error:
                if number not in self._failing:
                    self._failing.add(number)
                    print(
                        f"warning: {sink.name} cannot be written: {error}; training goes on", file=sys.stderr
                    )
            else:
                self._failing.discard(number)
