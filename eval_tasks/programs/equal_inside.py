# SPDX-License-Identifier: Apache-2.0
"""Whether a program's answer equals a reference in LaTeX, asked of sympy inside the sandbox.

The answer is text of a model. sympy's own reader of Python text (`sympify`) would execute it, and with it an
answer could declare itself right; so it is read here by a grammar of its own: numbers, names, arithmetic,
and the functions of sympy listed below. What this reader does not know is equal to nothing.

Run in a sandbox as the program, with `comparison.json` beside it: {"answer": text, "reference": LaTeX}.
`verdict` holds the result: whether the two are equal, None where one of them cannot be read.
"""

from __future__ import annotations

import ast
import json
import os
from typing import Any

# Functions that occur in sympy's own printing of expressions.
FUNCTIONS = (
    "sqrt", "cbrt", "root", "exp", "log", "Abs", "sign", "floor", "ceiling", "factorial", "binomial", "gamma",
    "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc", "atan2",
    "sinh", "cosh", "tanh", "coth", "asinh", "acosh", "atanh", "re", "im", "arg", "conjugate", "Max", "Min",
    "Mod", "Rational", "Integer", "Float", "Eq", "Ne",
)  # fmt: skip
CONSTANTS = ("pi", "E", "I", "oo", "zoo", "nan", "GoldenRatio", "EulerGamma")
_OPERATORS = {
    ast.Add: "__add__", ast.Sub: "__sub__", ast.Mult: "__mul__", ast.Div: "__truediv__", ast.Pow: "__pow__",
    ast.Mod: "__mod__",
}  # fmt: skip
# A power whose exponent has more digits is not formed.
_LARGEST_EXPONENT = 10_000


class Unreadable(ValueError):
    """The text is no expression of the grammar."""


def expression(text: str) -> Any:
    """A sympy expression from Python text.

    Raises:
        Unreadable: the text is not of the grammar.
    """
    try:
        return _node(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, TypeError, AttributeError) as error:
        raise Unreadable(str(error)) from None


def _node(node: ast.AST) -> Any:
    import sympy

    if isinstance(node, ast.Constant) and type(node.value) in (int, float, complex):
        return sympy.sympify(node.value)
    if isinstance(node, ast.Name):
        return getattr(sympy, node.id) if node.id in CONSTANTS else sympy.Symbol(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        operand = _node(node.operand)
        return -operand if isinstance(node.op, ast.USub) else operand
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _node(node.left), _node(node.right)
        if isinstance(node.op, ast.Pow) and right.is_Number and abs(right) > _LARGEST_EXPONENT:
            raise Unreadable("a power too large")
        return getattr(left, _OPERATORS[type(node.op)])(right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
        if node.keywords:
            raise Unreadable("a named argument")
        return getattr(sympy, node.func.id)(*map(_node, node.args))
    if isinstance(node, ast.Tuple):
        return sympy.Tuple(*map(_node, node.elts))
    raise Unreadable(type(node).__name__)


def number(value: Any) -> float | None:
    """The value of a real number; None for what is none."""
    try:
        if value.free_symbols or not value.is_real:
            return None
        return float(value)
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None


def close(first: float, second: float) -> bool:
    """numpy's `isclose` in either direction, with its tolerances of 1e-5 and 1e-8, as the released scorer
    has it."""
    difference = abs(first - second)
    return difference <= 1e-8 + 1e-5 * max(abs(first), abs(second))


def equal(answer: Any, reference: Any) -> bool:
    """Close as numbers, or their difference simplified is zero."""
    import sympy

    first, second = number(answer), number(reference)
    if first is not None and second is not None:
        return close(first, second)
    if (first is None) != (second is None):
        return False
    try:
        return bool(sympy.simplify(answer - reference) == 0)
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        return bool(answer == reference)  # relations and tuples have no difference


def compared(answer: str, reference: str) -> bool | None:
    """Whether they are equal; None where one cannot be read."""
    from sympy.parsing.latex import parse_latex

    try:
        first = expression(answer)
    except Unreadable:
        return None
    try:
        second = with_constants(parse_latex(reference), first)
    except Exception:  # the parser and the functions it calls raise what they like
        return None
    return equal(first, second)


def with_constants(reference: Any, answer: Any) -> Any:
    """The reference with pi, and i where the answer has no variable of that name, as the constants they are.

    sympy's reader of LaTeX makes variables of them, which a program's `pi` and `I` would never equal.
    """
    import sympy

    constants = {sympy.Symbol("pi"): sympy.pi}
    if sympy.Symbol("i") not in answer.free_symbols:
        constants[sympy.Symbol("i")] = sympy.I
    return reference.subs(constants)


if __name__ == "__main__" and os.path.exists("/program/comparison.json"):
    with open("/program/comparison.json", encoding="utf-8") as file:
        question = json.load(file)
    verdict = compared(question["answer"], question["reference"])
