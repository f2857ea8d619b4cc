# SPDX-License-Identifier: Apache-2.0
"""OCWCourses (Lewkowycz et al. 2022): undergraduate science of MIT's OpenCourseWare, Minerva's prompt."""

from __future__ import annotations

from typing import Any

from eval_tasks.prompts import prompt
from eval_tasks.tasks import documents as common


def documents(rows: Any) -> Any:
    """Rows with `problem`, `solution` and, where the data set has it apart, `answer`."""
    return common.documents(rows, _read)


def _read(row: common.Row) -> common.Document:
    problem = common.text_of(row, "problem", "question")
    extra = {"answer": row["answer"]} if isinstance(row.get("answer"), str) else {}
    return common.document(row, problem, common.text_of(row, "reference", "solution", "answer"), **extra)


def few_shot_prompt(doc: common.Document) -> str:
    """Minerva's prompt, with the problem at its end."""
    return f"{prompt('minerva_ocwcourses_4_shot').text}\n\nProblem:\n{doc['problem']}\nSolution:"
