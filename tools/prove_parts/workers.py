# SPDX-License-Identifier: Apache-2.0
"""Several theorems at a time: each worker is a thread with a prover of its own, since provers do the work."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from tools.prove_parts.provers import Checker
from tools.prove_parts.search import Stopped

Item = TypeVar("Item")
Tool = TypeVar("Tool", bound=Checker)

# How often the thread that waits looks whether the user has stopped it.
_LOOK_SECONDS = 0.5


def records_of(
    theorems: Sequence[Item],
    make_prover: Callable[[], Tool],
    work: Callable[[Tool, Item, Callable[[], bool]], dict[str, Any]],
    workers: int,
) -> Iterator[dict[str, Any]]:
    """`work`'s result for each theorem, or attempt at one, in the order in which they end.

    Whatever ends the iteration early (an exception of a worker, which comes out here; Ctrl-C; the caller)
    stops the workers before their next tactic and waits for them: no prover is left behind.
    """
    waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
    for theorem in theorems:
        waiting.put(theorem)
    results: queue.SimpleQueue[dict[str, Any] | BaseException] = queue.SimpleQueue()
    stop = threading.Event()
    count = min(workers, len(theorems))
    threads = [
        threading.Thread(
            target=_work, args=(waiting, results, make_prover, work, stop), name=f"prover {number}"
        )
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in theorems:
            result = _next(results)
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _next(results: queue.SimpleQueue[dict[str, Any] | BaseException]) -> dict[str, Any] | BaseException:
    while True:  # a wait without an end would not let Ctrl-C through on every platform
        try:
            return results.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            continue


def _work(
    waiting: queue.SimpleQueue[Item],
    results: queue.SimpleQueue[dict[str, Any] | BaseException],
    make_prover: Callable[[], Tool],
    work: Callable[[Tool, Item, Callable[[], bool]], dict[str, Any]],
    stop: threading.Event,
) -> None:
    try:
        prover = make_prover()
        try:
            while not stop.is_set():
                try:
                    theorem = waiting.get_nowait()
                except queue.Empty:
                    return
                results.put(work(prover, theorem, stop.is_set))
        finally:
            prover.close()
    except Stopped:
        pass
    except BaseException as error:
        results.put(error)
