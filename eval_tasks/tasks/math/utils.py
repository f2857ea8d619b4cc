# SPDX-License-Identifier: Apache-2.0
"""MATH (Hendrycks et al. 2021): Minerva's four-shot prompt, and the likelihood of the reference solutions."""

from __future__ import annotations

from typing import Any

from eval_tasks.prompts import prompt
from eval_tasks.tasks import documents as common


def documents(rows: Any) -> Any:
    """Rows with `problem`, `solution`, `level` and `type`."""
    return common.documents(rows, _read)


def _read(row: common.Row) -> common.Document:
    problem = common.text_of(row, "problem", "question")
    return common.document(row, problem, common.text_of(row, "reference", "solution", "answer"))


def few_shot_prompt(doc: common.Document) -> str:
    """Minerva's prompt, with the problem at its end."""
    return f"{prompt('minerva_math_4_shot').text}\n\nProblem:\n{doc['problem']}\n\nSolution:"


def zero_shot_prompt(doc: common.Document) -> str:
    """What the likelihood of a solution is conditioned on (hendrycks_math_ppl of Llemma's harness)."""
    return f"Problem: {doc['problem']}\nAnswer:"


def solution(doc: common.Document) -> str:
    """The text whose likelihood is measured: the reference solution, after a blank."""
    return f" {doc['reference']}"
