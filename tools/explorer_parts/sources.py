# SPDX-License-Identifier: Apache-2.0
"""What the command was given: results folders, proofs and generations, and which model each is of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from eval_tasks.results.json_lines import read_lines
from megatron.neox_arguments.errors import UserError

SAMPLES, VERDICTS, VOTES, PROOFS, GENERATIONS = "samples", "verdicts", "votes", "proofs", "generations"
_TABLES = (SAMPLES, VERDICTS, VOTES)


@dataclass(frozen=True)
class Source:
    """A file to read: its kind, and the model and task its lines are of where they do not say so themselves.

    `named` is true where the user gave the model its name; it then holds for every line. `origin` is what was
    given: the name of the file, or of the folder it is of.
    """

    path: Path
    kind: str
    model: str
    task: str
    named: bool
    origin: str


@dataclass(frozen=True)
class Results:
    """results.json of a model's folder or folders: the measures of each task, and the settings of the run."""

    model: str
    tasks: dict[str, Any]
    settings: dict[str, Any]
    origin: str = ""


def parse(arguments: Sequence[str]) -> tuple[list[Source], list[Results]]:
    """Files and measures of arguments `PATH` or `NAME=PATH`, in their order.

    Raises:
        UserError: one is not there, or is nothing that can be shown; or two folders have one name that was
            not given to both; or both have measures of one task.
    """
    sources: list[Source] = []
    results: list[Results] = []
    folders: dict[str, tuple[str, bool]] = {}
    for argument in arguments:
        name, path = _divided(argument)
        if path.is_dir():
            model = name or path.resolve().name
            other, was_named = folders.setdefault(model, (argument, name is not None))
            if other != argument and not (was_named and name is not None):
                raise UserError(
                    f"{argument}: {other} is called {model} too; give each a name: NAME={path}, the same one "
                    "where both are of one model"
                )
            measures = _measures(path / "results.json", model)
            sources += _of_folder(path, model, [task for each in measures for task in each.tasks])
            results += measures
        elif path.is_file():
            model = name or path.stem
            kind = _kind_of(path)
            task = PROOFS if kind == PROOFS else path.stem
            sources.append(Source(path, kind, model, task, name is not None, path.name))
        else:
            raise UserError(f"{argument}: is not there; give a results folder or a JSONL file")
    return sources, [
        _as_one(model, [each for each in results if each.model == model])
        for model in dict.fromkeys(each.model for each in results)
    ]


def _as_one(model: str, results: Sequence[Results]) -> Results:
    """What the folders of one model measured; their settings by the name of the folder."""
    if len(results) == 1:
        return results[0]
    tasks: dict[str, Any] = {}
    for each in results:
        if twice := sorted(tasks.keys() & each.tasks.keys()):
            raise UserError(
                f"{model}: {twice[0]} has measures in {each.origin} and in another of its folders; leave one "
                "out, or name them apart"
            )
        tasks |= each.tasks
    return Results(model, tasks, {each.origin: each.settings for each in results})


def _divided(argument: str) -> tuple[str | None, Path]:
    """(name, path); a path that has an = and is there is a path."""
    name, sign, path = argument.partition("=")
    if not sign or Path(argument).exists() or not name or "/" in name:
        return None, Path(argument)
    return name, Path(path)


def _of_folder(folder: Path, model: str, tasks: Sequence[str]) -> Iterator[Source]:
    """The files of a folder. Its proofs are of the one task that `tasks`, those of its measures, name."""
    found = False
    for kind in _TABLES:
        for path in sorted(folder.glob(f"{kind}_*.jsonl")):
            found = True
            tasks = [task for task in tasks if path.name != f"{kind}_{task}.jsonl"]
            yield Source(path, kind, model, path.stem.removeprefix(f"{kind}_"), True, folder.resolve().name)
    if (folder / "proofs.jsonl").is_file():
        found = True
        task = tasks[0] if len(tasks) == 1 else PROOFS
        yield Source(folder / "proofs.jsonl", PROOFS, model, task, True, folder.resolve().name)
    if not found:
        raise UserError(
            f"{folder}: holds neither samples_*.jsonl nor proofs.jsonl; give a folder that evaluate.py or "
            "tools/prove.py wrote, or a JSONL file"
        )


def _kind_of(path: Path) -> str:
    """Proofs or generations, by the first line."""
    first = next((fields for _, fields in islice(read_lines(path), 1)), {})
    if ("proved" in first or "success" in first) and "generation" not in first:
        return PROOFS
    return GENERATIONS


def _measures(path: Path, model: str) -> list[Results]:
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or not isinstance(content.get("tasks", {}), dict):
            raise ValueError
    except (OSError, ValueError, RecursionError):
        raise UserError(
            f"{path}: is no results file; make it again with evaluate.py, or move it away"
        ) from None
    settings = content.get("settings")
    settings = dict(settings) if isinstance(settings, dict) else {}
    if content.get("model") is not None:
        settings = {"model": content["model"], **settings}
    return [Results(model, content.get("tasks", {}), settings, str(path.parent))]
