# SPDX-License-Identifier: Apache-2.0
"""Multiple choice with reasoning: the 18 STEM subjects of MMLU, and the SAT's mathematics of May 2023.

Both stand behind Minerva's four examples; the reference is a letter in parentheses.
"""

from __future__ import annotations

from typing import Any

from eval_tasks.prompts import prompt
from eval_tasks.tasks import documents as common

LETTERS = "ABCD"
# The wording ("What of") is Minerva's.
QUESTION = "What of the following is the right choice? Explain your answer."


def mmlu_documents(rows: Any) -> Any:
    """Rows with `question`, `choices` (four) and `answer` (0 to 3, or A to D), or whole `problem`s."""
    return common.documents(rows, _read_mmlu)


def sat_documents(rows: Any) -> Any:
    """Rows with `Question`, `Possible Answers` (one text) and `Answer` (A to D), or whole `problem`s."""
    return common.documents(rows, _read_sat)


def _read_mmlu(row: common.Row) -> common.Document:
    choices = row.get("choices")
    if choices is None or QUESTION in str(row.get("problem")):
        return _whole(row)
    if not isinstance(choices, (list, tuple)) or len(choices) != len(LETTERS):
        raise common.FieldError.of(row, "choices", ("choices",), f"a list of {len(LETTERS)}")
    listed = ", ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
    problem = f"{common.text_of(row, 'problem', 'question')}\n{QUESTION}\n{listed}"
    return common.document(row, problem, _letter(row), choices=list(choices))


def _read_sat(row: common.Row) -> common.Document:
    if not {"choices", "Possible Answers"} & row.keys():
        return _whole(row)
    choices = common.text_of(row, "choices", "Possible Answers")
    problem = f"{common.text_of(row, 'problem', 'Question')}\n{QUESTION}\n{choices}"
    return common.document(row, problem, _letter(row))


def _whole(row: common.Row) -> common.Document:
    """A problem that has its choices in its text."""
    problem = common.text_of(row, "problem")
    if QUESTION not in problem:
        raise common.FieldError.of(row, "choices", ("choices", "Possible Answers"), "a list of choices")
    return common.document(row, problem, _letter(row))


def _letter(row: common.Row) -> str:
    names = ("reference", "answer", "Answer")
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(LETTERS):
            return f"({LETTERS[value]})"
        if isinstance(value, str) and value.strip().strip("()") in tuple(LETTERS):
            return f"({value.strip().strip('()')})"
        break  # another one is not taken in its place
    raise common.FieldError.of(row, "reference", names, "0 to 3 or A to D")


def few_shot_prompt(doc: common.Document) -> str:
    """Minerva's prompt, with the problem and its choices at the end."""
    return f"{prompt('minerva_multiple_choice_4_shot').text}\n\nProblem:\n{doc['problem']}\nSolution:"
