# SPDX-License-Identifier: Apache-2.0
"""Statistics against scipy, brute force, and figures published for Llemma."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eval_tasks.measures.comparison import compare, mcnemar
from eval_tasks.measures.intervals import mean, ratio, wilson
from eval_tasks.measures.sampling import maj_at_k, pass_at_k, powers_up_to
from eval_tasks.results.tables import value_words


def test_llemmas_proofs_have_the_interval_that_was_computed_elsewhere() -> None:
    """64 of 244 is 26.2% [20.9, 32.0]."""
    found = mean([True] * 64 + [False] * 180)
    assert [round(100 * number, 1) for number in (found.value, found.low, found.high)] == [26.2, 20.9, 32.0]
    assert found.method == "bootstrap"


def test_the_bootstrap_of_right_and_wrong_has_the_quantiles_of_the_binomial_distribution() -> None:
    found = mean([1.0] * 300 + [0.0] * 700)
    exact = stats.binom(1_000, 0.3).ppf([0.025, 0.975]) / 1_000
    assert (found.low, found.high) == pytest.approx(tuple(exact), abs=0.0015)


def test_the_bootstrap_of_any_values_is_scipys() -> None:
    values = np.random.default_rng(1).gamma(0.5, size=200)
    found = mean(values.tolist())
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=2
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=0.02)
    assert found.value == pytest.approx(values.mean())


def test_the_bootstrap_of_a_ratio_is_scipys() -> None:
    draw = np.random.default_rng(3)
    below = draw.integers(10, 500, size=150).astype(float)
    above = below * draw.normal(1.0, 0.2, size=150)
    found = ratio(above.tolist(), below.tolist())
    theirs = stats.bootstrap(
        (above, below), lambda a, b: a.sum() / b.sum(), paired=True, vectorized=False, method="percentile",
        n_resamples=3_000, rng=4,
    ).confidence_interval  # fmt: skip
    assert found.value == pytest.approx(above.sum() / below.sum())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=0.01)


@given(st.integers(1, 3_000).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_wilson_is_scipys(counts: tuple[int, int]) -> None:
    right, of = counts
    theirs = stats.binomtest(right, of).proportion_ci(method="wilson")
    assert wilson(right, of) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_few_right_or_wrong_items_get_wilsons_interval() -> None:
    for right, of in ((0, 50), (50, 50), (9, 100), (2, 3)):
        found = mean([True] * right + [False] * (of - right))
        assert (found.low, found.high, found.method) == (*wilson(right, of), "wilson")
        assert found.low < found.value < found.high or right in (0, of)
    assert mean([True] * 10 + [False] * 10).method == "bootstrap"


@pytest.mark.parametrize(
    "values", [[0.125], [0.5, 0.5], [0.25] * 40, [0.0] * 50 + [0.5] * 3, [1.0] * 30 + [0.25]]
)
def test_shares_that_are_few_or_alike_get_wilsons_interval(values: list[float]) -> None:
    found = mean(values)
    assert (found.low, found.high, found.method) == (*wilson(sum(values), len(values)), "wilson")
    assert found.low < found.value < found.high


def test_wilsons_interval_covers_the_mean_of_shares() -> None:
    """Of 8 items with shares of 8 samples, each item with a chance of its own: 95%, less its error."""
    draw, covered = np.random.default_rng(5), 0
    for _ in range(1_000):
        found = mean((draw.binomial(8, draw.beta(0.5, 1.0, size=8)) / 8).tolist())
        covered += found.low <= 1 / 3 <= found.high
    assert covered >= 930


def test_what_gives_no_interval_has_none() -> None:
    assert ratio([3.0], [7.0]).method == "none"
    assert ratio([3.0, 6.0], [7.0, 14.0]).method == "none"
    assert compare([1.0, 0.0], [1.0, 0.0]).difference.method == "none"
    assert value_words("bits_per_byte", ratio([3.0], [4.0]).as_fields()) == "0.7500"


@given(st.integers(1, 9).flatmap(
    lambda of: st.tuples(st.integers(0, of), st.just(of), st.integers(1, of))
))  # fmt: skip
def test_pass_at_k_is_the_share_of_all_choices(counts: tuple[int, int, int]) -> None:
    right, of, k = counts
    choices = list(itertools.combinations(range(of), k))
    passed = sum(any(sample < right for sample in choice) for choice in choices)
    assert pass_at_k(right, of, k) == pytest.approx(passed / len(choices))


def test_pass_at_k_of_many_samples() -> None:
    assert pass_at_k(3, 256, 64) == pytest.approx(1 - math.comb(253, 64) / math.comb(256, 64))
    assert pass_at_k(77, 256, 1) == pytest.approx(77 / 256)


def brute_force_maj(class_of: list[int | None], right: list[bool], k: int) -> float:
    """Over all choices, ties shared."""
    credit = 0.0
    choices = list(itertools.combinations(class_of, k))
    for choice in choices:
        counts = Counter(number for number in choice if number is not None)
        if counts:
            best = max(counts.values())
            winners = [number for number, count in counts.items() if count == best]
            credit += sum(right[number] for number in winners) / len(winners)
    return credit / len(choices)


@pytest.mark.parametrize(("class_of", "right"), [
    ([0, 0, 0, 1, 1, 2, None, None], [True, False, False]),
    ([0, 0, 1, 1, 2, 2, 3, None], [False, True, False, True]),
    ([None, None, None, 0], [True]),
    ([0, 1, 2, 3, 4, 5], [False, False, True, False, False, False]),
])  # fmt: skip
def test_maj_at_k_is_the_share_of_all_choices(class_of: list[int | None], right: list[bool]) -> None:
    for k in range(1, len(class_of) + 1):
        assert maj_at_k(class_of, right, k) == pytest.approx(brute_force_maj(class_of, right, k), abs=1e-12)


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=1, max_size=9), st.tuples(*[st.booleans()] * 4)
)
def test_maj_at_k_of_anything_is_the_share_of_all_choices(
    class_of: list[int | None], right: tuple[bool, ...]
) -> None:
    for k in range(1, len(class_of) + 1):
        wanted = brute_force_maj(class_of, list(right), k)
        assert maj_at_k(class_of, right, k) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("right", "of"), [(9, 16), (100, 256), (500, 1_100)])
def test_maj_at_k_of_two_classes_is_the_hypergeometric_tail(right: int, of: int) -> None:
    """Many items with the same counts have the same chance: its error does not vanish in their mean."""
    for k in (2, 4, 7, of // 2, of - 1):
        drawn = stats.hypergeom(of, right, k)
        wanted = drawn.sf(k // 2) + (drawn.pmf(k // 2) / 2 if k % 2 == 0 else 0)
        found = maj_at_k([0] * right + [1] * (of - right), [True, False], k)
        assert found == pytest.approx(wanted, abs=1e-9)
    assert maj_at_k([0] * right + [1] * (of - right), [True, False], 2) == pytest.approx(right / of)


def test_maj_at_k_without_a_valid_sample_is_zero_and_at_one_is_the_mean() -> None:
    assert maj_at_k([None, None], [], 1) == 0.0
    assert maj_at_k([None, None], [], 2) == 0.0
    assert maj_at_k([0] * 64 + [1] * 192, [True, False], 256) == 0.0
    assert maj_at_k([0] * 128 + [1] * 128, [True, False], 256) == 0.5
    assert maj_at_k([0, 1] * 50, [True, False], 8) == maj_at_k([0, 1] * 50, [True, False], 8)


def test_powers() -> None:
    assert [powers_up_to(n) for n in (1, 2, 3, 16, 100)] == [
        [1], [1, 2], [1, 2, 3], [1, 2, 4, 8, 16], [1, 2, 4, 8, 16, 32, 64, 100]
    ]  # fmt: skip


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_scipys_exact_binomial_test(only_first: int, only_second: int) -> None:
    if only_first + only_second == 0:
        assert mcnemar(0, 0) == 1.0
    else:
        theirs = stats.binomtest(only_first, only_first + only_second, 0.5).pvalue
        assert mcnemar(only_first, only_second) == pytest.approx(theirs, rel=1e-9)


def test_a_paired_comparison() -> None:
    chance = random.Random(5)
    first = [float(chance.random() < 0.2) for _ in range(244)]
    second = [1.0 if right or chance.random() < 0.07 else 0.0 for right in first]
    found = compare(first, second)
    difference = np.subtract(second, first)
    theirs = stats.bootstrap((difference,), np.mean, method="percentile", n_resamples=10_000, rng=6)
    assert found.difference.value == pytest.approx(difference.mean())
    assert (found.difference.low, found.difference.high) == pytest.approx(
        (theirs.confidence_interval.low, theirs.confidence_interval.high), abs=0.006
    )
    assert (found.only_first, found.only_second) == (0, int(difference.sum()))
    assert found.p_value == pytest.approx(2 * 0.5 ** difference.sum())
    unpaired = compare([0.25, 0.5], [0.5, 0.5])
    assert (unpaired.p_value, unpaired.only_first) == (None, None)
    assert compare([1.0], [1.0]).difference.value == 0
