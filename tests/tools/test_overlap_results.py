# SPDX-License-Identifier: Apache-2.0
"""Intervals of accuracy against scipy's."""

from __future__ import annotations

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tools.overlap_parts.results import wilson


@given(st.integers(1, 5000), st.data())
def test_wilson_is_scipys(of: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, of))
    expected = scipy.stats.binomtest(right, of).proportion_ci(0.95, "wilson")
    assert wilson(right, of) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_ends_are_exact() -> None:
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
