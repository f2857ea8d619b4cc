# SPDX-License-Identifier: Apache-2.0
"""A table of short calls: ways timed in turn, and the command that prints and writes their table."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.machine import describe

DROPPED = 3
SAID = f"The median of the calls after {DROPPED} that are dropped."


def median_ms(ways: Mapping[str, Callable[[], object]], calls: int) -> dict[str, float]:
    """Milliseconds of each way: the median of `calls`, all ways in turn, after those that are dropped."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(calls + DROPPED):
        for way, call in ways.items():
            began = time.perf_counter()
            call()
            seconds[way].append(time.perf_counter() - began)
    return {way: 1e3 * statistics.median(found[DROPPED:]) for way, found in seconds.items()}


def run(
    description: str | None,
    rows: Callable[[int], Iterable[dict[str, Any]]],
    in_markdown: Callable[[list[dict[str, Any]], dict[str, Any]], str],
) -> None:
    """The command of a benchmark; `rows` is given the number of calls, `in_markdown` rows and machine."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=15)
    parser.add_argument("--output", type=Path, help="writes FILE.json and FILE.md, too")
    options = parser.parse_args()
    machine, found = describe(), list(rows(options.calls))
    text = in_markdown(found, machine)
    print(text)
    if options.output is not None:
        page.write(options.output, {"machine": machine, "rows": found}, text)
