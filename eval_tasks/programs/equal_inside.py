# SPDX-License-Identifier: Apache-2.0
"""Whether a program's answer equals a reference in LaTeX, asked of sympy inside the sandbox.

The answer is text of a model. sympy's own reader of Python text (`sympify`) would execute it, and with it an
answer could declare itself right; so it is read here by a grammar of its own: numbers, names, arithmetic,
and the functions of sympy listed below. What this reader does not know is equal to nothing.

Run in a sandbox as the program, with `comparison.json` in its folder: {"answer": text, "reference": LaTeX}.
`verdict` holds the result: whether the two are equal, None where one of them cannot be read.
"""

from __future__ import annotations

import ast
import json
import os
import re
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
# A power with a larger exponent is not formed.
_LARGEST_EXPONENT = 10_000
# Numbers are compared in so many digits.
_DIGITS = 30
# Commands of LaTeX that a letter may follow in a formula. Minerva's normal form takes out the blank between
# them, and sympy reads `\pii` as one name.
_COMMANDS = sorted((
    "pi", "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "kappa", "lambda", "mu", "nu",
    "xi", "rho", "sigma", "tau", "phi", "chi", "psi", "omega", "cdot", "cdots", "times", "div", "infty",
    "exp", "log", "lg", "ln", "sin", "cos", "tan", "csc", "sec", "cot", "arcsin", "arccos", "arctan",
    "arccsc", "arcsec", "arccot", "sinh", "cosh", "tanh", "arsinh", "arcosh", "artanh",
), key=len, reverse=True)  # fmt: skip
_GLUED = re.compile(rf"\\({'|'.join(_COMMANDS)})(?=[A-Za-z])")


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


def number(value: Any) -> Any:
    """The value of a finite real number as sympy's Float, which any exponent fits; None for what is none."""
    import sympy

    try:
        if value.free_symbols or not value.is_real:
            return None
        found = sympy.N(value, _DIGITS)
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None
    return found if found.is_Number and found.is_finite else None


def close(first: Any, second: Any) -> bool:
    """numpy's `isclose` in either direction, with its tolerances of 1e-5 and 1e-8, as the released scorer
    has it, of two fractions or two of sympy's numbers: Python's floats end at 1.8e308."""
    return bool(10**8 * abs(first - second) <= 1 + 1_000 * max(abs(first), abs(second)))


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
        second = with_constants(parse_latex(_GLUED.sub(r"\\\1 ", reference)), first)
    except Exception:  # the parser and the functions it calls raise what they like
        return None
    return equal(first, second)


def with_constants(reference: Any, answer: Any) -> Any:
    """The reference with pi, and e and i where the answer has no variable of that name, as constants.

    sympy's reader of LaTeX makes variables of them, which a program's `pi` and `I` would never equal.
    """
    import sympy

    constants = {sympy.Symbol("pi"): sympy.pi}
    for name, constant in (("e", sympy.E), ("i", sympy.I)):
        if sympy.Symbol(name) not in answer.free_symbols:
            constants[sympy.Symbol(name)] = constant
    return reference.subs(constants)


if __name__ == "__main__":
    with open(os.path.join(os.path.dirname(__file__), "comparison.json"), encoding="utf-8") as file:
        question = json.load(file)
    verdict = compared(question["answer"], question["reference"])
