# SPDX-License-Identifier: Apache-2.0
"""Minerva's rule for answers in LaTeX (arXiv:2206.14858, appendix D.1), by which Llemma was measured on MATH.

Answers are put into a normal form, and are the same where they are equal as strings, or where sympy says
so. The form is the published one, with its oddities (`ft` goes out of `\\left` too), because it acts on
both sides. `same_expression` may take for ever or much memory: call it in a worker that has limits
(`workers.py`).
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

# Listing 1 of the appendix, in its order.
SUBSTITUTIONS = (
    ("an ", ""), ("a ", ""), (".$", "$"), ("\\$", ""), (r"\ ", ""), (" ", ""), ("mbox", "text"),
    (",\\text{and}", ","), ("\\text{and}", ","), ("\\text{m}", "\\text{}"),
)  # fmt: skip
REMOVED_EXPRESSIONS = (
    "square", "ways", "integers", "dollars", "mph", "inches", "ft", "hours", "km", "units", "\\ldots", "sue",
    "points", "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters",
    "meals", "edges", "students",
    "childrentickets", "multiples", "\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2",
    "\\text{}^3", "\\text{\n}", "\\text{}", r"\mathrm{th}", r"^\circ", r"^{\circ}", r"\;", r",\!", "{,}", '"',
    "\\dots",
)  # fmt: skip
# Text in mathematics, bold, a bar, a box: what is in it stays.
_UNWRAPPED = (
    (r"(.*?)(\$)(.*?)(\$)(.*)", r"$\3$"), (r"(\\text\{)(.*?)(\})", r"\2"), (r"(\\textbf\{)(.*?)(\})", r"\2"),
    (r"(\\overline\{)(.*?)(\})", r"\2"), (r"(\\boxed\{)(.*)(\})", r"\2"),
)  # fmt: skip
# \frac12 and \sqrt2 get braces.
_SHORTHAND = ((r"(frac)([^{])(.)", r"frac{\2}{\3}"), (r"(sqrt)([^{])", r"sqrt{\2}"))
# Numbers up to these lengths are compared without sympy. A decimal of 8 digits and a fraction of two numbers
# below 10^6 differ by 1e-14 of their size at least, which the 53 bits of sympy's floats tell apart. All else
# is left to sympy, which reads neither 01 nor .5 as a number.
_WHOLE = "(?:0|[1-9][0-9]{0,5})"
_NUMBER = re.compile(
    rf"(?P<sign>-?)(?:(?P<whole>{_WHOLE})|(?P<decimal>(?:0|[1-9][0-9]{{0,3}})\.[0-9]{{1,4}})"
    rf"|\\[dt]?frac\{{(?P<minus>-?)(?P<top>{_WHOLE})\}}\{{(?P<bottom>{_WHOLE})\}})"
)


def normal_form(answer: str) -> str:
    """The answer as Minerva's listing has it, for instance `\\frac12` as `\\frac{1}{2}` and `x=5` as `5`."""
    answer = answer.split("=")[-1]
    for before, after in SUBSTITUTIONS:
        answer = answer.replace(before, after)
    for expression in REMOVED_EXPRESSIONS:
        answer = answer.replace(expression, "")
    for pattern, kept in (*_UNWRAPPED, *_SHORTHAND):
        answer = re.sub(pattern, kept, answer)
    answer = answer.replace("$", "")
    return answer.replace(",", "") if answer.replace(",", "").isdigit() else answer


def exact_number(answer: str) -> Fraction | None:
    """The value of a short whole number, decimal or fraction in normal form; None for everything else."""
    match = _NUMBER.fullmatch(answer)
    if match is None:
        return None
    if match["bottom"] is not None:
        if int(match["bottom"]) == 0:
            return None
        value = Fraction(int(match["minus"] + match["top"]), int(match["bottom"]))
    else:
        value = Fraction(match["whole"] or match["decimal"])
    return -value if match["sign"] else value


def quickly_same(first: str, second: str) -> bool | None:
    """Whether two normal forms are the same; None where only sympy can say."""
    if first == second:
        return True
    if not first or not second:
        return False
    one, other = exact_number(first), exact_number(second)
    return None if one is None or other is None else one == other


def parsed(answer: str) -> Any:
    """A normal form as a sympy expression; None where sympy cannot read it."""
    from sympy.parsing.latex import parse_latex

    try:
        return parse_latex(answer)
    except (MemoryError, TimeoutError):
        raise
    except Exception:  # the parser and the functions it calls raise what they like
        return None


def same_expression(first: str, second: str) -> bool:
    """Whether sympy finds the difference of two normal forms to be zero."""
    return differ_by_nothing(parsed(first), parsed(second))


def differ_by_nothing(first: Any, second: Any) -> bool:
    """Whether sympy finds the difference of two expressions to be zero."""
    import sympy

    if first is None or second is None:
        return False
    try:
        return bool(sympy.simplify(first - second) == 0)
    except (MemoryError, TimeoutError):
        raise
    except Exception:  # relations and tuples have no difference; simplify raises what it likes
        return False


def bucket(answer: str) -> str:
    """A word that two answers share wherever `same_expression` holds, so that few pairs need it.

    It is the value at a fixed point, to 8 digits. An answer that has none (no number, an equation, a set) has
    its own string: sympy calls such an answer equal to no other.
    """
    import sympy

    expression = parsed(answer)
    if not isinstance(expression, sympy.Expr):
        return f"text {answer}"
    names = sorted({symbol.name for symbol in expression.free_symbols})
    # Any point will do that no expression favours. A symbol's value depends on its name alone.
    at = {sympy.Symbol(name): sympy.Float(_place(name), 30) for name in names}
    try:
        value = complex(expression.evalf(30, subs=at))
    except (MemoryError, TimeoutError):
        raise
    except Exception:
        return "no value"
    return _value_word(value)


def quick_bucket(answer: str) -> str | None:
    """The bucket of a short number, for which sympy is not needed; None for all else."""
    value = exact_number(answer)
    return None if value is None else _value_word(complex(value))


def _value_word(value: complex) -> str:
    # Times pi, so that no round number lies where rounding changes.
    parts = [part * math.pi for part in (value.real, value.imag)]
    return " ".join(["value", *(f"{part:.8e}" if abs(part) > 1e-12 else "0" for part in parts)])


def _place(name: str) -> str:
    number = 0
    for character in name:
        number = (number * 131 + ord(character)) % 1_000_003
    return f"0.{number + 1_000_003}717"
