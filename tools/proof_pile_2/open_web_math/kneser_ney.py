# SPDX-License-Identifier: Apache-2.0
"""N-gram language models by interpolated modified Kneser-Ney smoothing, written as ARPA, which KenLM reads.

Chen and Goodman 1998, section 3.1 and equations 2.11 to 2.13; Heafield et al. 2013, section 3, for sentence
bounds and `<unk>`. KenLM's own estimator, `lmplz`, is in none of its Python packages; its ARPA and binary
files serve as well.

Legend of shapes: P positions in the training text, G distinct n-grams of one order."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from megatron.neox_arguments.whole_files import drafted

UNKNOWN, START, END = 0, 1, 2
_SPECIAL = ("<unk>", "<s>", "</s>")
_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # lmplz --discount_fallback
_IMPOSSIBLE = -99.0

Integers = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]


class Text:
    """Training text as word numbers, sentence after sentence with their bounds."""

    def __init__(self) -> None:
        self.words: list[str] = list(_SPECIAL)
        self._numbers: dict[str, int] = {word: number for number, word in enumerate(_SPECIAL)}
        self._ids = array("i")

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, sentence: Iterable[str]) -> None:
        """Add a sentence; the names of the special words are left out of it, as by lmplz."""
        self._ids.append(START)
        for word in sentence:
            if word not in _SPECIAL:
                number = self._numbers.setdefault(word, len(self.words))
                if number == len(self.words):
                    self.words.append(word)
                self._ids.append(number)
        self._ids.append(END)

    def ids_P(self) -> Integers:
        """All positions."""
        return np.array(self._ids, np.int64)


@dataclass
class _Order:
    """All n-grams of one order; `prefix_G` and `suffix_G` number the n-grams of the order below without the
    last and the first word; `last_G` is a position at which each ends."""

    n: int
    at_P: Integers
    last_G: Integers
    prefix_G: Integers
    suffix_G: Integers
    counts_G: Integers
    kept_G: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """What was estimated, for the report: n-grams kept and discounts, by order."""

    ngrams: tuple[int, ...]
    discounts: tuple[tuple[float, float, float], ...]
    words: int
    fallback_orders: tuple[int, ...]


def write_model(text: Text, order: int, path: Path, prune: bool = False) -> Estimate:
    """Estimate a model and write it as ARPA, under another name first. With `prune`, n-grams of order three
    and up that were counted once are left out (lmplz --prune 0 0 1).

    Errors: `ValueError` for a text without words."""
    ids_P = text.ids_P()
    if len(ids_P) == 0 or not np.any(ids_P > END):
        raise ValueError("the training text holds no words")
    orders = _counted(ids_P, order, len(text.words))
    if prune:
        _prune(orders)
    discounts, fallback = zip(*(_discounts(o.counts_G[o.counts_G > 0]) for o in orders), strict=True)
    probabilities, backoffs = _smoothed(orders, discounts, len(text.words))
    with drafted(path) as draft, open(draft, "w", encoding="utf-8", newline="\n") as file:
        _write_arpa(file, text.words, ids_P, orders, probabilities, backoffs)
    return Estimate(
        tuple(int(o.kept_G.sum()) for o in orders), discounts, len(ids_P),
        tuple(o.n for o, failed in zip(orders, fallback, strict=True) if failed),
    )  # fmt: skip


def _counted(ids_P: Integers, order: int, vocabulary: int) -> list[_Order]:
    """N-grams of all orders with Kneser-Ney's counts: how often, for the highest order and after `<s>`; else
    how many different words stand before."""
    raw_G = np.bincount(ids_P, minlength=vocabulary)
    one = np.zeros(vocabulary, np.int64)
    last_G = np.full(vocabulary, -1, np.int64)
    last_G[ids_P] = np.arange(len(ids_P))
    orders = [_Order(1, ids_P.copy(), last_G, one, one, raw_G, np.ones(vocabulary, bool))]
    for n in range(2, order + 1):
        below = orders[-1].at_P
        inside_P = np.zeros(len(ids_P), bool)
        inside_P[1:] = (below[:-1] >= 0) & (below[1:] >= 0) & (ids_P[1:] != START)
        ends = np.flatnonzero(inside_P)
        keys = below[ends - 1] << 32 | ids_P[ends]
        _, first, number, raw_G = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        at_P = np.full(len(ids_P), -1, np.int64)
        at_P[ends] = number
        last_G = ends[first]
        orders.append(
            _Order(n, at_P, last_G, below[last_G - 1], below[last_G], raw_G, np.ones(len(first), bool))
        )
    for lower, upper in itertools.pairwise(orders):
        preceding_G = np.bincount(upper.suffix_G, minlength=len(lower.counts_G))
        starts = ids_P[lower.last_G - lower.n + 1] == START
        lower.counts_G = np.where(starts & (lower.last_G >= 0), lower.counts_G, preceding_G)
    orders[0].counts_G[START] = 0  # nothing is followed by a sentence's start
    return orders


def _prune(orders: list[_Order]) -> None:
    for place in range(len(orders) - 1, 1, -1):
        order = orders[place]
        order.kept_G = order.counts_G > 1
        if place + 1 < len(orders):
            longer = orders[place + 1]
            order.kept_G[longer.prefix_G[longer.kept_G]] = True
            order.kept_G[longer.suffix_G[longer.kept_G]] = True


def _discounts(counts: Integers) -> tuple[tuple[float, float, float], bool]:
    """What is taken off counts of 1, 2, and 3 and more; and whether the text was too small to tell."""
    n1, n2, n3, n4 = (int(np.sum(counts == c)) for c in (1, 2, 3, 4))
    if min(n1, n2, n3) > 0:
        y = n1 / (n1 + 2 * n2)
        found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if all(0 < discount < count for count, discount in enumerate(found, 1)):
            return found, False
    return _FALLBACK_DISCOUNTS, True


def _smoothed(
    orders: list[_Order], discounts: tuple[tuple[float, float, float], ...], vocabulary: int
) -> tuple[list[Reals], list[Reals]]:
    """Probability of each n-gram's last word after the others, and each n-gram's backoff weight, by order."""
    probabilities: list[Reals] = []
    backoffs: list[Reals] = []
    for order, taken in zip(orders, discounts, strict=True):
        counts_G = order.counts_G.astype(np.float64)
        left_G = np.maximum(counts_G - np.array((0.0, *taken))[np.minimum(order.counts_G, 3)], 0.0)
        left_G[~order.kept_G] = 0.0
        contexts = 1 if order.n == 1 else len(orders[order.n - 2].counts_G)
        totals = np.bincount(order.prefix_G, counts_G, contexts)
        seen = totals > 0
        safe = np.where(seen, totals, 1.0)
        # What the discounts leave for words that were not seen here; all of it after a context without words.
        rest = np.where(seen, 1.0 - np.bincount(order.prefix_G, left_G, contexts) / safe, 1.0)
        below_G = 1.0 / (vocabulary - 1) if order.n == 1 else probabilities[-1][order.suffix_G]
        probabilities.append(left_G / safe[order.prefix_G] + rest[order.prefix_G] * below_G)
        if order.n > 1:
            backoffs.append(rest)
    backoffs.append(np.ones(len(orders[-1].counts_G)))
    return probabilities, backoffs


def _write_arpa(
    file: IO[str],
    words: list[str],
    ids_P: Integers,
    orders: list[_Order],
    probabilities: list[Reals],
    backoffs: list[Reals],
) -> None:
    file.write("\\data\\\n")
    for order in orders:
        file.write(f"ngram {order.n}={int(order.kept_G.sum())}\n")
    for order, probability_G, backoff_G in zip(orders, probabilities, backoffs, strict=True):
        file.write(f"\n\\{order.n}-grams:\n")
        with np.errstate(divide="ignore"):
            logs = np.maximum(np.log10(probability_G), _IMPOSSIBLE)
            weights = np.maximum(np.log10(backoff_G), _IMPOSSIBLE)
        if order.n == 1:
            logs[START] = _IMPOSSIBLE
        highest = order is orders[-1]
        for number, ngram in _ngrams(order, words, ids_P):
            end = "" if highest or ngram.endswith("</s>") else f"\t{weights[number]:.7g}"
            file.write(f"{logs[number]:.7g}\t{ngram}{end}\n")
    file.write("\n\\end\\\n")


def _ngrams(order: _Order, words: list[str], ids_P: Integers) -> Iterator[tuple[int, str]]:
    """The kept n-grams with their numbers."""
    if order.n == 1:
        yield from enumerate(words)
        return
    kept = np.flatnonzero(order.kept_G)
    for start in range(0, len(kept), 1 << 16):
        some = kept[start : start + (1 << 16)]
        places: npt.NDArray[Any] = order.last_G[some][:, None] + np.arange(1 - order.n, 1)
        for number, row in zip(some.tolist(), ids_P[places].tolist(), strict=True):
            yield number, " ".join([words[word] for word in row])
