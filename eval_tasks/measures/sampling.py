# SPDX-License-Identifier: Apache-2.0
"""What k samples of an item would give, from the n ≥ k that there are: pass@k and maj@k of one item."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWINGS = 200  # sets of k samples an item; their error vanishes in the mean over items
SEED = 0


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


def maj_at_k(class_of: Sequence[int | None], right: Sequence[bool], k: int, seed: int = SEED) -> float:
    """The chance that the largest class of k samples, drawn without replacement, is a right one.

    `class_of` is the class of each sample, `right` the verdict of each class. Of equally large classes each
    wins with the same chance, as that with the first sample does when samples come in a random order. It is
    the mean over `DRAWINGS` drawings; with all samples there is only one.
    """
    sizes = np.bincount(
        [len(right) if number is None else number for number in class_of], minlength=len(right) + 1
    )
    if k == 1:  # the vote of one sample is that sample
        return float((sizes[:-1] * np.asarray(right, dtype=float)).sum() / len(class_of))
    if k == len(class_of):
        drawn = sizes[None, :]
    else:
        drawn = np.random.default_rng(seed).multivariate_hypergeometric(
            sizes, k, size=DRAWINGS, method="marginals"
        )
    counts = drawn[:, : len(right)]
    if counts.shape[1] == 0:
        return 0.0
    largest = (counts == counts.max(axis=1, keepdims=True)) & (counts > 0)
    winners = largest.sum(axis=1)
    won = (largest & np.asarray(right, dtype=bool)).sum(axis=1)
    return float(np.mean(np.divide(won, winners, out=np.zeros(len(won)), where=winners > 0)))


def powers_up_to(samples: int) -> list[int]:
    """1, 2, 4, … and `samples` itself."""
    powers = [1 << exponent for exponent in range(samples.bit_length()) if 1 << exponent < samples]
    return [*powers, samples]
