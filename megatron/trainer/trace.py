# SPDX-License-Identifier: Apache-2.0
"""A trace of some steps, by torch's profiler: where the time goes, for ui.perfetto.dev or chrome://tracing.

Ranges have the names of what a step does: data, forward, backward, reduction, optimizer. Those inside
megatron-core's schedule are opened by its own hook for timers, which is set only while steps are traced.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

FOLDER = "traces"  # in log_dir

# What megatron-core 0.16.1 calls the parts of a step (core/pipeline_parallel/schedules.py,
# core/distributed/finalize_model_grads.py, core/optimizer). Others keep its names.
_NAMES = {
    "forward-compute": "forward",
    "backward-compute": "backward",
    "all-grads-sync": "reduction of gradients",
    "params-all-gather": "gathering of weights",
}


class _Range:
    """One of megatron-core's timers, as it calls them; a range may be open more than once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._open: list[record_function] = []

    def start(self, barrier: bool = False) -> None:
        """`barrier` would make the ranks wait for each other, which a trace is to show and not to do."""
        opened = record_function(self._name)
        opened.__enter__()
        self._open.append(opened)

    def stop(self, barrier: bool = False) -> None:
        if self._open:  # else it began before the trace
            self._open.pop().__exit__(None, None, None)


class EngineRanges:
    """Stands where megatron-core's `Timers` would: its calls open and close ranges in the trace."""

    def __init__(self) -> None:
        self._ranges: dict[str, _Range] = {}

    def __call__(self, name: str, log_level: int | None = None) -> _Range:
        return self._ranges.setdefault(name, _Range(_NAMES.get(name, name)))


class Trace:
    """Traces `first` to `end` - 1 (counted from 1) of the steps it is told of, and writes them to `path`.

    `configs` are megatron-core's, of model and optimizer, which have a place for timers. The step before the
    first is recorded and thrown away, where there is one: the profiler's own start is in it.
    """

    def __init__(self, path: Path, first: int, end: int, configs: Iterable[Any], log: Callable[[str], None]):
        self._path, self._first, self._end, self._log = path, first, end, log
        self._configs = list(configs)
        self._profiler: torch.profiler.profile | None = None
        self._step: record_function | None = None
        self._traced = 0

    def begins(self, step: int) -> None:
        """A step begins."""
        if self._profiler is None and self._first - 1 <= step < self._end:
            is_early = step < self._first
            self._start(warmup_steps=1 if is_early else 0, steps=self._end - max(step, self._first))
        if self._profiler is not None:
            self._step = record_function(f"iteration {step}")
            self._step.__enter__()

    def range(self, name: str) -> AbstractContextManager[Any]:
        """A named range of the trace; costs nothing while none is made."""
        return nullcontext() if self._profiler is None else record_function(name)

    def ends(self, step: int) -> None:
        """A step is done; the last one of the trace writes it."""
        if self._profiler is None:
            return
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None
        self._traced += step >= self._first
        self._profiler.step()
        if step + 1 >= self._end:
            self.close()

    def close(self) -> None:
        """Writes what there is, where a run ends before its trace."""
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        for config in self._configs:
            config.timers = None
        profiler.stop()  # calls `_write`, where `ends` of the last step did not
        if not self._traced:
            self._log(f"note: profile_step_start={self._first}: no such iteration was done, so no trace")

    def _start(self, warmup_steps: int, steps: int) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that there is no warm-up, where there is none
            self._profiler = torch.profiler.profile(
                activities=activities,
                schedule=torch.profiler.schedule(wait=0, warmup=warmup_steps, active=steps, repeat=1),
                on_trace_ready=self._write,
                record_shapes=True,
            )
            self._profiler.start()
        ranges = EngineRanges()
        for config in self._configs:
            config.timers = ranges

    def _write(self, profiler: torch.profiler.profile) -> None:
        if not self._traced:  # the profiler is ready for a step that did not come
            return
        temporary = self._path.with_name(f".{self._path.name}")  # ends alike: .gz is compressed
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(temporary))
            os.replace(temporary, self._path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._log(f"warning: {self._path} cannot be written: {error.strerror}; training goes on")
        else:
            self._log(f"trace of {self._traced} iteration(s): {self._path}; open it at ui.perfetto.dev")


def trace_path(folder: Path, first: int, end: int, rank: int) -> Path:
    """Where a rank's trace goes."""
    return folder / FOLDER / f"iterations{first}-{end - 1}.rank{rank}.json.gz"


def optimizer_configs(optimizer: Any) -> list[Any]:
    """The configurations of megatron-core's optimizer and of those it may be a chain of."""
    parts = [optimizer, *getattr(optimizer, "chained_optimizers", [])]
    return [part.config for part in parts if getattr(part, "config", None) is not None]
