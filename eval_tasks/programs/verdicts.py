# SPDX-License-Identifier: Apache-2.0
"""Verdicts on generations that are programs: GSM8k+Python and MATH+Python of Llemma's paper, and printed
answers.

The rules are those of Llemma's scorers (EleutherAI/lm-evaluation-harness, unsafe_score_python_gsm.py and
unsafe_score_sympy_math.py), but for one fault of theirs: they cut every number to an integer first, so that
1/2 equalled 1/3. docs/programs.md says what that means for comparing figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from eval_tasks.answers import gsm8k
from eval_tasks.answers.extraction import plain_number
from eval_tasks.answers.minerva import exact_number
from eval_tasks.answers.rules import MATH
from eval_tasks.programs.equal_inside import close
from eval_tasks.programs.pool import in_parallel
from eval_tasks.programs.sandbox import Outcome, Sandbox
from eval_tasks.results.samples import Sample, Verdict

# Where the next example would begin; released stop string of GSM8k+Python.
_NEXT_QUESTION = "Q:"
_FENCE = "```"
_IMPORTS = "The imports required for this program are"
_COMPARISON = Path(__file__).with_name("equal_inside.py")
# What a record keeps of a program's output.
_KEPT_CHARACTERS = 2_000


@dataclass(frozen=True)
class ProgramRule:
    """How a generation becomes a program, and what of it is the answer.

    Args:
        program: the program in a generation, None where there is none.
        variable: the global that holds the answer; None where the answer is what is printed.
    """

    name: str
    program: Callable[[str], str | None]
    variable: str | None


def gsm8k_program(generation: str) -> str | None:
    """PAL's form: the generation defines `solution()`, and what that returns is printed."""
    text = generation.split(_NEXT_QUESTION)[0].strip()
    return f"{text}\nprint(solution())" if text else None


def math_program(generation: str) -> str | None:
    """MATH+Python's form: the body up to the fence, then its imports in fences; the imports go first."""
    body, fence, rest = generation.partition(_FENCE)
    _, phrase, rest = rest.partition(_IMPORTS)
    if not fence or not phrase or not rest[:1].isspace() or not rest[1:].startswith(_FENCE):
        return None
    imports, closing, _ = rest[1 + len(_FENCE) :].partition(_FENCE)
    return f"{imports.strip()}\n\n{body.strip()}" if closing else None


def printed_program(generation: str) -> str | None:
    """The generation as it stands; the answer is what it prints."""
    return generation if generation.strip() else None


GSM8K_PYTHON = ProgramRule("gsm8k_python", gsm8k_program, None)
MATH_PYTHON = ProgramRule("math_python", math_program, "answer")
PRINTED = ProgramRule("printed", printed_program, None)
# The rule of a task, by the task's name without `llemma_` and what follows.
RULES = {rule.name: rule for rule in (GSM8K_PYTHON, MATH_PYTHON, PRINTED)}


@dataclass(frozen=True)
class Judged:
    """A program's answer and whether it is right; `program` is the record of the results folder."""

    answer: str | None
    correct: bool
    program: dict[str, Any] | None


def judged(sandbox: Sandbox, rule: ProgramRule, generation: str, reference: str) -> Judged:
    """Runs the program of one generation and compares its answer with the reference.

    Raises:
        IsolationError: the sandbox did not come up.
    """
    code = rule.program(generation)
    if code is None:
        return Judged(None, False, {"code": "", "output": "", "error": "the generation holds no program"})
    outcome = sandbox.run(code, rule.variable)
    record = {"code": code, "output": outcome.output[:_KEPT_CHARACTERS], "error": outcome.error}
    if rule.variable is None:
        value = _printed(outcome)
        wanted = plain_number(gsm8k.reference(reference) or "")
        correct = value is not None and wanted is not None and value == wanted
        return Judged(None if value is None else _shown(value), correct, record)
    kind, text = described(outcome.value)
    return Judged(text, _equal(sandbox, kind, text, reference), record)


def verdicts(
    sandbox: Sandbox, rule: ProgramRule, samples: Iterable[Sample], workers: int | None = None
) -> Iterator[Verdict]:
    """A verdict for each sample, in their order; `workers` programs run at a time."""

    def verdict(sample: Sample) -> Verdict:
        found = judged(sandbox, rule, sample.generation or "", sample.reference)
        return Verdict(sample.item, sample.sample, found.answer, None, None, found.correct, found.program)

    return in_parallel(verdict, samples, workers)


def described(value: str | None) -> tuple[str, str | None]:
    """Kind and text of what inside.py said of a variable; ("none", None) for everything unexpected."""
    try:
        fields = json.loads(value or "null")
    except (ValueError, RecursionError):
        return "none", None
    if not isinstance(fields, dict):
        return "none", None
    kind, text = fields.get("kind"), fields.get("text")
    if kind not in ("number", "sympy", "other") or not isinstance(text, str):
        return "none", None
    if kind == "number":
        exact = _exact(text)
        if exact is not None and exact.denominator == 1:
            text = str(exact.numerator)
    return str(kind), text


def _equal(sandbox: Sandbox, kind: str, text: str | None, reference: str) -> bool:
    """Close as numbers, or equal in sympy; lists and other objects equal nothing, as in the released
    scorer."""
    wanted = MATH.reference(reference)
    if text is None or wanted is None or kind not in ("number", "sympy"):
        return False
    exact, wanted_exact = _exact(text), exact_number(wanted)
    if kind == "number" and exact is None:
        return False  # infinite, or not a number
    if exact is not None and wanted_exact is not None:
        return close(exact, wanted_exact)
    question = json.dumps({"answer": text, "reference": wanted}).encode()
    program = _COMPARISON.read_text(encoding="utf-8")
    outcome = sandbox.run(program, "verdict", {"comparison.json": question})
    return described(outcome.value) == ("number", "1")


def _printed(outcome: Outcome) -> float | None:
    return plain_number(outcome.output) if outcome.end == "ok" else None


def _exact(text: str) -> Fraction | None:
    """A number as inside.py tells it; None for what is none, infinite, or absurdly long."""
    if len(text) > 4_000 or ("e" in text.lower() and len(text.lower().partition("e")[2]) > 4):
        return None
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None


def _shown(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
