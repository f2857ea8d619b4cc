# SPDX-License-Identifier: Apache-2.0
"""Which steps are good, what is remembered of them, and which rank is called slow."""

from __future__ import annotations

import math
from typing import Any

import pytest

from megatron.neox_arguments.config import RecoveryConfig
from megatron.trainer.judge import Ledger, judge
from megatron.trainer.pace import SlowRank, slowest_of


def judged(losses: list[float], ledger: Ledger, **changes: Any) -> list[str]:
    """A letter for each step: . good, n not finite, s part of a spike."""
    limits = RecoveryConfig(loss_spike_window=4, **changes)
    letters = ""
    for number, loss in enumerate(losses):
        trouble = judge(limits, ledger, number + 1, loss, 1.0)
        letters += "." if trouble is None else "s" if trouble.is_spike else "n"
    return [letters, *map(str, (ledger.skipped_steps, ledger.skipped_in_a_row, ledger.spiking_in_a_row))]


@pytest.mark.parametrize(("losses", "found"), [
    ([9.0, 1.0, 1.0, 1.0, 3.1, 3.1, 1.0, 3.1], [".....ss.s"[1:], "0", "0", "1"]),
    ([2.0, 2.0, 2.0, 6.1], ["....", "0", "0", "0"]),  # the window is not full
    ([1.0, math.nan, math.inf, 1.0, math.nan], [".nn.n", "3", "1", "0"]),
    ([1.0, 1.0, 1.0, 1.0, 4.0, math.nan, 4.0], ["....sns", "1", "0", "2"]),
])  # fmt: skip
def test_steps_are_judged_by_their_numbers(losses: list[float], found: list[str]) -> None:
    assert judged(losses, Ledger()) == found


def test_the_median_is_of_good_steps_only() -> None:
    ledger = Ledger()
    judged([1.0, 1.0, 1.0, 1.0] + [5.0] * 50, ledger)
    assert (ledger.losses, ledger.spiking_in_a_row) == ([1.0] * 4, 50)
    assert judged([1.0] * 4 + [50.0], Ledger(), loss_spike_ratio=0)[0] == "....."


def test_a_gradient_that_is_not_finite_is_told_as_such() -> None:
    trouble = judge(RecoveryConfig(), Ledger(), 7, 1.5, math.inf)
    assert str(trouble) == "gradient norm=inf at iteration 7: must be finite"


def test_a_ledger_goes_to_a_record_and_back() -> None:
    ledger = Ledger(3, 1, 0, [{"iteration": 12, "back_to": 8}], [1.0, 2.0])
    assert Ledger.of_record(ledger.to_record()) == ledger
    assert Ledger.of_record({}) == Ledger()
    assert [ledger.weights_of(12), ledger.weights_of(13)] == [8, 13]


@pytest.mark.parametrize(("seconds", "ratio", "found"), [
    ([1.0, 1.0, 1.0, 1.6], 1.5, SlowRank(3, 1.6)),
    ([1.0, 1.4], 1.5, None),
    ([2.0, 1.0], 1.5, SlowRank(0, 2.0)),
    ([1.0, 9.0], 0, None),
    ([0.0, 0.0], 1.5, None),
    ([1.0], 1.5, None),
])  # fmt: skip
def test_the_slowest_rank_is_named_above_the_ratio(
    seconds: list[float], ratio: float, found: SlowRank | None
) -> None:
    assert slowest_of(seconds, ratio) == found
