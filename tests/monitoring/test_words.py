# SPDX-License-Identifier: Apache-2.0
"""Numbers in words, at the edges where a unit changes, and the lines made of them."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.monitoring import EvalReport
from megatron.monitoring.words import amount, duration, evaluation_line, event_line, memory, step_line
from tests.monitoring.reports import STEP


@pytest.mark.parametrize(("seconds", "words"), [
    (0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (3599.7, "1 h 00 min"),
    (7620, "2 h 07 min"), (86_399, "1 d 00 h"), (86_400 * 3 + 3600 * 4, "3 d 04 h"),
    (math.inf, "?"), (math.nan, "?"), (-1, "?"),
])  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(("count", "words"), [
    (0, "0"), (950, "950"), (999.6, "1.00 k"), (12_345, "12.3 k"), (4_194_304, "4.19 M"), (999_600, "1.00 M"),
    (201_326_592_000, "201 B"), (1.5e12, "1.50 T"), (9_996, "10.0 k"), (99_960, "100 k"),
])  # fmt: skip
def test_amounts(count: float, words: str) -> None:
    assert amount(count) == words


@given(st.floats(min_value=1, max_value=9e14))
def test_an_amount_read_back_is_within_its_last_digit(count: float) -> None:
    number, _, unit = amount(count).partition(" ")
    scale = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[unit]
    assert float(number) * scale == pytest.approx(count, rel=0.006, abs=0.5)
    assert float(number) < 1000


def test_memory() -> None:
    assert (memory(2**20 * 513), memory(2**30 * 5.25)) == ("513 MiB", "5.2 GiB")


def test_a_log_line_has_every_number_an_operator_wants() -> None:
    assert step_line(STEP, "GPU") == (
        "iteration    120/48,000 | loss 1.2346 | lr 9.800e-05 | grad norm 0.851 | "
        "541,000 tokens/s (2,113/GPU) | MFU 31.4% | 37.2 GiB | 503 M tokens seen | 7 d 03 h left"
    )


def test_an_unknown_peak_is_said_and_the_causal_share_stands_beside_the_other() -> None:
    assert "| MFU – |" in step_line(dataclasses.replace(STEP, mfu=None), "rank")
    assert "/rank)" in step_line(STEP, "rank")
    assert "MFU 31.4% (29.8% causal)" in step_line(dataclasses.replace(STEP, mfu_causal=0.298), "GPU")


def test_a_wait_for_data_is_on_the_line_where_it_is_worth_a_look() -> None:
    """A step of STEP takes 7.75 s."""
    assert "waits" not in step_line(dataclasses.replace(STEP, data_wait_seconds=0.07), "GPU")
    line = step_line(dataclasses.replace(STEP, data_wait_seconds=0.25), "GPU")
    assert line.endswith(" left | waits for data: 0.250 s a step")


def test_a_loss_that_is_not_finite_is_shown_as_it_is() -> None:
    assert "loss nan" in step_line(dataclasses.replace(STEP, loss=math.nan), "GPU")


def test_evaluations_and_events() -> None:
    report = EvalReport(250, "valid", {"arxiv": 1.5, "web": 2.25})
    assert (
        evaluation_line(report) == "validation at iteration 250 | loss per source: arxiv 1.5000 | web 2.2500"
    )
    assert (
        event_line("checkpoint", {"iteration": 500, "path": "a/b"}) == "checkpoint: iteration 500, path a/b"
    )
    assert event_line("rotary", {"message": "base 1e6 → 1e4"}) == "rotary: base 1e6 → 1e4"
    assert event_line("done", {}) == "done"
