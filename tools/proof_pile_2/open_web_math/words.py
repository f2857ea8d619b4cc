# SPDX-License-Identifier: Apache-2.0
"""Texts as the models read them: without equations for MathScore, as lines of words for the language
model."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tools.proof_pile_2.open_web_math.delimiters import Delimiters, take_delimited
from tools.proof_pile_2.open_web_math.formulas import MARK_END, MARK_START, Marks

_ALL_DELIMITERS = Delimiters(
    inline=(("\\(", "\\)"), ("$", "$")), display=(("$$", "$$"), ("\\[", "\\]")), by_page=True
)
_DIGIT = re.compile(r"\d")
_WORD = re.compile(r"[^\W_]+|[^\w\s]|_")


def without_equations(text: str) -> str:
    """`text` less its formulas, in any delimiters."""
    if MARK_START in text:
        text = text.replace(MARK_START, " ").replace(MARK_END, " ")
    marks = Marks()
    return marks.leave_out(take_delimited(text, _ALL_DELIMITERS, marks))


def classifier_words(text: str) -> str:
    """One line for fastText: without equations, lower case, digits as 0 (OpenWebMath, appendix on
    MathScore)."""
    return " ".join(_DIGIT.sub("0", without_equations(text).lower()).replace("__label__", " ").split())


def model_lines(text: str) -> Iterator[list[str]]:
    """The lines of a text as words for the language model: lower case, digits as 0, punctuation apart."""
    for line in _DIGIT.sub("0", text.lower()).split("\n"):
        if words := _WORD.findall(line):
            yield words
