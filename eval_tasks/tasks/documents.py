# SPDX-License-Identifier: Apache-2.0
"""Rows of a data set, from the hub or from a JSONL file, as documents that all tasks have in common.

A document has `problem` (all that stands in the prompt for it), `reference` (solution or answer, as the data
set has it), `level` (1 to 5, or None), `subject` (or None) and `extra` (JSON of further fields, or "").
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from megatron.neox_arguments.errors import UserError

Row = Mapping[str, Any]
Document = dict[str, Any]


class MissingField(Exception):
    """A row has none of the fields that could hold what is needed."""

    def __init__(self, wanted: str, names: tuple[str, ...]) -> None:
        super().__init__(f"no {wanted}, looked for as {', '.join(names)}")
        self.wanted = wanted


def text_of(row: Row, wanted: str, *names: str) -> str:
    """The first of the fields that holds text.

    Raises:
        MissingField: none does.
    """
    for name in (wanted, *names):
        if isinstance(row.get(name), str) and row[name].strip():
            return str(row[name])
    raise MissingField(wanted, (wanted, *names))


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


def documents(rows: Iterable[Row], read: Callable[[Row], Document]) -> Any:
    """A data set of documents, in the order of the rows.

    Raises:
        UserError: a row lacks what the task needs.
    """
    import datasets

    found = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(read(row))
        except MissingField as error:
            have = ", ".join(row)
            raise UserError(
                f"row {number} of the data: {error} (it has {have}); "
                f"say which field it is with --data-field TASK.{error.wanted}=NAME"
            ) from None
    text, number = datasets.Value("string"), datasets.Value("int64")
    columns = {"problem": text, "reference": text, "level": number, "subject": text, "extra": text}
    return datasets.Dataset.from_list(found, features=datasets.Features(columns))
