# SPDX-License-Identifier: Apache-2.0
"""A stage of a recipe: every input shard goes through the same steps into its output shard.

A stage's folder holds one folder for each route, `reports/` with one report a shard, `report.json` and
`report.md` over all of them, and `stage.json`: what the stage does. A shard that is finished and whose
input, steps and options are unchanged is kept; every other is made anew. Bytes are the same for any number
of workers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import orjson

from megatron.neox_arguments.errors import UserError, shown
from megatron.neox_arguments.whole_files import write_whole
from tools.proof_pile_2 import outputs
from tools.proof_pile_2.documents import (
    Broken,
    Document,
    Passage,
    Step,
    StepFailed,
    encode,
    run_steps,
)
from tools.proof_pile_2.reports import Report, markdown, write_json
from tools.proof_pile_2.shards import Shard
from tools.proof_pile_2.tasks import Progress, run_tasks, stop_if_asked

_FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
DOCUMENTS = "documents"


class Router(Protocol):
    """Where each document is written, by the document alone. Picklable."""

    @property
    def version(self) -> str:
        """As a step's."""

    @property
    def routes(self) -> tuple[str, ...]:
        """All routes there are."""

    def __call__(self, document: Document) -> str:
        """One of the routes."""


@dataclass(frozen=True)
class OneRoute:
    """All documents go to one folder."""

    name: str = DOCUMENTS
    version: str = "1"

    @property
    def routes(self) -> tuple[str, ...]:
        """The one."""
        return (self.name,)

    def __call__(self, document: Document) -> str:
        """The one."""
        return self.name


@dataclass(frozen=True)
class OwnRoute:
    """Each document names its own."""

    routes: tuple[str, ...]
    version: str = "1"

    def __call__(self, document: Document) -> str:
        """The document's."""
        return document.route


class Omissions(Protocol):
    """Documents that an earlier pass over the same shards found to be left out, by their number in the
    shard (the first document read is 0; what is broken has no number). Picklable."""

    @property
    def rule(self) -> str:
        """What they are reported under, `step: rule`."""

    def identity(self, shard: str) -> object:
        """What JSON can hold, and what changes when the list does."""

    def of(self, shard: str) -> frozenset[int]:
        """The numbers for one shard."""


@dataclass(frozen=True)
class Stage:
    """What is done with every document. `title` heads the report; `options` is whatever else decides the
    outcome, as JSON holds it: it is written to `stage.json`, and a run with others is refused."""

    title: str
    steps: tuple[Step, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    router: Router = field(default_factory=OneRoute)
    omissions: tuple[Omissions, ...] = ()

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        assert len(set(names)) == len(names), f"two steps have the same name: {names}"

    def record(self) -> dict[str, Any]:
        """What `stage.json` says."""
        return {
            "format": _FORMAT,
            "title": self.title,
            "steps": {step.name: step.version for step in self.steps},
            "router": self.router.version,
            "routes": list(self.router.routes),
            "omissions": [omissions.rule for omissions in self.omissions],
            "options": dict(self.options),
        }

    def fingerprint(self, shard: Shard) -> str:
        """Changes whenever the shard's output may."""
        parts = [self.record(), shard.name, shard.identity()]
        parts += [omissions.identity(shard.name) for omissions in self.omissions]
        return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass(frozen=True)
class _Task:
    stage: Stage
    shard: Shard
    folder: Path
    fingerprint: str


def make_shard(stage: Stage, shard: Shard, folder: Path, fingerprint: str | None = None) -> Report:
    """Read one shard, write its output shard and report; an output that is there is replaced.

    Errors: `UserError` where the input cannot be read or the output not written."""
    report = Report(shards=1)
    with outputs.writing(folder), outputs.ShardWriter(folder, shard.name, stage.router.routes) as writer:
        for document in _documents(stage, shard, report):
            _take_through(stage, document, report, writer)
        writer.finish(fingerprint or stage.fingerprint(shard), report)
    return report


def _documents(stage: Stage, shard: Shard, report: Report) -> Iterator[Document]:
    """The documents of a shard that no earlier pass left out; fills the report with the others."""
    left_out = [(omissions.rule, omissions.of(shard.name)) for omissions in stage.omissions]
    number = -1
    for item in shard.read():
        stop_if_asked()
        if isinstance(item, Broken):
            report.take_broken(item)
            continue
        number += 1
        report.take(item)
        rule = next((rule for rule, numbers in left_out if number in numbers), None)
        if rule is None:
            yield item
        else:
            step, _, words = rule.partition(": ")
            report.drop(step, words, item)


def _take_through(stage: Stage, document: Document, report: Report, writer: outputs.ShardWriter) -> None:
    passages: list[Passage] = []
    try:
        results = [(result, encode(result)) for result in run_steps(document, stage.steps, passages)]
    except (StepFailed, ValueError) as error:
        report.take_broken(Broken(place_of(document), str(error)))
        return
    report.take_passages(passages)
    for result, line in results:
        route = stage.router(result)
        report.keep(route, result)
        writer.write(route, line)


def place_of(document: Document) -> str:
    """What is known of where a document comes from."""
    for key in ("path", "url", "max_stars_repo_path", "id"):
        if isinstance(value := document.meta.get(key), str):
            return value[:300]
    return "a document"


def _make(task: _Task) -> tuple[int, Report]:
    return task.shard.size_bytes, make_shard(task.stage, task.shard, task.folder, task.fingerprint)


def run_stage(
    stage: Stage,
    plan: Callable[[], Iterable[Shard]],
    folder: Path,
    *,
    workers: int = 1,
    overwrite: bool = False,
    log_interval_seconds: float = 5.0,
) -> Report:
    """Make every shard of `plan` that is not finished yet, and the report over all; returns it.

    `plan` is called twice, so that no list of all shards is held. Errors: `UserError` for an output of
    other options or inputs (unless `overwrite`), an input that is gone, a disk that refuses, a process
    that dies."""
    with outputs.locked(folder), outputs.writing(folder):
        total, total_bytes, names = _survey(plan())
        _claim(stage, folder, names, overwrite)
        progress = Progress(stage.title, total, total_bytes, log_interval_seconds)
        done = Report()
        tasks = _unfinished(stage, plan(), folder, progress)
        for nbytes, report in run_tasks(_make, tasks, workers, lambda: progress.show(_in_and_out(done))):
            done.add(report)
            progress.advance(nbytes)
        merged = merge_reports(stage, (shard.name for shard in plan()), folder)
        progress.show(_in_and_out(merged), force=True)
        return merged


def _in_and_out(report: Report) -> str:
    return f"{report.total('read').documents:,} documents in, {report.total('written').documents:,} out"


def enter(stage: Stage, folder: Path) -> None:
    """For a process of many that share a stage and write one folder: see that it is new or this stage's own.

    Errors: `UserError` where it is another stage's."""
    record_path = folder / "stage.json"
    with outputs.writing(folder):
        for place in (outputs.REPORTS, *stage.router.routes):
            (folder / place).mkdir(parents=True, exist_ok=True)
        if (former := _former(record_path)) is None:
            write_json(record_path, stage.record())
        elif former != stage.record():
            raise UserError(
                f"--output {folder}: was made with {_differences(former, stage.record())}; give the same "
                "options, "
                "or another folder"
            )


def _former(record_path: Path) -> Any:
    """What `stage.json` says; {} where it cannot be read, None where there is none."""
    try:
        return orjson.loads(record_path.read_bytes()) if record_path.exists() else None
    except (OSError, orjson.JSONDecodeError):
        return {}


def _survey(shards: Iterable[Shard]) -> tuple[int, int, frozenset[str]]:
    names: set[str] = set()
    total_bytes = 0
    for shard in shards:
        assert _NAME.fullmatch(shard.name), shard.name
        assert shard.name not in names, f"two shards are called {shard.name}"
        names.add(shard.name)
        total_bytes += shard.size_bytes
    return len(names), total_bytes, frozenset(names)


def _claim(stage: Stage, folder: Path, names: frozenset[str], overwrite: bool) -> None:
    """See that the folder is new, or this stage's own; what is of other options or inputs is refused or
    removed."""
    record_path, routes = folder / "stage.json", stage.router.routes
    outputs.remove_partial_files(folder, routes)
    former = _former(record_path)
    surplus = sorted(name for name in outputs.finished_names(folder) if name not in names)
    if former is not None and former != stage.record():
        if not overwrite:
            raise UserError(
                f"--output {folder}: was made with {_differences(former, stage.record())}; give the same "
                "options, "
                "another folder, or --overwrite to make it anew"
            )
        for name in list(outputs.finished_names(folder)):
            outputs.remove_shard(folder, name, tuple(former.get("routes", ())) or routes)
    elif surplus:
        if not overwrite:
            raise UserError(
                f"--output {folder}: holds shards of inputs that are not given any more "
                f"({', '.join(surplus[:3])}"
                f"{', …' if len(surplus) > 3 else ''}); give the same inputs, another folder, or --overwrite"
            )
        for name in surplus:
            outputs.remove_shard(folder, name, routes)
    for place in (outputs.REPORTS, *routes):
        (folder / place).mkdir(parents=True, exist_ok=True)
    write_json(record_path, stage.record())


def _differences(former: object, record: Mapping[str, Any]) -> str:
    """What is not the same, in a few words."""
    if not isinstance(former, dict) or not former:
        return "an unreadable stage.json"
    words = []
    for key in record:
        mine, other = record[key], former.get(key)
        if mine == other:
            continue
        if isinstance(mine, dict) and isinstance(other, dict):
            keys = [name for name in {**mine, **other} if mine.get(name) != other.get(name)]
            if key == "steps":
                words.append("other versions of " + ", ".join(keys))
            else:
                words += [f"{name}={shown(other.get(name))} and not {shown(mine.get(name))}" for name in keys]
        else:
            words.append(f"{key}={shown(other)} and not {shown(mine)}")
    return "; ".join(words) or "other options"


def _unfinished(stage: Stage, shards: Iterable[Shard], folder: Path, progress: Progress) -> Iterator[_Task]:
    for shard in shards:
        fingerprint = stage.fingerprint(shard)
        if outputs.finished_report(folder, shard.name, fingerprint) is None:
            yield _Task(stage, shard, folder, fingerprint)
        else:
            progress.advance(shard.size_bytes, already=True)


def merge_reports(stage: Stage, names: Iterable[str], folder: Path) -> Report:
    """Sum the shards' reports into `report.json` and `report.md`."""
    merged = Report()
    for name in names:
        report = outputs.finished_report(folder, name)
        if report is None:
            raise UserError(f"--output {folder}: shard {name} is not finished; start the same command again")
        merged.add(report)
    steps = [step.name for step in stage.steps]
    write_json(folder / "report.json", {"stage": stage.record(), **merged.as_json()})
    write_whole(folder / "report.md", markdown(stage.title, merged, steps).encode())
    return merged
