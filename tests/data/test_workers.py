# SPDX-License-Identifier: Apache-2.0
"""Every task is done once; errors and deaths of processes come back; nothing outlives the block."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from megatron.data.workers import WorkerDied, Workers
from megatron.neox_arguments.errors import UserError


def make(setup: int) -> Callable[[int], Iterator[tuple[int, int]]]:
    def handle(task: int) -> Iterator[tuple[int, int]]:
        if task == 13:
            raise UserError("thirteen")
        if task == 666:
            os.kill(os.getpid(), signal.SIGKILL)
        yield os.getpid(), task
        yield os.getpid(), setup * task

    return handle


def test_tasks_are_done_once_and_processes_serve_again() -> None:
    with Workers[int, int, tuple[int, int]](2, make, (UserError,)) as workers:
        for setup in (10, 100):
            workers.set_up(setup)
            reports = [report for report in workers.run(range(1, 9)) if report is not None]
            expected = [value for task in range(1, 9) for value in (task, setup * task)]
            assert sorted(value for _, value in reports) == sorted(expected)
        processes = {process for process, _ in reports}
        assert os.getpid() not in processes
        assert list(workers.run([])) == []
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.parametrize(("task", "error"), [(13, UserError), (666, WorkerDied)])
def test_errors_and_deaths_come_back(task: int, error: type[Exception]) -> None:
    with Workers[int, int, tuple[int, int]](2, make, (UserError,)) as workers:
        workers.set_up(1)
        with pytest.raises(error):
            list(workers.run([1, task, 2, 3]))
