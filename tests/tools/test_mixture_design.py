# SPDX-License-Identifier: Apache-2.0
"""Designs keep to the simplex and its bounds; the surface finds the best mixture of a known one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron.neox_arguments.errors import UserError
from tools.mixture_parts.design import Space, dirichlet, distinct, lattice
from tools.mixture_parts.design import given as typed
from tools.mixture_parts.surface import best_of, count_of_terms, fit, terms


def space(*names: str, **changes: tuple[float, ...] | tuple[float | None, ...]) -> Space:
    free = {
        "fixed": (None,) * len(names), "low": (0.0,) * len(names), "high": (1.0,) * len(names)
    }  # fmt: skip
    return Space(names, **{**free, **changes})  # type: ignore[arg-type]


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """2 to 5 sources, perhaps one with a fixed share, with bounds that allow something."""
    count = draw(st.integers(2, 5))
    names = tuple(f"s{number}" for number in range(count))
    fixed: list[float | None] = [None] * count
    if count > 2 and draw(st.booleans()):
        fixed[draw(st.integers(0, count - 1))] = draw(st.floats(0, 0.5))
    low = [draw(st.floats(0, 0.2)) for _ in names]
    high = [draw(st.floats(0.3, 1)) for _ in names]
    try:
        return Space(names, tuple(fixed), tuple(low), tuple(high))
    except UserError:
        assume(False)
        raise


def keeps(space: Space, weights: list[float]) -> None:
    assert sum(weights) == pytest.approx(1, abs=1e-9)
    for weight, fixed, low, high in zip(weights, space.fixed, space.low, space.high, strict=True):
        if fixed is not None:
            assert weight == fixed
        else:
            assert low - 1e-8 <= weight <= high + 1e-8


@settings(max_examples=60, deadline=None)
@given(spaces(), st.integers(1, 6), st.integers(1, 15), st.integers(0, 99))
def test_every_design_adds_up_to_one_within_its_bounds(
    space: Space, levels: int, count: int, seed: int
) -> None:
    points = dirichlet(space, count, seed)
    assert len(points) == count
    assert len(distinct(points)) == count
    for point in points:
        keeps(space, space.weights(point))
        assert space.point(space.weights(point)) == pytest.approx(point)
    assert (dirichlet(space, count, seed) == points).all()
    try:
        points = lattice(space, levels)
    except UserError:  # none of its points keeps the upper bounds
        return
    for point in points:
        keeps(space, space.weights(point))


@given(st.integers(2, 5), st.integers(1, 6))
def test_a_lattice_has_all_multiples(sources: int, levels: int) -> None:
    points = lattice(space(*(f"s{number}" for number in range(sources))), levels)
    expected = {
        parts for parts in itertools.product(range(levels + 1), repeat=sources) if sum(parts) == levels
    }
    assert len(points) == math.comb(sources + levels - 1, levels)
    assert {tuple(int(part) for part in np.round(point * levels)) for point in points} == expected


def test_mixtures_as_typed() -> None:
    llemma = space("arxiv", "web", "code", "pile", fixed=(None, None, None, 0.02))
    point = typed(llemma, ["1.96,3.92,0.98,0.14"])[0]
    assert point == pytest.approx([2 / 7, 4 / 7, 1 / 7])
    assert llemma.weights(point) == pytest.approx([0.28, 0.56, 0.14, 0.02])
    for wrong in ("1,2,3", "a,b,c,d", "1,2,3,4", "-1,2,3,0.1", "0,0,0,0", "1,1,1,inf", "nan,1,1,1"):
        with pytest.raises(UserError, match="--weights="):
            typed(llemma, [wrong])


@pytest.mark.parametrize("changes", [
    {"fixed": (0.5, 0.5)},
    {"fixed": (0.5, None)},
    {"low": (0.7, 0.7)},
    {"high": (0.4, 0.4)},
    {"low": (0.5, 0.0), "high": (0.4, 1.0)},
])  # fmt: skip
def test_impossible_spaces_are_told(changes: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(UserError, match="--fix|--bounds"):
        space("a", "b", **changes)


# A bowl over three sources whose bottom lies at (0.5, 0.3, 0.2), as a polynomial without constant.
BOTTOM = np.array([0.5, 0.3, 0.2])


def bowl(points: np.ndarray) -> np.ndarray:
    return 0.8 + 2 * ((points - BOTTOM) ** 2).sum(axis=1)


def test_the_bottom_of_a_known_surface_is_found() -> None:
    whole = space("a", "b", "c")
    points = lattice(whole, 3)
    surface = fit(points, bowl(points), "quadratic")
    assert surface.residuals == pytest.approx(0, abs=1e-12)  # the bowl is a Scheffé polynomial on the simplex
    best = best_of(whole, points, surface, maximise=False)
    assert best.point_F == pytest.approx(BOTTOM, abs=1e-5)
    assert best.value == pytest.approx(0.8)
    upside_down = fit(points, -bowl(points), "quadratic")
    assert best_of(whole, points, upside_down, maximise=True).point_F == pytest.approx(BOTTOM, abs=1e-5)
    # With other sources beside it, and where a bound keeps the bottom out.
    bounded = space("a", "b", "c", high=(0.4, 1.0, 1.0))
    at = best_of(bounded, points, surface, maximise=False).point_F
    assert at == pytest.approx([0.4, 0.35, 0.25], abs=1e-4)


def test_noise_is_covered_by_the_interval() -> None:
    whole, covered = space("a", "b", "c"), np.zeros(3)
    points = np.concatenate([lattice(whole, 4)] * 2)
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 0.02, len(points))
        best = best_of(whole, points, fit(points, bowl(points) + noise, "quadratic"), maximise=False)
        assert best.low_F is not None
        assert best.high_F is not None
        assert best.value_interval is not None
        assert abs(best.point_F - BOTTOM).max() < 0.1
        covered += (best.low_F <= BOTTOM) & (best.high_F >= BOTTOM)
    assert (covered >= 16).all()  # 19 of 20 are expected


def test_a_run_left_out_is_predicted_as_by_fitting_again() -> None:
    points = lattice(space("a", "b", "c"), 3)
    values = bowl(points) + np.random.default_rng(3).normal(0, 0.05, len(points))
    errors = []
    for left in range(len(points)):
        kept = np.arange(len(points)) != left
        others = fit(points[kept], values[kept], "quadratic")
        errors.append(values[left] - others.at(points[left : left + 1])[0])
    surface = fit(points, values, "quadratic")
    assert surface.left_out_rmse == pytest.approx(math.sqrt(np.mean(np.square(errors))))


def test_too_few_runs_are_refused_and_as_many_as_terms_have_no_uncertainty() -> None:
    whole = space("a", "b", "c")
    points = lattice(whole, 2)
    assert len(points) == count_of_terms(3, "quadratic") == terms(points, "quadratic").shape[1]
    best = best_of(whole, points, fit(points, bowl(points), "quadratic"), maximise=False)
    assert best.point_F == pytest.approx(BOTTOM, abs=1e-5)
    assert (best.low_F, best.high_F, best.value_interval) == (None, None, None)
    with pytest.raises(UserError, match="--model linear"):
        fit(points[:5], bowl(points[:5]), "quadratic")
    with pytest.raises(UserError, match="not finite"):
        fit(points, np.full(6, np.nan), "quadratic")
    linear = best_of(whole, points[:3], fit(lattice(whole, 1), np.array([2.0, 1.0, 3.0]), "linear"), False)
    assert linear.point_F == pytest.approx([0, 1, 0])
