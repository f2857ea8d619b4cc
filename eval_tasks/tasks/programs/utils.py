# SPDX-License-Identifier: Apache-2.0
"""GSM8k+Python (PAL's prompt) and MATH+Python (Llemma's prompt): the answer is what a program computes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from eval_tasks.programs.sandbox import Sandbox, open_sandbox
from eval_tasks.programs.verdicts import GSM8K_PYTHON, MATH_PYTHON, judged
from eval_tasks.prompts import prompt
from eval_tasks.tasks import documents as common

# lm_eval/tasks/sympy_math.py of Llemma's harness, after each problem.
MATH_INSTRUCTION = (
    "You are an expert programmer. Solve the above mathematical problem by writing a Python program. "
    "Express your answer as a numeric type or a SymPy object."
)


def gsm8k_documents(rows: Any) -> Any:
    """Rows with `question` and `answer` (the reasoning, then `#### 72`)."""
    return common.documents(rows, _read_gsm8k)


def _read_gsm8k(row: common.Row) -> common.Document:
    problem = common.text_of(row, "problem", "question")
    return common.document(row, problem, common.text_of(row, "reference", "answer", "solution"))


def math_documents(rows: Any) -> Any:
    """Rows with `problem`, `solution`, `level` and `type`."""
    return common.documents(rows, _read_math)


def _read_math(row: common.Row) -> common.Document:
    problem = common.text_of(row, "problem", "question")
    return common.document(row, problem, common.text_of(row, "reference", "solution", "answer"))


def gsm8k_prompt(doc: common.Document) -> str:
    """PAL's examples, with the question at their end as Llemma's harness has it."""
    return f"{prompt('pal_gsm8k_8_shot').text}\n\n\n\n\n\nQ: {doc['problem']}\n\n# solution in Python:"


def math_prompt(doc: common.Document) -> str:
    """Llemma's examples, with the problem at their end."""
    examples = prompt("llemma_math_python_5_shot").text
    return f"{examples}\n\nProblem:\n{doc['problem']}\n\n{MATH_INSTRUCTION}\n```"


def gsm8k_results(doc: common.Document, results: Sequence[str]) -> dict[str, float]:
    """For lm-eval's own command: whether what `solution()` returns is the reference."""
    return {"correct": float(judged(_sandbox(), GSM8K_PYTHON, results[0], doc["reference"]).correct)}


def math_results(doc: common.Document, results: Sequence[str]) -> dict[str, float]:
    """For lm-eval's own command: whether `answer` equals the reference."""
    return {"correct": float(judged(_sandbox(), MATH_PYTHON, results[0], doc["reference"]).correct)}


@functools.cache
def _sandbox() -> Sandbox:
    return open_sandbox()
