# SPDX-License-Identifier: Apache-2.0
"""The records of a results folder, and reading and writing them: samples, verdicts and votes, by task.

`samples_<task>.jsonl` is appended to while a model generates, in any order; (item, sample) names a line. All
else in the folder is made from it and can be made again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from eval_tasks.results.json_lines import Appender, encoded_line, read_lines
from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.whole_files import drafted

Key = tuple[str, int]


@dataclass(frozen=True)
class Sample:
    """What a model gave for an item once; for a task of likelihood, how likely the reference is.

    `bytes` is the length of the text that `loglikelihood` (natural logarithm, its sum over tokens) is of.
    `more` has whatever other fields the line holds, such as `choices`.
    """

    task: str
    item: str
    sample: int
    problem: str
    reference: str
    level: int | None = None
    subject: str | None = None
    prompt_sha256: str | None = None
    generation: str | None = None
    tokens: int | None = None
    loglikelihood: float | None = None
    bytes: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.item, self.sample

    def as_fields(self) -> dict[str, Any]:
        """The line: what this kind of sample does not have is left out, but for level, subject and tokens."""
        values = {name: getattr(self, name) for name in _names(Sample)}
        always = {"level", "subject"} | ({"tokens"} if self.generation is not None else set())
        return {name: value for name, value in values.items() if value is not None or name in always} | dict(
            self.more
        )


@dataclass(frozen=True)
class Verdict:
    """What the graders say to a sample. None: this grader does not judge this task.

    `answer` is what the rule took out of the generation, None where it found none; `correct` is the paper's
    rule. `program` is {"code", "output", "error"} of a generation that is a program.
    """

    item: str
    sample: int
    answer: str | None
    minerva: bool | None
    math_verify: bool | None
    correct: bool
    program: Mapping[str, Any] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.item, self.sample

    def as_fields(self) -> dict[str, Any]:
        """The line."""
        return {name: getattr(self, name) for name in _names(Verdict)} | dict(self.more)


@dataclass(frozen=True)
class Vote:
    """What the samples of an item say together: the answer of the largest class, and the size of each class
    under the answer that stands for it. `answer` is None where no sample has a valid one."""

    item: str
    answer: str | None
    votes: Mapping[str, int]
    correct: bool

    def as_fields(self) -> dict[str, Any]:
        """The line."""
        return {name: getattr(self, name) for name in _names(Vote)}


Record = TypeVar("Record", Sample, Verdict)
# What a field may be; `float` takes whole numbers too, and no field takes a bool for a number.
_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "bool": (bool,), "float": (float, int), "Mapping[str, Any]": (dict,),
}  # fmt: skip


def _names(record: type[Any]) -> list[str]:
    return [each.name for each in fields(record) if each.name != "more"]


def problem_digest(sample: Sample) -> bytes:
    """16 bytes of its problem and reference, which all samples of an item share."""
    text = f"{len(sample.problem)} {sample.problem}{sample.reference}"
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()


def samples_file(folder: Path, task: str) -> Path:
    """Where the samples of a task lie."""
    return folder / f"samples_{task}.jsonl"


def verdicts_file(folder: Path, task: str) -> Path:
    """Where the verdicts of a task lie."""
    return folder / f"verdicts_{task}.jsonl"


def votes_file(folder: Path, task: str) -> Path:
    """Where the votes of a task lie."""
    return folder / f"votes_{task}.jsonl"


def tasks_in(folder: Path) -> list[str]:
    """The tasks that have samples in a results folder, by name."""
    return sorted(path.stem.removeprefix("samples_") for path in folder.glob("samples_*.jsonl"))


class SampleWriter:
    """Appends samples as they come. `append` returns when they are on the disk; a kill costs those under way.

    Raises:
        UserError: the file cannot be written, or another process writes to it.
    """

    def __init__(self, folder: Path, task: str) -> None:
        self._file = Appender(samples_file(folder, task))

    def append(self, samples: Iterable[Sample]) -> None:
        """Adds samples at the end of the file."""
        self._file.append(sample.as_fields() for sample in samples)

    def close(self) -> None:
        """Lets another process append."""
        self._file.close()

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def iterate_samples(path: Path, task: str | None = None) -> Iterator[Sample]:
    """The samples of a file in its order, without repetitions; memory holds one, and a digest of each.

    Raises:
        UserError: the file cannot be read; a line is broken; two lines of one (item, sample) differ; a line
            belongs to another task than `task`. `file:line` is in the message.
    """
    for number, sample in _iterate(path, Sample):
        if task is not None and sample.task != task:
            raise UserError(
                f"{path}:{number}: task={sample.task}: the file holds samples of {task}; move the line to "
                f"{samples_file(path.parent, sample.task).name}"
            )
        yield sample


def read_samples(path: Path, task: str | None = None) -> dict[Key, Sample]:
    """(item, sample) → sample, in the order of the file; see `iterate_samples`. A file that is not there is
    empty: a run that has just begun.

    Raises:
        UserError: as `iterate_samples`.
    """
    return {sample.key: sample for sample in iterate_samples(path, task)} if path.exists() else {}


def read_verdicts(path: Path) -> dict[Key, Verdict]:
    """(item, sample) → verdict, in the order of the file.

    Raises:
        UserError: the file cannot be read, a line is broken, or two lines of one (item, sample) differ.
    """
    return {verdict.key: verdict for _, verdict in _iterate(path, Verdict)}


def read_votes(path: Path) -> dict[str, Vote]:
    """item → vote, in the order of the file.

    Raises:
        UserError: the file cannot be read, or a line is broken.
    """
    names = set(_names(Vote))
    votes = {}
    for number, line in read_lines(path):
        _check(Vote, line, f"{path}:{number}")
        votes[line["item"]] = Vote(**{name: line[name] for name in names})
    return votes


def write_records(path: Path, records: Iterable[Verdict | Vote]) -> None:
    """Writes a file of verdicts or votes, whole or not at all.

    Raises:
        UserError: the disk refuses. The file is as it was.
    """
    try:
        with drafted(path) as draft, open(draft, "wb") as file:
            file.writelines(encoded_line(record.as_fields()) for record in records)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); make room or choose another folder with --output"
        ) from None


def natural_order(text: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sorts `item 2` before `item 10`: files made from samples do not depend on the order these came in.

    Of numbers the shorter is the smaller: Python makes no integer of more than 4,300 digits.
    """
    parts = re.split(r"([0-9]+)", text)
    numbers = {at: part.lstrip("0") for at, part in enumerate(parts) if at % 2}
    key = (
        (0, len(numbers[at]), numbers[at]) if at in numbers else (1, 0, part) for at, part in enumerate(parts)
    )
    return tuple(key), text  # 2 and 02 in an order of their own


def _iterate(path: Path, record: type[Record]) -> Iterator[tuple[int, Record]]:
    seen: dict[Key, tuple[int, bytes]] = {}
    for number, line in read_lines(path):
        _check(record, line, f"{path}:{number}")
        names = _names(record)
        more = {name: value for name, value in line.items() if name not in names}
        read = record(**{name: line[name] for name in names if name in line}, more=more)
        digest = hashlib.blake2b(encoded_line(dict(sorted(line.items()))), digest_size=16).digest()
        first, known = seen.setdefault(read.key, (number, digest))
        if first == number:
            yield number, read
        elif known != digest:
            raise UserError(
                f"{path}:{number}: item={read.item} sample={read.sample}: line {first} says otherwise; "
                "remove one of the two"
            )


def _check(record: type[Any], line: Mapping[str, Any], where: str) -> None:
    """Refuses a line that lacks a field or has a value of the wrong kind."""
    for each in fields(record):
        kind = str(each.type)
        optional = kind.endswith(" | None")
        if each.name == "more":
            continue
        if each.name not in line:
            if optional and record is Sample:
                continue
            raise UserError(f"{where}: has no {each.name!r}; give it, or remove the line")
        value = line[each.name]
        kinds = _KINDS.get(kind.removesuffix(" | None"), (dict,))
        if (value is None and optional) or (isinstance(value, kinds) and not _is_bool_for(value, kinds)):
            continue
        wanted = " or ".join(each.__name__ for each in kinds) + (" or null" if optional else "")
        raise UserError(f"{where}: {each.name}={value!r:.80}: is not {wanted}; repair or remove the line")


def _is_bool_for(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, bool) and bool not in kinds
