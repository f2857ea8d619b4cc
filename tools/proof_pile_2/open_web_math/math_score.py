# SPDX-License-Identifier: Apache-2.0
"""MathScore: how much a text reads like mathematics, by a fastText classifier trained on the user's own
texts."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.neox_arguments.errors import UserError
from tools.proof_pile_2.open_web_math.packages import needed
from tools.proof_pile_2.open_web_math.words import classifier_words

POSITIVE, NEGATIVE = "__label__math", "__label__other"
_HELD_OUT = 20  # one document in twenty is not trained on
_MOST_CHARACTERS = 100_000  # of a document; more says no more about it


class MathClassifier:
    """A fastText model with the label `__label__math`."""

    def __init__(self, path: Path) -> None:
        """Errors: `UserError` for a file that is no such model."""
        with needed("fasttext-community"):
            import fasttext
        try:
            self._model = fasttext.load_model(str(path))
            labels = self._model.get_labels()
        except (ValueError, OSError, MemoryError) as error:
            raise UserError(
                f"--classifier {path}: is no fastText model ({error}); make one with train-classifier"
            ) from None
        if POSITIVE not in labels:
            raise UserError(
                f"--classifier {path}: has the labels {', '.join(labels[:5])} and not {POSITIVE}; make one "
                f"with "
                "train-classifier"
            )
        self._labels = len(labels)

    def score(self, text: str) -> float:
        """Probability of mathematics, 0 to 1, rounded to six digits; 0 for a text without words."""
        return self.score_of_words(classifier_words(text[:_MOST_CHARACTERS]))

    def score_of_words(self, words: str) -> float:
        """The same of text that is already as the classifier reads it."""
        if not words:
            return 0.0
        labels, probabilities = self._model.predict(words, k=self._labels)
        return round(min(1.0, float(dict(zip(labels, probabilities, strict=True)).get(POSITIVE, 0.0))), 6)


@functools.lru_cache(maxsize=2)
def load_classifier(path: Path) -> MathClassifier:
    """The model of a file, once a process."""
    return MathClassifier(path)


@dataclass(frozen=True)
class TrainingOptions:
    """Of fastText; word pairs as features, as usual for short classifiers."""

    epochs: int = 5
    dimensions: int = 64
    learning_rate: float = 0.3
    word_ngrams: int = 2
    buckets: int = 1 << 18


def train_classifier(
    positive: Iterable[str], negative: Iterable[str], output: Path, options: TrainingOptions
) -> dict[str, Any]:
    """Train on texts with and without mathematics, write the model, and return what held-out texts score.

    The same texts in the same order give the same model: one thread trains. Memory is the model's: texts lie
    on the disk, below the folder of `output`. Errors: `UserError` where one side has fewer than 20 texts."""
    with needed("fasttext-community"):
        import fasttext
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".classifier-") as folder:
        training, held_out = Path(folder) / "training.txt", Path(folder) / "held_out.txt"
        counts = _write_lines({POSITIVE: positive, NEGATIVE: negative}, training, held_out)
        for label, side in ((POSITIVE, "--positive"), (NEGATIVE, "--negative")):
            if counts[label] < _HELD_OUT:
                raise UserError(f"{side}: holds {counts[label]} texts; give {_HELD_OUT} or more")
        model = fasttext.train_supervised(
            str(training), thread=1, seed=1, verbose=0, loss="softmax", epoch=options.epochs,
            dim=options.dimensions, lr=options.learning_rate, wordNgrams=options.word_ngrams,
            bucket=options.buckets, minCount=2,
        )  # fmt: skip
        partial = Path(folder) / "model.bin"
        model.save_model(str(partial))
        os.replace(partial, output)
        return {"texts": counts, **_quality(MathClassifier(output), held_out)}


def _write_lines(sides: dict[str, Iterable[str]], training: Path, held_out: Path) -> dict[str, int]:
    counts = dict.fromkeys(sides, 0)
    with open(training, "w", encoding="utf-8") as train, open(held_out, "w", encoding="utf-8") as held:
        iterators = {label: iter(texts) for label, texts in sides.items()}
        while iterators:  # by turns, so that both are seen all through
            for label in list(iterators):
                text = next(iterators[label], None)
                if text is None:
                    del iterators[label]
                    continue
                words = classifier_words(text[:_MOST_CHARACTERS])
                if words:
                    counts[label] += 1
                    digest = hashlib.sha256(words.encode("utf-8", "replace")).digest()
                    file = held if digest[0] % _HELD_OUT == 0 else train
                    file.write(f"{label} {words}\n")
    return counts


def _quality(classifier: MathClassifier, held_out: Path) -> dict[str, Any]:
    """Of held-out texts, the share of each side that the two thresholds pass."""
    scores: dict[str, list[float]] = {POSITIVE: [], NEGATIVE: []}
    with open(held_out, encoding="utf-8") as file:
        for line in file:
            label, _, words = line.rstrip("\n").partition(" ")
            scores[label].append(classifier.score_of_words(words))
    shares = {
        f"at least {threshold}": {
            side: round(sum(score >= threshold for score in scores[label]) / max(1, len(scores[label])), 4)
            for side, label in (("positive", POSITIVE), ("negative", NEGATIVE))
        }
        for threshold in (0.17, 0.5, 0.8)
    }
    return {"held_out": {label: len(values) for label, values in scores.items()}, "shares": shares}
