# SPDX-License-Identifier: Apache-2.0
"""A surface through measured mixtures, and the best mixture on it with its uncertainty.

Scheffé's canonical polynomials (H. Scheffé, 1958, "Experiments with mixtures"):

    linear      y = sum_i b_i x_i
    quadratic   y = sum_i b_i x_i + sum_{i<j} b_ij x_i x_j

by least squares. They have no constant, since shares add up to 1. The uncertainty is by bootstrap: residuals,
scaled by sqrt(n / (n - p)) for the p coefficients they lost, are drawn with replacement and put on the fitted
values, the surface is fitted again and its best mixture noted; intervals are from 2.5% to 97.5% of these."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron.neox_arguments.errors import UserError
from tools.mixture_parts.design import Array, Space, candidates, lattice, pairs

DRAWS, CANDIDATES, SEED = 1000, 4000, 20231016
REFINEMENTS = 60


@dataclass(frozen=True)
class Surface:
    """A fitted polynomial."""

    model: str
    coefficients: Array
    residuals: Array
    """Measured less fitted, one a run."""
    left_out_rmse: float
    """Of each run, predicted from the others; NaN where one run decides a coefficient alone."""

    @property
    def freedom(self) -> int:
        """Runs beyond the number of coefficients."""
        return len(self.residuals) - len(self.coefficients)

    def at(self, points_PF: Array) -> Array:
        """The fitted measure of mixtures."""
        return np.asarray(terms(points_PF, self.model) @ self.coefficients)


@dataclass(frozen=True)
class Best:
    """The best mixture of a surface."""

    point_F: Array
    value: float
    low_F: Array | None
    """2.5% bound of each share; None where there are no runs beyond the coefficients to judge by."""
    high_F: Array | None
    value_interval: tuple[float, float] | None


def terms(points_PF: Array, model: str) -> Array:
    """The terms of the polynomial at each point."""
    if model == "linear":
        return points_PF
    products = [points_PF[:, i] * points_PF[:, j] for i, j in pairs(points_PF.shape[1])]
    return np.column_stack([points_PF, *products])


def count_of_terms(sources: int, model: str) -> int:
    """How many coefficients there are, and so the fewest runs."""
    return sources if model == "linear" else sources * (sources + 1) // 2


def fit(points_PF: Array, values_P: Array, model: str) -> Surface:
    """Least squares.

    Raises:
        UserError: the points do not decide the coefficients, or a value is not finite.
    """
    matrix = terms(points_PF, model)
    if not np.isfinite(values_P).all():
        raise UserError("a measured value is not finite; look at that point's run, or leave the point out")
    if np.linalg.matrix_rank(matrix, tol=1e-8) < matrix.shape[1]:
        remedy = "" if model == "linear" else ", or use --model linear"
        raise UserError(
            f"{len(points_PF)} measured runs do not decide the {matrix.shape[1]} coefficients of a {model} "
            f"surface; measure more distinct mixtures{remedy}"
        )
    coefficients, *_ = np.linalg.lstsq(matrix, values_P, rcond=None)
    residuals = values_P - matrix @ coefficients
    # Leverages: the residual of a run left out is its residual / (1 - leverage).
    leverage = (matrix @ np.linalg.pinv(matrix)).diagonal()
    with np.errstate(divide="ignore", invalid="ignore"):
        left_out = np.where(1 - leverage > 1e-9, residuals / (1 - leverage), np.nan)
    rmse = float(np.sqrt(np.mean(left_out**2)))
    return Surface(model, np.asarray(coefficients, np.float64), residuals, rmse)


def best_of(space: Space, points_PF: Array, surface: Surface, maximise: bool) -> Best:
    """The best allowed mixture of a surface through `points_PF`, and how sure that is."""
    sign = -1.0 if maximise else 1.0
    pool = np.concatenate([_pool(space), points_PF])
    at = pool[int(np.argmin(sign * surface.at(pool)))]
    best = _refined(space, surface, at, sign)
    value = float(surface.at(best[None])[0])
    if surface.freedom < 1:
        return Best(best, value, None, None, None)
    generator = np.random.default_rng(SEED)
    matrix, runs = terms(points_PF, surface.model), len(surface.residuals)
    scaled = (surface.residuals - surface.residuals.mean()) * np.sqrt(runs / surface.freedom)
    drawn = scaled[generator.integers(0, runs, size=(runs, DRAWS))]
    fitted = np.linalg.pinv(matrix) @ ((matrix @ surface.coefficients)[:, None] + drawn)
    over_pool = sign * terms(np.concatenate([pool, best[None]]), surface.model) @ fitted
    chosen = np.concatenate([pool, best[None]])[np.argmin(over_pool, axis=0)]
    low, high = np.percentile(chosen, (2.5, 97.5), axis=0)
    ends = np.percentile(sign * over_pool.min(axis=0), (2.5, 97.5))
    return Best(best, value, low, high, (float(ends[0]), float(ends[1])))


def _pool(space: Space) -> Array:
    """Mixtures all over the space: random ones, and a lattice where one fits."""
    random = candidates(space, CANDIDATES, SEED)
    levels = {2: 200, 3: 40, 4: 14, 5: 9}.get(len(space.free), 6)
    try:
        return np.concatenate([random, lattice(space, levels)])
    except UserError:  # narrow upper bounds
        return random


def _refined(space: Space, surface: Surface, point_F: Array, sign: float) -> Array:
    """Moves share from one source to another as long as that helps, in ever smaller steps."""
    low, high = space.bounds_F
    step = 0.1
    for _ in range(REFINEMENTS):
        moved = [point_F]
        for giver in range(len(point_F)):
            for taker in range(len(point_F)):
                size = min(step, point_F[giver] - low[giver], high[taker] - point_F[taker])
                if giver != taker and size > 0:
                    other = point_F.copy()
                    other[giver] -= size
                    other[taker] += size
                    moved.append(other)
        values = sign * surface.at(np.array(moved))
        if int(np.argmin(values)) == 0:
            step /= 2
        point_F = moved[int(np.argmin(values))]
    return np.asarray(point_F)
