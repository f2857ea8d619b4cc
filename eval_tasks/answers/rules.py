# SPDX-License-Identifier: Apache-2.0
"""The answer rules by name. What a rule does quickly is done at once; what may take long, `same` and
`bucket`, is asked of workers with limits (`workers.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from eval_tasks.answers import extraction, gsm8k, minerva, multiple_choice, ocw


@dataclass(frozen=True)
class AnswerRule:
    """What an answer is, and when two are the same.

    Args:
        taken: the answer of a generation, None where it has none.
        reference: the answer of a reference, None where it has none.
        quickly_same: (answer, reference) → the verdict, None where only `same` can say.
        same: (answer, reference) → the verdict. Needs sympy and has no limits.
        bucket: a word that answers share wherever `same` holds. Needs sympy and has no limits.
        quick_bucket: the same word where it needs no sympy, else None.
        is_minerva: the verdict is that of Minerva's rule, and stands in the column of that name.
        math_verify: whether math-verify judges such generations too.
    """

    name: str
    taken: Callable[[str], str | None]
    reference: Callable[[str], str | None]
    quickly_same: Callable[[str, str], bool | None]
    same: Callable[[str, str], bool]
    bucket: Callable[[str], str]
    quick_bucket: Callable[[str], str | None]
    is_minerva: bool
    math_verify: bool

    def gold(self, reference: str) -> str:
        """The reference as math-verify gets it: a solution with its box as it is, else the answer alone."""
        if self.is_minerva and "\\boxed" in reference:
            return reference
        answer = self.reference(reference) or reference
        return answer if answer.startswith(("$", "\\[")) else f"${answer}$"


PHRASE = "Final Answer: The final answer is"


def _math_taken(generation: str) -> str | None:
    answer = extraction.after_phrase(generation, PHRASE)
    return None if answer is None else minerva.normal_form(answer) or None


def _math_reference(text: str) -> str | None:
    boxed = extraction.last_boxed(text)
    answer = text.strip() if boxed is None else boxed
    if len(answer) > extraction.LONGEST_ANSWER_CHARACTERS:
        return None
    return minerva.normal_form(answer) or None


def _equal(first: str, second: str) -> bool:
    return first == second


def _itself(answer: str) -> str:
    return answer


MATH = AnswerRule(
    "math",
    _math_taken,
    _math_reference,
    minerva.quickly_same,
    minerva.same_expression,
    minerva.bucket,
    minerva.quick_bucket,
    True,
    True,
)
OCW = AnswerRule(
    "ocw", ocw.taken, ocw.reference, ocw.quickly_same, ocw.same, ocw.bucket, ocw.quick_bucket, True, True
)
GSM8K = AnswerRule("gsm8k", gsm8k.taken, gsm8k.reference, _equal, _equal, _itself, _itself, False, True)
MULTIPLE_CHOICE = AnswerRule(
    "multiple_choice",
    multiple_choice.taken,
    multiple_choice.reference,
    _equal,
    _equal,
    _itself,
    _itself,
    False,
    False,
)
RULES = {rule.name: rule for rule in (MATH, OCW, GSM8K, MULTIPLE_CHOICE)}
