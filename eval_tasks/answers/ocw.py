# SPDX-License-Identifier: Apache-2.0
"""OCWCourses (arXiv:2206.14858, appendix D): numbers within 1%, equations, expressions, as the reference.

The released evaluation never accepted zero and negative numbers, refused 5.02 for 5.0 although that is
within 1%, and found every equation invalid. Here they are judged as the paper says, so that scores are a
little higher than published ones on the same generations. Units are taken off by the published list, not by
a unit system.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

from eval_tasks.answers import extraction, minerva

PHRASE = "Final answer: The final answer is"
TOLERANCE = 0.01  # of the mean of both sizes; appendix D
# In the published order: a longer unit that holds a shorter one does not always come first.
_UNITS = (
    "eV", " \\mathrm{~kg} \\cdot \\mathrm{m} / \\mathrm{s}", " kg m/s", "kg*m/s", "kg", "m/s", "m / s",
    "m s^{-1}", "\\text{ m/s}", " \\mathrm{m/s}", " \\text{ m/s}", "g/mole", "g/mol", "\\mathrm{~g}",
    "\\mathrm{~g} / \\mathrm{mol}", "W", "erg/s", "years", "year", "cm",
    "\\mathrm{m}", "\\mathrm{~m}", "\\mathrm{s}", "\\mathrm{~s}", "\\mathrm{cm}", "\\mathrm{~cm}",
)  # fmt: skip
# Nothing else that Python takes for numbers: 1_000, 0x10, True.
_ARITHMETIC = re.compile(r"[0-9.eE+\-*/()\s]+")
_OPERATIONS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow, ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


def taken(generation: str) -> str | None:
    """What follows the phrase, as it stands; the reference's kind decides how it is read."""
    return extraction.after_phrase(generation, PHRASE)


def reference(text: str) -> str | None:
    """The last box of a solution, or the whole text."""
    boxed = extraction.last_boxed(text)
    answer = (text if boxed is None else boxed).strip()
    return answer if 0 < len(answer) <= extraction.LONGEST_ANSWER_CHARACTERS else None


def quickly_same(answer: str, reference: str) -> bool | None:
    """The verdict where both are plain numbers, or the same text; None where sympy must see them."""
    if answer == reference:
        return True
    first, second = _plain(answer), _plain(reference)
    return None if first is None or second is None else close(first, second)


def same(answer: str, reference: str) -> bool:
    """Whether an answer is right; `reference` says what kind of thing is asked for."""
    wanted = _plain(reference)
    if wanted is not None:
        given = measured(answer)
        return given is not None and close(given, wanted)
    if "=" in reference:
        return same_equation(answer, reference)
    first, second = minerva.normal_form(answer), minerva.normal_form(reference)
    quick = minerva.quickly_same(first, second)
    return minerva.same_expression(first, second) if quick is None else quick


def bucket(answer: str) -> str:
    """A word that two answers share wherever `same` holds; all numbers share one, as 1% has no steps."""
    if measured(answer) is not None:
        return "number"
    return "equation" if "=" in answer else minerva.bucket(minerva.normal_form(answer))


def quick_bucket(answer: str) -> str | None:
    """The bucket of a plain number; None for all else."""
    return None if _plain(answer) is None else "number"


def close(first: float, second: float) -> bool:
    """Whether two numbers differ by less than 1% of the mean of their sizes; zero is close to zero alone."""
    return first == second or abs(first - second) < TOLERANCE * (abs(first) + abs(second)) / 2


def measured(answer: str) -> float | None:
    """The value of an answer, also where its unit is a word that Minerva's normal form leaves out."""
    value = number(answer)
    return number(minerva.normal_form(answer)) if value is None else value


def number(answer: str) -> float | None:
    """The value of an answer without its unit; None where it has none, or one that is not finite."""
    for unit in _UNITS:
        answer = answer.replace(unit, "").strip()
    answer = answer.strip("$").strip()
    value = _plain(answer)
    if value is not None:
        return value
    try:
        if not _ARITHMETIC.fullmatch(answer):
            raise ValueError("no arithmetic")
        value = _arithmetic(ast.parse(answer, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, TypeError):
        expression = minerva.parsed(answer)
        if expression is None or not getattr(expression, "is_number", False):
            return None
        try:
            value = float(expression)
        except (TypeError, ValueError, OverflowError):
            return None
    return value if math.isfinite(value) else None


def same_equation(first: str, second: str) -> bool:
    """Whether both are equations, and one says the same as the other, or has its sides exchanged."""
    one, other = _sides(first), _sides(second)
    if one is None or other is None:
        return False
    difference = other[0] - other[1]
    return minerva.differ_by_nothing(one[0] - one[1], difference) or minerva.differ_by_nothing(
        one[1] - one[0], difference
    )


def _sides(text: str) -> tuple[Any, Any] | None:
    import sympy

    text = text.removeprefix("\\[").removesuffix("\\]").replace("\\left(", "(").replace("\\right)", ")")
    equation = minerva.parsed(text.replace("\\\\", "\\").strip().strip("$"))
    if not isinstance(equation, sympy.Equality) or not all(
        isinstance(side, sympy.Expr) for side in equation.args
    ):
        return None
    return equation.lhs, equation.rhs


def _plain(text: str) -> float | None:
    """A finite number as `4.5e33`, `-3`."""
    return extraction.plain_number(text)


def _arithmetic(node: ast.expr) -> float:
    """`1.7*10**5` without running anything: numbers, signs and + - * / ** of floats."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_arithmetic(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        value = _OPERATIONS[type(node.op)](_arithmetic(node.left), _arithmetic(node.right))
        if isinstance(value, float):
            return value
    raise ValueError("no arithmetic")
