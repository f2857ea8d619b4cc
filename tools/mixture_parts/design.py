# SPDX-License-Identifier: Apache-2.0
"""Which mixtures to try: points of a simplex, within bounds.

A mixture is one share a source, and shares add up to 1. Bounds from below are taken off first and the design
is laid into what is left (L-pseudocomponents; Cornell, "Experiments with Mixtures", chapter 4); bounds from
above leave points out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron.neox_arguments.errors import UserError

Array = npt.NDArray[np.float64]
ROOM = 1e-9  # that rounding may take up at a bound
MOST_CANDIDATES = 200_000


@dataclass(frozen=True)
class Space:
    """The mixtures that are allowed: sources with a fixed share, and bounds for the shares of the others.

    Points of designs and surfaces are over the F free sources alone, as parts of what fixed ones leave."""

    names: tuple[str, ...]
    fixed: tuple[float | None, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.free) < 2:
            raise UserError(
                f"train_data_paths: {len(self.free)} of {len(self.names)} sources is free, and a mixture "
                "needs two; leave out a --fix"
            )
        if self.rest <= 0:
            raise UserError(
                "--fix: the fixed shares leave nothing for the others; they must add up to below 1"
            )
        low, high = self.bounds_F
        if (low > high + ROOM).any() or low.sum() > 1 + ROOM or high.sum() < 1 - ROOM:
            raise UserError(
                "--bounds: no mixture keeps them; the lower ones must add up to at most, the upper ones to "
                "at least, what the fixed shares leave"
            )

    @property
    def free(self) -> tuple[int, ...]:
        """Numbers of the sources without a fixed share."""
        return tuple(number for number, share in enumerate(self.fixed) if share is None)

    @property
    def free_names(self) -> tuple[str, ...]:
        return tuple(self.names[number] for number in self.free)

    @property
    def rest(self) -> float:
        """What the fixed shares leave."""
        return 1.0 - sum(share for share in self.fixed if share is not None)

    @property
    def bounds_F(self) -> tuple[Array, Array]:
        """Bounds of the free sources, as parts of the rest."""
        low = np.array([self.low[number] for number in self.free]) / self.rest
        high = np.array([self.high[number] for number in self.free]) / self.rest
        return low, np.minimum(high, 1.0)

    def allows(self, point_F: Array) -> bool:
        """Whether a point adds up to 1 within its bounds."""
        low, high = self.bounds_F
        return bool(
            abs(point_F.sum() - 1) < 1e-6 and (point_F >= low - ROOM).all() and (point_F <= high + ROOM).all()
        )

    def weights(self, point_F: Sequence[float] | Array) -> list[float]:
        """The shares of all sources, in their order."""
        free = iter(point_F)
        return [float(next(free)) * self.rest if share is None else share for share in self.fixed]

    def point(self, weights: Sequence[float]) -> Array:
        """The free sources' parts of weights in any unit."""
        total = sum(weights)
        chosen = np.array([weights[number] / total for number in self.free])
        return np.asarray(chosen / chosen.sum(), dtype=np.float64)


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `total` as a sum of `parts` whole numbers from 0 on, the largest first part first."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total, -1, -1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)


def lattice(space: Space, levels: int) -> Array:
    """The simplex-lattice {F, levels}: every share a multiple of 1/levels of what the lower bounds leave.

    Raises:
        UserError: the upper bounds leave none of its points, or it is absurdly large.
    """
    low, _ = space.bounds_F
    points = []
    for number, parts in enumerate(_compositions(levels, len(low))):
        if number == MOST_CANDIDATES:
            raise UserError(f"--levels={levels}: makes more than {MOST_CANDIDATES:,} points; use fewer")
        point = low + (1 - low.sum()) * np.array(parts) / levels
        if space.allows(point):
            points.append(point)
    if not points:
        raise UserError(
            f"--levels={levels}: no point of the lattice keeps the upper bounds; raise them, or use "
            "--design dirichlet"
        )
    return np.array(points)


def dirichlet(space: Space, count: int, seed: int) -> Array:
    """`count` points spread over the allowed mixtures: of random ones, each the farthest from those before.

    Raises:
        UserError: the bounds allow next to nothing.
    """
    pool = candidates(space, 64 * count, seed)
    chosen = [int(np.argmin(((pool - pool.mean(axis=0)) ** 2).sum(axis=1)))]
    distance = ((pool - pool[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < count:
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, ((pool - pool[chosen[-1]]) ** 2).sum(axis=1))
    return pool[chosen]


def candidates(space: Space, count: int, seed: int) -> Array:
    """Random mixtures within the bounds: Dirichlet, each concentration as often, so that edges are reached.

    Raises:
        UserError: the bounds allow next to nothing.
    """
    generator = np.random.default_rng(seed)
    low, high = space.bounds_F
    kept: list[Array] = []
    for _ in range(200):
        alpha = generator.choice((0.4, 1.0, 2.0), size=(count, 1)) * np.ones(len(low))
        drawn = generator.standard_gamma(alpha) + 1e-12
        points = low + (1 - low.sum()) * drawn / drawn.sum(axis=1, keepdims=True)
        kept.append(points[(points <= high + ROOM).all(axis=1)])
        if sum(map(len, kept)) >= count:
            return np.concatenate(kept)[:count]
    raise UserError("--bounds: leave next to no mixture; widen them, or give a source a fixed share by --fix")


def given(space: Space, texts: Sequence[str]) -> Array:
    """Mixtures as typed, such as `2,4,1`, one weight for each source in any unit.

    Raises:
        UserError: one is malformed or breaks a bound or a fixed share.
    """
    points = []
    for text in texts:
        try:
            weights = [float(part) for part in text.split(",")]
        except ValueError:
            weights = []
        if len(weights) != len(space.names) or min(weights, default=-1) < 0 or not 0 < sum(weights) < np.inf:
            raise UserError(
                f"--weights={text}: give {len(space.names)} numbers from 0 on, for {', '.join(space.names)}"
            )
        shares = [weight / sum(weights) for weight in weights]
        point = space.point(weights)
        if not np.allclose(space.weights(point), shares, atol=1e-6) or not space.allows(point):
            raise UserError(f"--weights={text}: breaks a bound or a fixed share; change one of the two")
        points.append(point)
    return np.array(points)


def distinct(points_PF: Array) -> Array:
    """The points without repetitions, in their order."""
    kept: list[Array] = []
    for point in points_PF:
        if not any(np.allclose(point, other, atol=1e-9) for other in kept):
            kept.append(point)
    return np.array(kept)


def pairs(count: int) -> list[tuple[int, int]]:
    """All pairs of sources, in the order of a surface's terms."""
    return list(itertools.combinations(range(count), 2))
