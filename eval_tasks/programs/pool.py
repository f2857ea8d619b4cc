# SPDX-License-Identifier: Apache-2.0
"""Many programs at once: N of them run at any time, their verdicts come in the order asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from eval_tasks.programs.sandbox import IsolationError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Read ahead, for each worker.
_AHEAD = 8
# A sandbox may fail to come up where the machine is short of memory or of processes for a moment.
_TRIES = 3


def default_workers() -> int:
    """One for each processor that this process may use."""
    return len(os.sched_getaffinity(0))


def in_parallel(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None
) -> Iterator[Result]:
    """`work(item)` for every item, in their order.

    Each thread waits for a process of its own; threads live as long as the iteration, as a sandbox dies with
    the thread that started it.

    Raises:
        IsolationError: a sandbox did not come up in three tries.
    """
    workers = workers or default_workers()
    waiting = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="program") as threads:
        pending: list[Future[Result]] = []
        try:
            pending += [threads.submit(_tried, work, item) for item in islice(waiting, workers * _AHEAD)]
            while pending:
                yield pending.pop(0).result()
                pending += [threads.submit(_tried, work, item) for item in islice(waiting, 1)]
        finally:
            for future in pending:
                future.cancel()


def _tried(work: Callable[[Item], Result], item: Item) -> Result:
    for _ in range(_TRIES - 1):
        try:
            return work(item)
        except IsolationError:
            continue
    return work(item)
