# SPDX-License-Identifier: Apache-2.0
"""Verdicts on programs: the recorded ones, the paper's rules, answers that try to call themselves right."""

from __future__ import annotations

import json
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_tasks.answers.rules import MATH
from eval_tasks.programs.equal_inside import Unreadable, close, compared, equal, expression, with_constants
from eval_tasks.programs.pool import in_parallel
from eval_tasks.programs.sandbox import Limits, Sandbox, open_sandbox
from eval_tasks.programs.verdicts import (
    GSM8K_PYTHON,
    MATH_PYTHON,
    PRINTED,
    described,
    gsm8k_program,
    judged,
    math_program,
    verdicts,
)
from eval_tasks.results.samples import Sample
from tests.eval_tasks.programs.boxes import sandbox_or_skip
from tests.eval_tasks.shared_data import shared_rows

sympy = pytest.importorskip("sympy", reason="needs requirements/requirements-eval.txt")


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return sandbox_or_skip(Limits(cpu_seconds=60))


def math_generation(body: str, imports: str = "") -> str:
    """As a model goes on after the prompt's last fence."""
    return f"\n{body}\n```\nThe imports required for this program are\n```\n{imports}\n```\nI hope"


def test_every_recorded_verdict_is_found_again(box: Sandbox) -> None:
    rows = shared_rows("multiarith_python_1b_samples")
    found = in_parallel(
        lambda row: judged(box, PRINTED, row["metadata"]["program"], row["output_answer"]), rows, 2
    )
    agreeing = [verdict.correct == row["exact_match"] for verdict, row in zip(found, rows, strict=True)]
    assert (sum(agreeing), len(agreeing)) == (435, 435)


@pytest.mark.parametrize(
    ("generation", "reference", "answer", "correct"),
    [
        ("\n\n\ndef solution():\n    return 18\n\n\n\n\n\nQ: Next?\n", "<<9*2=18>>18\n#### 18", "18", True),
        ("\n\n\ndef solution():\n    return 18.0", "#### 18", "18", True),
        ("def solution():\n    return 1200", "#### 1,200", "1200", True),
        ("def solution():\n    return 18.5", "#### 18", "18.5", False),
        ("def solution():\n    print('so')\n    return 18", "#### 18", None, False),
        ("def solution():\n    return 'eighteen'", "#### 18", None, False),
        ("def solution():\n    return float('nan')", "#### 18", None, False),
        ("def solution():\n    return '1_8'", "#### 18", None, False),
        ("def solution():\n    return '\u0661\u0668'", "#### 18", None, False),
        ("def solution():\n    return -18.0", "#### -$18", "-18", True),
        ("def answer():\n    return 18", "#### 18", None, False),
        ("def solution(:", "#### 18", None, False),
        ("Q: another", "#### 18", None, False),
    ],
)  # fmt: skip
def test_gsm8k(box: Sandbox, generation: str, reference: str, answer: str | None, correct: bool) -> None:
    found = judged(box, GSM8K_PYTHON, generation, reference)
    assert (found.answer, found.correct) == (answer, correct)
    assert found.program is not None
    assert set(found.program) == {"code", "output", "error"}


@pytest.mark.parametrize(
    ("body", "reference", "correct"),
    [
        ("answer = 1/2", "\\frac12", True),
        ("answer = Rational(1, 3)", "\\frac{1}{2}", False),  # the released scorer cuts both to 0
        ("answer = 2.9", "2", False),
        ("answer = sqrt(8)", "so it is $\\boxed{2\\sqrt{2}}$.", True),
        ("x = symbols('x', positive=True)\nanswer = sqrt(x**2) * sqrt(8)", "2\\sqrt{2}x", True),
        ("answer = [2]", "2", False),  # as released: a list is no number
        ("answer = 3\nraise ValueError", "3", True),  # as released: the value before the exception counts
        ("pass", "3", False),
        ("answer = 10**100000", "3", False),
        ("answer = float('inf')", "3", False),
        ("answer = True", "1", True),
        ("import numpy\nanswer = numpy.int64(7)", "7", True),
        ("class A:\n    def __str__(self): raise ValueError\nanswer = A()", "7", False),
        # beyond Python's floats
        ("answer = 10**400", "5", False),
        ("answer = 10**400", "0", False),
        ("answer = -10**400", "-\\frac{3}{7}", False),
        ("answer = 10**400", "\\sqrt{2}", False),
        ("answer = 2**2005", "2^{2005}", True),
        ("answer = 2**2004", "2^{2005}", False),
        # e, and i behind a command
        ("answer = exp(2)", "e^2", True),
        ("answer = float(E**2)", "e^2", True),
        ("answer = float(E**2)", "e^3", False),
        ("answer = 1/E", "\\frac{1}{e}", True),
        ("answer = pi*I", "\\pi i", True),
        ("answer = 2*sqrt(3) + pi*I", "2\\sqrt{3}+\\pi i", True),
        ("answer = 2*sqrt(3) - pi*I", "2\\sqrt{3}+\\pi i", False),
        ("e = symbols('e')\nanswer = e**2 + e", "e^2+e", True),
    ],
)
def test_math(box: Sandbox, body: str, reference: str, correct: bool) -> None:
    imports = "from sympy import *" if re.search("sqrt|symbols|Rational|I|E|exp", body) else ""
    assert judged(box, MATH_PYTHON, math_generation(body, imports), reference).correct is correct


@pytest.mark.parametrize(("answer", "correct"), [("sqrt(2)", True), ("sqrt(3)", False), ("10**400", False)])
def test_answers_are_compared_without_isolation_too(answer: str, correct: bool) -> None:
    unsafe = open_sandbox(Limits(cpu_seconds=60), unsafe=True)
    generation = math_generation(f"answer = {answer}", "from sympy import sqrt")
    assert judged(unsafe, MATH_PYTHON, generation, "\\sqrt{2}").correct is correct


def test_a_program_that_never_ends_has_no_answer() -> None:
    short = sandbox_or_skip(Limits(cpu_seconds=1))
    found = judged(short, MATH_PYTHON, math_generation("answer = 3\nwhile True: pass"), "3")
    assert (found.answer, found.correct) == (None, False)
    assert found.program is not None
    assert found.program["error"] == "ended by its limit: cpu"


def test_an_answer_cannot_declare_itself_right(box: Sandbox) -> None:
    forged = "class Forged(Symbol):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
    assert not judged(
        box, MATH_PYTHON, math_generation(forged + "answer = Forged('y')", "from sympy import *"), "x"
    ).correct
    text = "globals().__setitem__('verdict', True)"
    named = f"answer = Symbol({text!r})"
    assert not judged(box, MATH_PYTHON, math_generation(named, "from sympy import *"), "x").correct
    written = (
        'import os\nfor f in range(3, 60):\n    try: os.write(f, b\'{"kind": "number"}\')\n'
        "    except OSError: pass"
    )
    assert not judged(box, MATH_PYTHON, math_generation(written), "x").correct


def test_programs_of_generations() -> None:
    assert gsm8k_program("\n\n\ndef solution(): return 1\n\n\n\n\n\nQ: b") == (
        "def solution(): return 1\nprint(solution())"
    )
    assert math_program(math_generation("answer = 1", "import math")) == "import math\n\nanswer = 1"
    assert math_program("answer = 1\n```\nno imports") is None
    assert math_program("answer = 1") is None


def test_verdicts_come_in_the_order_of_the_samples(box: Sandbox) -> None:
    samples = [
        Sample(
            "llemma_gsm8k_python",
            f"item {n}",
            0,
            "",
            f"#### {n}",
            generation=f"def solution(): return {n % 2}",
        )
        for n in range(4)
    ]
    found = list(verdicts(box, GSM8K_PYTHON, samples, 2))
    assert [(verdict.item, verdict.correct) for verdict in found] == [
        ("item 0", True), ("item 1", True), ("item 2", False), ("item 3", False),
    ]  # fmt: skip
    assert found[2].answer == "0"
    assert found[2].minerva is None


@given(st.one_of(st.text(), st.integers().map(str), st.floats().map(repr)))
def test_whatever_a_sandbox_says_is_read(text: str) -> None:
    assert described(text)[0] in ("none", "number", "sympy", "other")
    kind, told = described(json.dumps({"kind": "number", "text": text}))
    assert (kind, isinstance(told, str)) == ("number", True)


@given(st.text(alphabet="x1290.+-*/()[]'_,=e ", max_size=40))
def test_the_reader_takes_expressions_only(text: str) -> None:
    try:
        value = expression(text)
    except (Unreadable, MemoryError):
        return
    assert isinstance(value, (sympy.Basic, bool))


@pytest.mark.parametrize(
    "text", ["x.free_symbols", "f(x)", "[1]", "'a'", "lambda: 1", "9**9**9", "__import__('os')", "x[0]"]
)
def test_the_reader_refuses_everything_else(text: str) -> None:
    with pytest.raises(Unreadable):
        expression(text)


@pytest.mark.parametrize(
    ("answer", "reference", "equals"),
    [
        ("x**2 + 2*x + 1", "(x+1)^2", True),
        ("x", "y", False),
        ("8*pi", "8\\pi", True),
        ("25.132741228718345", "8\\pi", True),
        ("3 + 4*I", "3+4i", True),
        ("3*i", "3i", True),
        ("2*pi*r*sin(x)", "2\\pir\\sinx", True),
        ("sinh(x)", "\\sinhx", True),
        ("a*cos(theta)", "a\\cdot\\cos\\theta", True),
        ("50", "50\\%", None),
        ("Eq(x, 2)", "x=2", True),
        ("[2]", "2", None),
        ("x", "x y (", None),
    ],
)
def test_equality_in_sympy(answer: str, reference: str, equals: bool | None) -> None:
    assert compared(answer, reference) in ((equals,) if equals else (False, None))


def test_references_of_math_are_equal_to_what_sympy_prints_of_them() -> None:
    latex = pytest.importorskip("sympy.parsing.latex")
    read = 0
    for row in shared_rows("math_test_recovered"):
        reference = MATH.reference(row["solution"])
        try:
            form = latex.parse_latex(reference)
        except Exception:  # not every reference is an expression
            continue
        answer = expression(str(form))
        assert equal(answer, with_constants(form, answer)), reference
        read += 1
    assert read > 300


@given(st.fractions(min_value=-1000, max_value=1000, max_denominator=50))
def test_the_reader_reads_what_sympy_prints(value: Fraction) -> None:
    x = sympy.Symbol("x")
    for form in (
        sympy.Rational(value),
        sympy.sqrt(x) * sympy.Rational(value) + sympy.pi,
        x ** sympy.Rational(value),
    ):
        assert expression(str(form)) == form


def test_closeness_is_that_of_numpy() -> None:
    import numpy

    for first, second in [(1, 1.00001), (1, 1.00002), (0, 1e-8), (0, 2e-8), (1e20, 1e20 + 1e14), (-3, 3)]:
        wanted = bool(numpy.isclose(first, second) or numpy.isclose(second, first))
        assert close(Fraction(first), Fraction(second)) == wanted
        assert close(sympy.Float(first, 30), sympy.Float(second, 30)) == wanted
