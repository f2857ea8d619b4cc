# SPDX-License-Identifier: Apache-2.0
"""Verdicts on anyone's generations: a JSONL file becomes a results folder, and where it says which
generations are correct, how far both graders agree with that is told."""

from __future__ import annotations

import contextlib
import filecmp
import html
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_tasks.answers.workers import Graders
from eval_tasks.results.json_lines import encoded_line, read_lines
from eval_tasks.results.samples import (
    Sample,
    problem_digest,
    read_verdicts,
    samples_file,
    verdicts_file,
)
from eval_tasks.results.scoring import ProgramJudge, Tell, score_folder
from eval_tasks.results.task_table import Task, task_named
from eval_tasks.tasks.documents import level_of, subject_of
from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.whole_files import drafted

_TEXTS = ("problem", "reference", "generation")
_SHOWN = 20  # differing lines that are named


@dataclass(frozen=True)
class Agreement:
    """How often a grader says what the file says; `differing` are the numbers of the other lines."""

    grader: str
    agreeing: int
    of: int
    differing: tuple[int, ...]

    def __str__(self) -> str:
        lines = ", ".join(map(str, self.differing[:_SHOWN])) + (", …" if len(self.differing) > _SHOWN else "")
        where = f"; not on lines {lines}" if self.differing else ""
        return f"{self.grader} agrees with `correct` on {self.agreeing:,} of {self.of:,}{where}"


@dataclass(frozen=True)
class Rescored:
    """What results.json holds, and the agreement of each grader; none where the file has no `correct`."""

    results: dict[str, Any]
    agreements: list[Agreement]


def rescore(
    samples: Path,
    task: str,
    output: Path,
    undo_html: bool = False,
    *,
    judge_programs: ProgramJudge | None = None,
    graders: Graders | None = None,
    tell: Tell = print,
) -> Rescored:
    """Judges the generations of a file by the rule of a task and writes a results folder for them.

    Args:
        samples: JSONL with `problem`, `generation`, `reference` and, by choice, `correct` (true or false),
        `level`,
            `subject`, and `item` with `sample`: without these each line is an item of its own, by its number.
        task: whose rule decides.
        output: a folder that is not there yet, or is empty, or what the same command left when cut off.
        undo_html: the texts hold HTML entities (`&lt;`), which are undone first.
        judge_programs: runs model-written programs, for tasks that have some.
        graders: a pool that is open already (default: one of its own, with a process for each processor).
        tell: says results and agreements, one line each.

    Raises:
        UserError: a line lacks a field or is cut short, the lines of an item are not of one problem, items
            have not equally many samples, there is no such task, or the folder has something in it.
    """
    known = task_named(task)
    if known.is_likelihood:
        raise UserError(f"--task={task}: is measured by likelihood, not by answers; give a task with answers")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        _check_goes_on(output, task)
    recorded: dict[tuple[str, int], tuple[int, bool]] = {}
    read = _read(samples, task, known, html.unescape if undo_html else str, recorded)
    first = next(read, None)
    if first is None:
        raise UserError(f"--rescore={samples}: holds no line; give JSONL with {', '.join(_TEXTS)}")
    _write_samples(itertools.chain([first], read), output, task)
    results = score_folder(output, judge_programs=judge_programs, graders=graders, tell=tell)
    agreements = _agreements(known, recorded, output, task)
    for agreement in agreements:
        tell(str(agreement))
    return Rescored(results, agreements)


def _check_goes_on(output: Path, task: str) -> None:
    """Refuses a folder with something in it that the same command cannot have left when it was cut off."""
    left = output.is_dir() and all(path.name.startswith(".samples_") for path in output.iterdir())  # drafts
    if not left and not samples_file(output, task).is_file():
        raise UserError(f"--output={output}: is not empty; choose a new folder")


def _write_samples(samples: Iterator[Sample], output: Path, task: str) -> None:
    """Copies the samples, whole or not at all. The same ones may lie there: the command was cut off."""
    path, made = samples_file(output, task), not output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        with drafted(path) as draft:
            with open(draft, "wb") as file:
                file.writelines(encoded_line(sample.as_fields()) for sample in samples)
            if path.exists() and not filecmp.cmp(draft, path, shallow=False):
                raise UserError(f"--output={output}: holds samples of another file; choose a new folder")
    except OSError as error:
        raise UserError(f"--output={output}: cannot be written ({error.strerror}); choose another") from None
    finally:
        if made and not path.exists():
            with contextlib.suppress(OSError):
                output.rmdir()


def _read(
    path: Path,
    task: str,
    known: Task,
    plain: Callable[[str], str],
    recorded: dict[tuple[str, int], tuple[int, bool]],
) -> Iterator[Sample]:
    seen = _Seen(path)
    for number, fields in read_lines(path, may_be_cut=False):
        where = f"--rescore={path}:{number}"
        for name in _TEXTS:
            if not isinstance(fields.get(name), str):
                raise UserError(f"{where}: has no text under {name!r}; give {', '.join(_TEXTS)}")
        rule = known.reference_rule
        if rule is not None and rule.reference(plain(fields["reference"])) is None:
            raise UserError(
                f"{where}: reference={fields['reference']!r:.80}: holds no answer for the rule "
                f"{rule.name!r}; repair the line, or give another --task"
            )
        item, at = _key(fields, number, where)
        correct = fields.get("correct")
        if correct is not None:
            if not isinstance(correct, bool):
                raise UserError(f"{where}: correct={correct!r:.80}: is not true or false; repair the line")
            recorded[item, at] = (number, correct)
        sample = Sample(
            task, item, at, plain(fields["problem"]), plain(fields["reference"]),
            *_level_and_subject(fields, plain), generation=plain(fields["generation"]),
        )  # fmt: skip
        seen.add(number, sample)
        yield sample
    seen.check_counts()


def _level_and_subject(fields: dict[str, Any], plain: Callable[[str], str]) -> tuple[int | None, str | None]:
    texts = {name: plain(value) if isinstance(value, str) else value for name, value in fields.items()}
    return level_of(texts), subject_of(texts)


class _Seen:
    """What earlier lines of a file said: an item is one problem, and has as many samples as each other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[tuple[str, int], int] = {}
        # item: its first line, a digest of its problem and reference, its samples
        self._items: dict[str, tuple[int, bytes, int]] = {}

    def add(self, number: int, sample: Sample) -> None:
        """Refuses a line that has a sample again, or another problem or reference of an item."""
        where = f"--rescore={self._path}:{number}: item={sample.item}"
        line = self._lines.setdefault(sample.key, number)
        if line != number:
            raise UserError(
                f"{where} sample={sample.sample}: stands in line {line} too; number the samples of an item "
                "with `sample`"
            )
        digest = problem_digest(sample)
        first, known, count = self._items.get(sample.item, (number, digest, 0))
        if known != digest:
            raise UserError(
                f"{where}: is not the problem and reference of line {first}; give another problem another "
                "`item`"
            )
        self._items[sample.item] = (first, digest, count + 1)

    def check_counts(self) -> None:
        """Refuses a file whose items have not equally many samples."""
        most = max((count for _, _, count in self._items.values()), default=0)
        few = [(item, count) for item, (_, _, count) in self._items.items() if count < most]
        if few:
            named = ", ".join(f"{item} ({count})" for item, count in few[:_SHOWN])
            raise UserError(
                f"--rescore={self._path}: {len(few):,} items have fewer samples than the {most} of others: "
                f"{named}{', …' if len(few) > _SHOWN else ''}; complete them, or leave them out"
            )


def _key(fields: dict[str, Any], number: int, where: str) -> tuple[str, int]:
    item, at = fields.get("item"), fields.get("sample", 0)
    if item is None:
        return str(number), 0
    if (
        not isinstance(item, (str, int))
        or not isinstance(at, int)
        or isinstance(item, bool)
        or isinstance(at, bool)
    ):
        raise UserError(
            f"{where}: item={item!r:.80} sample={at!r:.80}: are not a name and a number; repair the line"
        )
    return str(item), at


def _agreements(
    task: Task, recorded: dict[tuple[str, int], tuple[int, bool]], output: Path, name: str
) -> list[Agreement]:
    """Of the task's rule, and of math-verify where it judges such answers."""
    if not recorded:
        return []
    verdicts = read_verdicts(verdicts_file(output, name))
    graders = {"the paper's rule": "correct"}
    if task.rule is not None and task.rule.math_verify:
        graders["math-verify"] = "math_verify"
    found = []
    for words, attribute in graders.items():
        differing = tuple(
            number
            for key, (number, correct) in recorded.items()
            if getattr(verdicts[key], attribute) != correct
        )
        found.append(Agreement(words, len(recorded) - len(differing), len(recorded), differing))
    return found
