# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a text under an n-gram model that KenLM reads, and the training of such a model."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron.neox_arguments.errors import UserError
from tools.proof_pile_2.open_web_math.kneser_ney import Text, write_model
from tools.proof_pile_2.open_web_math.packages import needed
from tools.proof_pile_2.open_web_math.words import model_lines

_HELD_OUT = 20  # one document in twenty is not trained on
_PERCENTILES = (1, 10, 50, 90, 99)


class PerplexityModel:
    """An ARPA or binary file of KenLM's."""

    def __init__(self, path: Path) -> None:
        """Errors: `UserError` for a file that is no model."""
        with needed("ufal.kenlm"):
            import kenlm
        try:
            with _silent():
                self._model = kenlm.Model(str(path))
        except (OSError, RuntimeError) as error:
            words = (str(error).splitlines() or ["?"])[0][:200]
            raise UserError(
                f"--perplexity-model {path}: is no model of KenLM's ({words}); make one with train-lm"
            ) from None

    def perplexity(self, text: str) -> float:
        """Per word, ends of lines counted as words, rounded to two digits; infinite for a text without
        words."""
        logarithm, words = 0.0, 0
        for line in model_lines(text):
            logarithm += self._model.score(" ".join(line))
            words += len(line) + 1
        return math.inf if words == 0 else round(10 ** min(300.0, -logarithm / words), 2)


@contextmanager
def _silent() -> Iterator[None]:
    """Without the progress bar that KenLM writes to the standard error stream itself."""
    sys.stderr.flush()
    saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)


@functools.lru_cache(maxsize=2)
def load_model(path: Path) -> PerplexityModel:
    """The model of a file, once a process."""
    return PerplexityModel(path)


def train_model(
    texts: Iterable[str], output: Path, order: int, prune: bool, max_words: int
) -> dict[str, Any]:
    """Estimate a model of the texts, write it as ARPA, and return its size and what held-out texts measure.

    Memory is about 40 bytes a word and order: `max_words` words are read, and the report says if there were
    more. Errors: `UserError` where there are no words."""
    training, skipped = Text(), 0
    held_out: list[str] = []
    for text in texts:
        if hashlib.sha256(text.encode("utf-8", "replace")).digest()[0] % _HELD_OUT == 0:
            if len(held_out) < 2_000:
                held_out.append(text)
        elif len(training) >= max_words:
            skipped += 1
        else:
            for line in model_lines(text):
                training.add(line)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        estimate = write_model(training, order, output, prune)
    except ValueError as error:
        raise UserError(f"--input: {error}; give more text") from None
    model = PerplexityModel(output)
    found = sorted(model.perplexity(text) for text in held_out)
    return {
        "order": order,
        "words": estimate.words,
        "ngrams": list(estimate.ngrams),
        "discounts": [list(discounts) for discounts in estimate.discounts],
        "orders_with_fallback_discounts": list(estimate.fallback_orders),
        "texts_not_read": skipped,
        "held_out_texts": len(found),
        "held_out_perplexity_percentiles": {
            str(percent): found[min(len(found) - 1, len(found) * percent // 100)]
            for percent in _PERCENTILES
            if found
        },
    }
