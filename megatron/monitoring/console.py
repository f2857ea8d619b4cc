# SPDX-License-Identifier: Apache-2.0
"""The run on the console: plain lines in a file or pipe, and below them a progress bar on a terminal."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from megatron.monitoring.metrics import EvalReport, Sink, StepReport
from megatron.monitoring.words import duration, evaluation_line, event_line, step_line


class Console(Sink):
    """Prints every report as one line; lines stay in the scrollback, only the bar is redrawn.

    `device` names what rates are given per, `GPU` or `rank`. `train_iters` is the length of the bar.
    """

    name = "the console"

    def __init__(self, train_iters: int, device: str = "GPU", stream: TextIO | None = None) -> None:
        self._device = device
        self._train_iters = train_iters
        self._stream = sys.stdout if stream is None else stream
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._terminal = RichConsole(file=self._stream)
        self._has_bar = self._terminal.is_terminal and not self._terminal.is_dumb_terminal
        atexit.register(self.close)  # a bar that is left behind keeps the terminal's cursor hidden

    def tick(self, iteration: int) -> None:
        if self._has_bar:
            self._bar().update(self._task, completed=iteration, refresh=True)

    def step(self, report: StepReport) -> None:
        self._line(step_line(report, self._device))
        if self._has_bar:
            state = f"loss {report.loss:.4f} · {report.tokens_per_second:,.0f} tokens/s"
            left = f"{duration(report.seconds_left)} left"
            self._bar().update(self._task, completed=report.iteration, state=state, left=left, refresh=True)

    def evaluation(self, report: EvalReport) -> None:
        self._line(evaluation_line(report))

    def event(self, kind: str, fields: Mapping[str, object]) -> None:
        self._line(event_line(kind, fields))

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        atexit.unregister(self.close)

    def _line(self, text: str) -> None:
        if self._progress is not None:
            # Above the bar, which rich takes away and draws again.
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def _bar(self) -> Progress:
        if self._progress is None:
            # Drawn on each update only: a thread that redraws would run beside the training step.
            self._progress = Progress(
                TextColumn("training"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                TextColumn("{task.fields[state]}"),
                TextColumn("{task.fields[left]}"),
                console=self._terminal,
                auto_refresh=False,
                transient=True,
                expand=True,
            )
            self._task = self._progress.add_task("training", total=self._train_iters, state="", left="")
            self._progress.start()
        return self._progress
