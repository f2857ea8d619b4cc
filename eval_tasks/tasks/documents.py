# SPDX-License-Identifier: Apache-2.0
"""Rows of a data set, from the hub or from a JSONL file, as documents that all tasks have in common.

A document has `problem` (all that stands in the prompt for it), `reference` (solution or answer, as the data
set has it), `level` (1 to 5, or None), `subject` (or None) and `extra` (JSON of further fields, or "").
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from megatron.neox_arguments.errors import UserError, shown

Row = Mapping[str, Any]
Document = dict[str, Any]


class FieldError(Exception):
    """A row has nothing that could be the field that is needed; the message says why."""

    def __init__(self, wanted: str, why: str) -> None:
        super().__init__(why)
        self.wanted = wanted

    @staticmethod
    def of(row: Row, wanted: str, names: Sequence[str], kind: str) -> FieldError:
        """`names` are where it was looked for, `kind` what it should have been."""
        for name in names:
            if name in row:
                return FieldError(wanted, f"{name}={shown(row[name])}: is not {kind}")
        return FieldError(
            wanted, f"has no {wanted}, looked for as {', '.join(names)}; it has {', '.join(row)}"
        )


class RowError(UserError):
    """A row of the data, counted from 1, lacks what the task needs. `told` says it with its place."""

    def __init__(self, row: int, error: FieldError) -> None:
        self.row, self.error = row, error
        super().__init__(self.told(f"row {row} of the data", "TASK"))

    def told(self, where: str, task: str) -> str:
        """The message; `task` is the name that options know the task by."""
        wanted = self.error.wanted
        return (
            f"{where}: {self.error}; repair it, or name another field with --data-field {task}.{wanted}=NAME"
        )


def text_of(row: Row, wanted: str, *names: str) -> str:
    """The first of the fields that the row has, as text; of a reference a number is text too.

    Raises:
        FieldError: it has none, or that is no text: another one is not taken in its place.
    """
    for name in (wanted, *names):
        value = row.get(name)
        if value is None:
            continue
        if wanted == "reference" and isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value.strip():
            return value
        raise FieldError.of(row, wanted, (name,), "text")
    raise FieldError.of(row, wanted, (wanted, *names), "text")


def level_of(row: Row) -> int | None:
    """`Level 4` or 4 is 4; MATH has a few problems of `Level ?`."""
    found = re.fullmatch(r"(?:Level )?([1-9])", str(row.get("level", "")).strip())
    return int(found[1]) if found else None


def subject_of(row: Row) -> str | None:
    """The subject as one word: `Counting & Probability` is counting_and_probability."""
    for name in ("subject", "type"):
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return re.sub(r"\W+", "_", value.strip().lower().replace("&", "and")).strip("_")
    return None


def document(row: Row, problem: str, reference: str, **extra: Any) -> Document:
    """A document of a row."""
    return {
        "problem": problem,
        "reference": reference,
        "level": level_of(row),
        "subject": subject_of(row),
        "extra": json.dumps(extra, ensure_ascii=False) if extra else "",
    }


def documents(rows: Iterable[Row], read: Callable[[Row], Document | None]) -> Any:
    """A data set of documents, in the order of the rows, without those that `read` makes None of.

    Raises:
        RowError: a row lacks what the task needs.
    """
    import datasets

    found = []
    for number, row in enumerate(rows, 1):
        try:
            each = read(row)
        except FieldError as error:
            raise RowError(number, error) from None
        if each is not None:
            found.append(each)
    text, number = datasets.Value("string"), datasets.Value("int64")
    columns = {"problem": text, "reference": text, "level": number, "subject": text, "extra": text}
    return datasets.Dataset.from_list(found, features=datasets.Features(columns))
