# SPDX-License-Identifier: Apache-2.0
"""GSM8k (Cobbe et al. 2021): the eight-shot chain of thought of Wei et al., and likelihood of the answers."""

from __future__ import annotations

from typing import Any

from eval_tasks.prompts import prompt
from eval_tasks.tasks import documents as common


def documents(rows: Any) -> Any:
    """Rows with `question` and `answer` (the reasoning, then `#### 72`)."""
    return common.documents(rows, _read)


def _read(row: common.Row) -> common.Document:
    problem = common.text_of(row, "problem", "question")
    return common.document(row, problem, common.text_of(row, "reference", "answer", "solution"))


def few_shot_prompt(doc: common.Document) -> str:
    """The prompt of Wei et al., with the question at its end."""
    return f"{prompt('wei_gsm8k_8_shot').text}\n\nQ: {doc['problem']}\nA:"


def zero_shot_prompt(doc: common.Document) -> str:
    """What the likelihood of an answer is conditioned on (gsm8k_ppl of Llemma's harness)."""
    return f"Question: {doc['problem']}\nAnswer:"


def answer(doc: common.Document) -> str:
    """The text whose likelihood is measured: the reference answer, after a blank."""
    return f" {doc['reference']}"
