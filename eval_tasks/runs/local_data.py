# SPDX-License-Identifier: Apache-2.0
"""Local data in place of the hub's: `--data TASK=FILE.jsonl`, `--data-field TASK.problem=NAME`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval_tasks.results.json_lines import read_lines
from eval_tasks.tasks.documents import level_of
from megatron.neox_arguments.errors import Problem, UserError, shown

# What a task calls the fields of a document (eval_tasks/tasks/documents.py).
FIELDS = ("problem", "reference", "level", "subject", "choices")


@dataclass(frozen=True)
class LocalFile:
    """A JSONL file of one task. `fields` says which of its fields is the problem, the reference, ….

    Fields that are not told are found by the names that the hub's data set has, or by these names themselves.
    """

    path: Path
    fields: Mapping[str, str] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """The rows, told fields under their usual names; see `numbered_rows`."""
        return [row for _, row in self.numbered_rows()]

    def numbered_rows(self) -> list[tuple[int, dict[str, Any]]]:
        """The rows, told fields under their usual names, each with the number of its line.

        Raises:
            UserError: the file cannot be read, a line is no JSON object, or a row lacks a told field.
        """
        lines = read_lines(self.path, may_be_cut=False)
        found = [(number, self._row(number, row)) for number, row in lines]
        if not found:
            raise UserError(f"{self.path}: has no rows; give a file with one JSON object a line")
        return found

    def _row(self, number: int, row: dict[str, Any]) -> dict[str, Any]:
        for usual, name in self.fields.items():
            if name not in row:
                raise UserError(
                    f"{self.path}:{number}: has no field {name}, which --data-field says is the {usual}; "
                    f"it has {', '.join(row)}"
                )
            if not _is_usable(usual, row[name]):
                raise UserError(
                    f"{self.path}:{number}: {name}={shown(row[name])}: is no {usual}, which --data-field "
                    "says it is; repair the line, or name another field"
                )
        # Beside the row: names may be exchanged.
        return row | {usual: row[name] for usual, name in self.fields.items()}


def _is_usable(usual: str, value: Any) -> bool:
    """Whether a told field holds what it is said to; problem, reference and choices are looked at by the task
    too."""
    if usual == "subject":
        return isinstance(value, str) and bool(value.strip())
    if usual == "level":  # MATH has a few of no level
        return value in ("Level ?", "?") or level_of({"level": value}) is not None
    return value is not None


def local_files(
    data: Sequence[str], data_fields: Sequence[str], tasks: Sequence[str]
) -> tuple[dict[str, LocalFile], list[Problem]]:
    """The local file of each task that has one, and what is wrong with the options."""
    problems: list[Problem] = []
    files: dict[str, Path] = {}
    for text in data:
        task, _, path = text.partition("=")
        if not path:
            problems.append(Problem("--data", text, "is not TASK=FILE.jsonl", "name the task and its file"))
        elif task not in tasks:
            problems.append(
                Problem("--data", text, f"{task} is not among --tasks", "add it, or leave it out")
            )
        elif not Path(path).is_file():
            problems.append(Problem("--data", text, "no such file", "give a JSONL file"))
        else:
            files[task] = Path(path)
    fields: dict[str, dict[str, str]] = {}
    for text in data_fields:
        place, _, name = text.partition("=")
        task, _, usual = place.partition(".")
        if not name or usual not in FIELDS:
            remedy = f"as in llemma_math.problem=question; fields are {', '.join(FIELDS)}"
            problems.append(Problem("--data-field", text, "is not TASK.FIELD=NAME", remedy))
        elif task not in files:
            problems.append(Problem("--data-field", text, f"{task} has no --data", "add it, or leave it out"))
        else:
            fields.setdefault(task, {})[usual] = name
    return {task: LocalFile(path, fields.get(task, {})) for task, path in files.items()}, problems
