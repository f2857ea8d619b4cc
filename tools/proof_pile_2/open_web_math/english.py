# SPDX-License-Identifier: Apache-2.0
"""How surely a text is English, by either of two identifiers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from megatron.neox_arguments.errors import UserError
from tools.proof_pile_2.open_web_math.packages import needed
from tools.proof_pile_2.open_web_math.words import without_equations

_JUDGED_CHARACTERS = 10_000


@functools.cache
def _langid() -> Any:
    with needed("py3langid"):
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@functools.lru_cache(maxsize=2)
def _fasttext(path: Path) -> Any:
    with needed("fasttext-community"):
        import fasttext
    try:
        model = fasttext.load_model(str(path))
        labels = model.get_labels()
    except (ValueError, OSError, MemoryError) as error:
        raise UserError(
            f"--language-model {path}: is no fastText model ({error}); give lid.176.bin"
        ) from None
    if "__label__en" not in labels:
        raise UserError(
            f"--language-model {path}: has no label __label__en; give a model for languages"
        ) from None
    return model


def _judged(text: str) -> str:
    """The part that is judged: formulas are in no language."""
    return " ".join(without_equations(text[: 2 * _JUDGED_CHARACTERS])[:_JUDGED_CHARACTERS].split())


def english_by_langid(text: str) -> float:
    """Probability of English by py3langid, 0 to 1; 0 for a text without letters."""
    words = _judged(text)
    if not any(map(str.isalpha, words)):
        return 0.0
    for language, probability in _langid().rank(words):
        if language == "en":
            return round(float(probability), 4)
    return 0.0


def english_by_fasttext(text: str, model: Path) -> float:
    """Probability of English by a fastText model with the label `__label__en`."""
    words = _judged(text)
    if not words:
        return 0.0
    labels, probabilities = _fasttext(model).predict(words, k=-1)
    return round(min(1.0, float(dict(zip(labels, probabilities, strict=True)).get("__label__en", 0.0))), 4)
