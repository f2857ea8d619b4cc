# SPDX-License-Identifier: Apache-2.0
"""The pictures of a run: that they are drawn, from what, and what they show."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron.monitoring import EvalReport
from megatron.monitoring.jsonl import JsonlSink, read_history
from megatron.monitoring.plots import _loss_figure, draw_run, find_record, smoothed, train_series
from megatron.neox_arguments.errors import UserError
from tests.monitoring.reports import step

ROOT = Path(__file__).parents[2]


def record(folder: Path, sources: int = 3, iterations: int = 400) -> Path:
    """A run that learns, with noise, a spike and a NaN."""
    noise = random.Random(0)
    sink = JsonlSink(folder / "logs" / "metrics.jsonl")
    for iteration in range(iterations + 1):
        loss = 1.2 + 1.5 * math.exp(-iteration / 80)
        if iteration:
            train = math.nan if iteration == 7 else 40.0 if iteration == 200 else loss + noise.gauss(0, 0.08)
            rate = 1e-4 * min(iteration / 40, 1) * (0.5 + 0.5 * math.cos(math.pi * iteration / iterations))
            sink.step(step(iteration, loss=train, lr=rate))
        if iteration % 50 == 0:
            losses = {f"source-{number}": loss + 0.2 * number for number in range(sources)}
            sink.evaluation(EvalReport(iteration, "valid", losses))
    sink.evaluation(EvalReport(iterations, "test", {"source-0": 1.25}))
    sink.close()
    return folder / "logs" / "metrics.jsonl"


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def numbers(data: Any) -> list[float]:
    """A curve's coordinates, in which matplotlib takes and gives almost anything."""
    return list(data)


def test_both_pictures_are_drawn_and_nothing_else_is_left(tmp_path: Path) -> None:
    drawn = draw_run(record(tmp_path), tmp_path / "pictures")
    assert [path.name for path in drawn] == ["loss.png", "learning_rate.png"]
    assert sorted((tmp_path / "pictures").iterdir()) == sorted(drawn)
    assert all(png_size(path) == (1350, 750) for path in drawn)


def test_the_curves_are_the_records_numbers(tmp_path: Path) -> None:
    history = read_history(record(tmp_path))
    train = train_series(history, "loss")
    axes = _loss_figure(history, train).axes[0]
    curves = {str(line.get_label()): line for line in axes.lines}
    assert numbers(curves["training blend"].get_xdata())[:7] == [1, 2, 3, 4, 5, 6, 8]  # 7 was NaN
    source = next(line for label, line in curves.items() if label.startswith("source-1 "))
    expected = [1.4 + 1.5 * math.exp(-iteration / 80) for iteration in range(0, 401, 50)]
    assert numbers(source.get_xdata()) == list(range(0, 401, 50))
    assert numbers(source.get_ydata()) == pytest.approx(expected)
    assert f"source-1 {expected[0]:.3f} → {expected[-1]:.3f}" in curves
    assert "source-0, test 1.250" in curves
    assert axes.get_ylim()[1] < 6  # the spike to 40 does not flatten the rest


def test_smoothing_keeps_ends_and_removes_a_spike() -> None:
    series = [(iteration, float(iteration)) for iteration in range(400)]
    series[200] = (200, 1e6)
    smooth = smoothed(series)
    assert [at for at, _ in smooth] == list(range(400))
    assert max(value for _, value in smooth) < 400
    assert smoothed(series[:10]) is series[:10] or smoothed(series[:10]) == series[:10]


@pytest.mark.parametrize("sources", [1, 12])
def test_one_source_and_many(tmp_path: Path, sources: int) -> None:
    path = record(tmp_path, sources)
    history = read_history(path)
    axes = _loss_figure(history, train_series(history, "loss")).axes[0]
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines if "→" in str(line.get_label())}
    assert len(looks) == sources  # no two look the same
    assert draw_run(path, tmp_path)


def test_a_run_of_one_line_and_a_run_of_none(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.event("start", {"iteration": 0})
    with pytest.raises(UserError, match="no iteration is recorded yet"):
        draw_run(tmp_path / "metrics.jsonl", tmp_path)
    sink.step(step(1))
    assert len(draw_run(tmp_path / "metrics.jsonl", tmp_path)) == 2


def test_the_command_takes_the_runs_folder(tmp_path: Path) -> None:
    path = record(tmp_path)
    assert find_record(tmp_path) == find_record(tmp_path / "logs") == find_record(path) == path
    command = [sys.executable, "-m", "megatron.monitoring.plots"]
    done = subprocess.run([*command, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.stdout.splitlines() == [str(path.parent / "loss.png"), str(path.parent / "learning_rate.png")]
    failed = subprocess.run([*command, ROOT / "docs"], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert failed.returncode == 2
    assert "no metrics.jsonl here" in failed.stderr
    assert "Traceback" not in failed.stderr
