# SPDX-License-Identifier: Apache-2.0
"""Answer rules: hand-made cases, sympy against what is decided without it, and the verdicts recorded for real
generations."""

from __future__ import annotations

import html
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_tasks.answers import extraction, gsm8k, minerva, multiple_choice, ocw
from eval_tasks.answers.rules import GSM8K, MULTIPLE_CHOICE, OCW, AnswerRule
from eval_tasks.answers.verdicts import judged
from eval_tasks.answers.workers import Graders
from eval_tasks.results.samples import Sample
from tests.eval_tasks.shared_data import shared_rows


@pytest.fixture(scope="module")
def graders() -> Iterator[Graders]:
    with Graders(1) as pool:
        yield pool


# ---- where the answer stands


@pytest.mark.parametrize(("generation", "answer"), [
    ("So.\nFinal Answer: The final answer is $4$. I hope it is correct.", "$4$"),
    ("Final Answer: The final answer is $4$. ", "$4$"),
    ("Final Answer: The final answer is $4$.", "$4$"),
    ("Final Answer: The final answer is $4$", "$4$"),
    ("Final Answer: The final answer is $0.5$.\nProblem: next", "$0.5$"),
    ("Final Answer: The final answer is 1. Final Answer: The final answer is 2.",
     "1. Final Answer: The final answer is 2"),
    ("The final answer is 4.", None),
    ("Final Answer: The final answer is .", None),
    ("Final Answer: The final answer is " + "9" * 1_000_000, None),
    ("", None),
])  # fmt: skip
def test_the_answer_is_what_follows_the_phrase(generation: str, answer: str | None) -> None:
    assert extraction.after_phrase(generation, "Final Answer: The final answer is") == answer


@pytest.mark.parametrize(("solution", "answer"), [
    (r"so $\boxed{\frac{1}{2}}$ and \boxed{3}.", "3"),
    (r"$\boxed{\frac{1}{\sqrt{2}}}$", r"\frac{1}{\sqrt{2}}"),
    (r"$\fbox{7}$", "7"), (r"$\boxed 5$.", "5"), (r"\boxed{4", None), ("none", None), (r"\boxed", None),
    (r"\boxed{" + "{" * 100_000, None),
])  # fmt: skip
def test_the_last_box(solution: str, answer: str | None) -> None:
    assert extraction.last_boxed(solution) == answer


# ---- Minerva's normal form, of the cases its listing names


@pytest.mark.parametrize(("answer", "form"), [
    (r"\frac12", r"\frac{1}{2}"), (r"\frac{abc}{bef}", r"\frac{abc}{bef}"), (r"\fracabc", r"\frac{a}{b}c"),
    (r"\sqrta", r"\sqrt{a}"), (r"\sqrtab", r"\sqrt{a}b"), ("100,000", "100000"), ("x = 5", "5"),
    (r"$\$5.00$", "5.00"), (r"$90^\circ$", "90"), (r"\text{east}", "east"), (r"\boxed{7}", "7"),
    ("12 square units", "12"), (r"the answer is $3$ cm", "3"), ("", ""),
])  # fmt: skip
def test_normal_form(answer: str, form: str) -> None:
    assert minerva.normal_form(answer) == form


numbers = st.one_of(
    st.integers(-999_999, 999_999).map(str),
    st.integers(-999, 999).map(lambda number: f"0{number}" if number >= 0 else str(number)),
    st.tuples(st.sampled_from(["", "-"]), st.integers(0, 9999), st.integers(0, 9999)).map(
        lambda parts: f"{parts[0]}{parts[1]}.{parts[2]}"
    ),
    st.tuples(st.sampled_from(["", "-"]), st.integers(-99, 99), st.integers(1, 60)).map(
        lambda parts: f"{parts[0]}\\frac{{{parts[1]}}}{{{parts[2]}}}"
    ),
    st.sampled_from(
        ["0.5", r"\frac{1}{2}", r"\frac{-1}{-2}", r"-\frac{-1}{2}", "0.25", r"\frac{1}{4}", ".5"]
    ),
)


@settings(max_examples=40)
@given(numbers, numbers)
def test_what_is_decided_without_sympy_is_what_sympy_says(first: str, second: str) -> None:
    quick = minerva.quickly_same(first, second)
    assert quick is None or quick == (first == second or minerva.same_expression(first, second))
    for one in (first, second):
        assert minerva.quick_bucket(one) in (None, minerva.bucket(one))
    if minerva.same_expression(first, second):
        assert minerva.bucket(first) == minerva.bucket(second)


def test_short_numbers_need_no_sympy() -> None:
    assert minerva.exact_number(r"-\frac{3}{6}") == Fraction(-1, 2)
    assert minerva.exact_number("1.50") == Fraction(3, 2)
    for open_one in (r"\frac{1}{0}", "1/2", "12345678", "x", "1.", "", r"\frac{1.5}{2}"):
        assert minerva.exact_number(open_one) is None


@pytest.mark.parametrize(("first", "second", "same"), [
    ("x+1", "1+x", True), (r"\sqrt{8}", r"2\sqrt{2}", True), ("x^2", "x^3", False),
    ("(x+1)^2", "x^2+2x+1", True),
    (r"\frac{x}{2}", "0.5x", True), (r"\pi", "3.14", False), ("[2,5)", "[2,5]", False), (r"\{", "x", False),
    (r"\sin^2(x)+\cos^2(x)", "1", True), ("a<b", "a<b+1", False),
])  # fmt: skip
def test_sympy_decides_the_rest(first: str, second: str, same: bool) -> None:
    assert minerva.same_expression(first, second) == same
    if same:
        assert minerva.bucket(first) == minerva.bucket(second)


# ---- GSM8k, multiple choice


@pytest.mark.parametrize(("generation", "answer"), [
    ("… The answer is 72.", "72"),
    ("The answer is $1,200.00.", "1200"), ("The answer is -5 degrees", "-5"),
    ("The answer is 0.50", "0.5"), ("The answer is ten", None), ("no phrase 5", None),
    ("", None), ("so\n#### 18", "18"),
    ("A: 90,000", "90000"), ("The answer is 007", "7"), ("The answer is -0", "0"),
    ("The answer is 5. The answer is 6.", "5"), ("The answer is .50", "0.5"),
    ("The answer is " + " " * 10**6, None),
    ("The answer is -$5.", "-5"), ("The answer is \u22125", "-5"),
    ("The answer is \u2212\\$1,200.50", "-1200.5"),
    ("The answer is $-5", "-5"), ("The answer is - 5", "5"), ("The answer is \u0665", None),
])  # fmt: skip
def test_gsm8k(generation: str, answer: str | None) -> None:
    assert gsm8k.taken(generation) == answer


def test_references_of_gsm8k() -> None:
    assert gsm8k.reference("He has <<1+1=2>>2.\n#### 1,002") == "1002"
    assert gsm8k.reference("18") == "18"
    assert gsm8k.reference("no number") is None


@pytest.mark.parametrize(("generation", "answer"), [
    ("Final Answer: The final answer is (C). I hope it is correct.", "(C)"),
    ("Final Answer: The final answer is (A)", "(A)"), ("Final Answer: The final answer is (E).", None),
    ("Final Answer: The final answer is C.", None), ("(B)", None),
])  # fmt: skip
def test_multiple_choice(generation: str, answer: str | None) -> None:
    assert multiple_choice.taken(generation) == answer
    assert [multiple_choice.reference(text) for text in ("(B)", "B", "b", "5")] == ["(B)", "(B)", None, None]


# ---- OCWCourses; the first rows are what the released code gets wrong


@pytest.mark.parametrize(("answer", "reference", "same"), [
    ("0", "0", True), ("0.0", "0", True), ("0.001", "0", False), ("-2", "-2.0", True),
    ("-2.01", "-2.0", True),
    ("2", "-2", False), ("5.02", "5.0", True), ("5.06", "5.0", False),
    ("0.995", "1", True), ("0.98", "1", False),
    ("x=y+1", "x=1+y", True), ("y+1=x", "x=1+y", True), ("x=y+2", "x=1+y", False), ("y+1", "x=1+y", False),
    (r"$y=2x$", r"\[y = 2 x\]", True), ("2x", "y=2x", False),
    (r"\frac{1}{s+a}", r"\frac{1}{a+s}", True), (r"$\frac{c}{\sqrt{2}}$", r"\frac{1}{\sqrt{2}}c", True),
    ("1.54 eV", "1.55", True), ("41.8 degrees", "41.8", True), (r"3 \times 10^{8} m/s", "3e8", True),
    ("1.7*10**5", "170000", True), ("__import__('os').getpid()", "1", False), ("9**9**9**9", "5", False),
    ("1e999", "1e999", True), ("1e999", "5", False), ("inf", "5", False), ("nan", "5", False),
    ("1.67e-24", "1.66e-24", True), ("1.67e-24", "0", False), ("five", "5", False), ("", "5", False),
    ("1_000", "1000", False), ("\u0661\u0662", "12", False), ("0x10", "16", False), ("True", "1", False),
    (" 5. ", "5", True), ("+.5", "0.5", True), ("(1+2)*3", "9", True),
])  # fmt: skip
def test_ocw(answer: str, reference: str, same: bool) -> None:
    quick = ocw.quickly_same(answer, reference)
    assert (ocw.same(answer, reference) if quick is None else quick) == same
    if same and "=" not in reference:
        assert ocw.bucket(answer) == ocw.bucket(reference)
    assert ocw.quick_bucket(answer) in (None, ocw.bucket(answer))


# ---- as recorded for real generations


def verdicts_of(name: str, rule: AnswerRule, graders: Graders) -> list[tuple[dict[str, object], bool]]:
    rows = shared_rows(name)
    samples = [
        Sample("t", str(at), 0, row["problem"], html.unescape(row["reference"]),
               generation=html.unescape(row["generation"]))
        for at, row in enumerate(rows)
    ]  # fmt: skip
    verdicts = judged(samples, rule, graders)
    return [(row, verdict.correct) for row, verdict in zip(rows, verdicts, strict=True)]


@pytest.mark.parametrize(("name", "rule", "count"), [
    ("gsm8k_llemma34b_samples", GSM8K, 50),
    ("mmlu_llemma34b_samples", MULTIPLE_CHOICE, 50),
    ("sat_llemma34b_samples", MULTIPLE_CHOICE, 14),
])  # fmt: skip
def test_verdicts_are_as_recorded(name: str, rule: AnswerRule, count: int, graders: Graders) -> None:
    verdicts = verdicts_of(name, rule, graders)
    assert len(verdicts) == count
    assert [row["problem"] for row, correct in verdicts if correct != row["correct"]] == []


def test_verdicts_on_model_solutions_of_gsm8k_are_as_recorded() -> None:
    rows = shared_rows("gsm8k_openai_model_solutions")
    assert len(rows) == 2_638
    for row in rows:
        wanted = gsm8k.reference(row["reference"])
        assert wanted is not None
        assert (gsm8k.taken(row["generation"]) == wanted) == row["correct"]


def test_verdicts_on_ocw_are_as_recorded_but_within_one_percent(graders: Graders) -> None:
    """The record is of the released code, which refuses numbers that are not equal to 1e-5."""
    differing = [
        (row, correct) for row, correct in verdicts_of("ocw_courses_llemma34b_samples", OCW, graders)
        if correct != row["correct"]
    ]  # fmt: skip
    assert len(differing) == 3
    for row, correct in differing:
        answer, wanted = ocw.taken(str(row["generation"])), ocw.reference(str(row["reference"]))
        assert correct
        assert answer is not None
        assert wanted is not None
        given, reference = ocw.measured(answer), ocw.measured(wanted)
        assert given is not None
        assert reference is not None
        assert given == pytest.approx(reference, rel=0.01)
        assert given != pytest.approx(reference, rel=1e-5)
