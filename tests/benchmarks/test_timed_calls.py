# SPDX-License-Identifier: Apache-2.0
"""Ways are timed in turn, and the command writes what it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import timed_calls


def test_ways_take_turns_and_the_first_calls_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    # The clock before and after each call: a's take 9, 9, 9, 1, 2, 6 s, b's 0.
    clock = iter([0, 9, 9, 9, 9, 18, 18, 18, 18, 27, 27, 27, 27, 28, 28, 28, 28, 30, 30, 30, 30, 36, 36, 36])
    monkeypatch.setattr(timed_calls.time, "perf_counter", lambda: next(clock))
    ways = {"a": lambda: called.append("a"), "b": lambda: called.append("b")}
    assert timed_calls.median_ms(ways, 3) == {"a": 2000, "b": 0}
    assert called == ["a", "b"] * 6


def test_the_command_writes_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(calls: int) -> list[dict[str, Any]]:
        return [{"calls": calls}]

    monkeypatch.setattr(sys, "argv", ["it", "--calls", "4", "--output", str(tmp_path / "found")])
    timed_calls.run("What it is.", rows, lambda found, machine: f"{found} {machine['python']}")
    said = capsys.readouterr().out
    assert said.startswith("[{'calls': 4}] 3.")
    assert (tmp_path / "found.md").read_text() == said
    assert json.loads((tmp_path / "found.json").read_text())["rows"] == [{"calls": 4}]
