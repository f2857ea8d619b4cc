# SPDX-License-Identifier: Apache-2.0
"""What k samples of an item would give, from the n ≥ k that there are: pass@k and maj@k of one item.

Legend: Z points of a discrete Fourier transform, Y points of an integral.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt


def pass_at_k(right: int, of: int, k: int) -> float:
    """The chance that one of k samples, drawn without replacement from `of`, is among the `right` ones.

    Chen et al. 2021 (arXiv:2107.03374, equation 1): 1 - C(of - right, k) / C(of, k), without bias for k ≤ of.
    """
    if of - right < k:
        return 1.0
    missed = 1.0
    for number in range(of - right + 1, of + 1):
        missed *= 1 - k / number
    return 1.0 - missed


def maj_at_k(class_of: Sequence[int | None], right: Sequence[bool], k: int) -> float:
    """The chance that the largest class of k samples, drawn without replacement, is a right one.

    `class_of` is the class of each sample, `right` the verdict of each class. Of equally large classes each
    wins with the same chance, as that with the first sample does when samples come in a random order. It is
    exact: no drawings are made.
    """
    of, counts = len(class_of), Counter(class_of)
    # (size, is it right): how many such classes; samples without a class are in none
    alike = Counter((counts[number], is_right) for number, is_right in enumerate(right) if counts[number])
    if k == of:  # there is only one draw
        largest = max((size for size, _ in alike), default=0)
        tied = alike[largest, True] + alike[largest, False]
        return alike[largest, True] / tied if tied else 0.0
    return _chance_of_right(alike, of, k)


def _chance_of_right(alike: Mapping[tuple[int, bool], int], of: int, k: int) -> float:
    """`maj_at_k` by generating functions, for k below `of`.

    Every sample is taken with the chance k/of, independently; given that k are taken, all sets of k are
    equally likely, which is a draw without replacement. The power of z counts the samples taken, and its
    coefficient at k is found by a discrete Fourier transform. For each size t of the largest class the
    power of y counts the classes tied with a right one; its integral from 0 to 1 turns j others into
    1/(j + 1), and Gauss's rule is exact for it.
    """
    chance = k / of
    places = np.arange((of + 1) // 2 + 1)  # of the transform's of + 1 points; the others are conjugates
    z_Z = np.exp(2j * np.pi * places / (of + 1))
    weights_Z = np.where((places == 0) | (2 * places == of + 1), 1.0, 2.0)
    terms = {size: _taken(size, chance)[:, None] * z_Z ** np.arange(size + 1)[:, None] for size, _ in alike}
    below = {size: np.cumsum(each, axis=0) for size, each in terms.items()}
    total_Z = np.zeros(len(places), dtype=complex)
    for t in range(1, min(k, max((size for size, is_right in alike if is_right), default=0)) + 1):
        tall = {kind: count for kind, count in alike.items() if kind[0] >= t}
        others = min(sum(tall.values()), k // t) - 1
        y_Y, weights_Y = np.polynomial.legendre.leggauss(others // 2 + 1)
        rest = of - sum(size * count for (size, _), count in tall.items())
        product_ZY = ((1 - chance + chance * z_Z) ** rest)[:, None] * np.ones(len(y_Y))
        marked_ZY = np.zeros_like(product_ZY)  # the same with one right class of t samples set apart
        for (size, is_right), count in tall.items():
            at_Z1 = terms[size][t][:, None]
            factor_ZY = below[size][t - 1][:, None] + (y_Y + 1) / 2 * at_Z1
            power_ZY = factor_ZY ** (count - 1)
            marked_ZY *= power_ZY * factor_ZY
            if is_right:
                marked_ZY += count * at_Z1 * power_ZY * product_ZY
            product_ZY *= power_ZY * factor_ZY
        total_Z += marked_ZY @ weights_Y / 2
    joint = float((weights_Z * total_Z * z_Z**-k).real.sum()) / (of + 1)
    return min(1.0, max(0.0, joint / float(_taken(of, chance)[k])))


def _taken(size: int, chance: float) -> npt.NDArray[np.float64]:
    """The binomial distribution: how likely 0, 1, … `size` of `size` samples are taken; 0 < chance < 1."""
    logs = [
        math.lgamma(size + 1) - math.lgamma(n + 1) - math.lgamma(size - n + 1)
        + n * math.log(chance) + (size - n) * math.log1p(-chance)
        for n in range(size + 1)
    ]  # fmt: skip
    return np.exp(np.array(logs))


def powers_up_to(samples: int) -> list[int]:
    """1, 2, 4, … and `samples` itself."""
    powers = [1 << exponent for exponent in range(samples.bit_length()) if 1 << exponent < samples]
    return [*powers, samples]
