# SPDX-License-Identifier: Apache-2.0
"""What a results folder was made with. The same command goes on; another one is refused, each change by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval_tasks.results.samples import SampleWriter, samples_file, tasks_in, verdicts_file, votes_file
from eval_tasks.runs.catalogue import TaskEntry
from eval_tasks.runs.requests import Item
from megatron.neox_arguments.errors import ConfigError, Problem, UserError
from megatron.neox_arguments.whole_files import write_whole

FILE = "run.json"
FORMAT = 1


@dataclass(frozen=True)
class Settings:
    """`model` is what all tasks of a folder share; `tasks` what each has of its own. JSON values throughout.

    The model's `name` may change where its `sha256` stays: it is a folder's, which may be moved.

    Names in `told` are for readers and may differ from one start to the next. Its `data` has the local file
    of each task that has one, also of tasks of earlier starts.
    """

    model: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]]
    told: Mapping[str, Any] = field(default_factory=dict)


def task_settings(
    entry: TaskEntry, items: list[Item], limit: int | None, samples_per_item: int, batch_size: int | None
) -> dict[str, Any]:
    """What decides the samples of a task. `batch_size` is None where draws do not depend on it."""
    names = "\n".join(f"{item.name} {hashlib.sha256(item.prompt.encode()).hexdigest()}" for item in items)
    scored = [[item.name, item.doc["reference"], item.doc["extra"]] for item in items]
    grouped = [[item.name, item.doc["level"], item.doc["subject"]] for item in items]
    generation = items[0].arguments[1] if entry.is_generated else {}
    settings = {
        "limit": limit,
        "items": len(items),
        "k": samples_per_item,
        "max_new_tokens": generation.get("max_gen_toks"),
        "stop": generation.get("until"),
        "temperature": generation.get("temperature"),
        "top_p": generation.get("top_p"),
        "batch_size": batch_size,
        "problems_and_prompts": hashlib.sha256(names.encode()).hexdigest(),
        # A sample's line holds these too: a folder must not have old ones and new ones.
        "references_and_choices": hashlib.sha256(json.dumps(scored).encode()).hexdigest(),
        "levels_and_subjects": hashlib.sha256(json.dumps(grouped).encode()).hexdigest(),
    }
    return {name: value for name, value in settings.items() if value is not None}


def keep_settings(folder: Path, settings: Settings, overwrite: bool) -> None:
    """Writes what the folder is made with, beside what it has of other tasks.

    With `overwrite`, the samples of tasks whose settings have changed are removed first; of all tasks where
    the model has changed.

    Raises:
        ConfigError: the folder was made with other settings, or is not a results folder.
        UserError: another process writes to samples that would be removed; nothing is removed then.
    """
    path = folder / FILE
    before = read_settings(folder)
    if before is None and folder.is_dir() and any(folder.iterdir()):
        remedy = "choose a new folder, or one that evaluate.py made"
        raise ConfigError([Problem("--output", str(folder), "is not empty and has no run.json", remedy)])
    tasks = dict(before.tasks) if before is not None else {}
    if before is not None:
        changed = _model_changes(before, settings)
        stale = tasks_in(folder) if changed else []
        for name, own in settings.tasks.items():
            if name in tasks and (of_task := _changes(f"{name}: ", tasks[name], own)):
                changed += of_task
                stale.append(name)
        if changed and not overwrite:
            raise ConfigError(changed)
        if changed:
            _remove(folder, list(dict.fromkeys(stale)))
            tasks = {name: own for name, own in tasks.items() if name not in stale}
    data = dict(before.told.get("data") or {}) if before is not None else {}
    data = {name: file for name, file in data.items() if name in tasks and name not in settings.tasks}
    content = {
        "format": FORMAT,
        "model": dict(settings.model),
        "tasks": {**tasks, **settings.tasks},
        "told": {**settings.told, "data": {**data, **(settings.told.get("data") or {})}},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"--output={folder}: cannot be written ({error.strerror}); choose another") from None


def _remove(folder: Path, tasks: list[str]) -> None:
    """Removes what there is of tasks, all or, where somebody writes to one of them, nothing."""
    with ExitStack() as stack:
        for name in tasks:
            if samples_file(folder, name).is_file():
                stack.enter_context(SampleWriter(folder, name))
        for name in tasks:
            for file in (samples_file, verdicts_file, votes_file):
                file(folder, name).unlink(missing_ok=True)


def _changes(prefix: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Problem]:
    remedy = "repeat the old value, choose another --output, or give --overwrite to begin again"
    return [
        Problem(f"{prefix}{name}", now.get(name, "none"), f"was {_words(before.get(name))} here", remedy)
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name) and not (name == "name" and "sha256" in now)
    ]


def _model_changes(before: Settings, now: Settings) -> list[Problem]:
    """As `_changes`, with the model's name and folder in place of the sha256 of its files."""
    found = []
    for problem in _changes("", before.model, now.model):
        if problem.key == "sha256" and "name" in now.model:
            was = before.told.get("checkpoint", before.model.get("name"))
            constraint = (
                f"has other files (sha256 {str(now.model['sha256'])[:8]}…) than the model that this folder was "
                f"made with, {was} ({str(before.model.get('sha256'))[:8]}…)"
            )
            name = now.told.get("checkpoint", now.model["name"])
            problem = Problem("CHECKPOINT", name, constraint, problem.remedy)
        found.append(problem)
    return found


def _words(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def read_settings(folder: Path) -> Settings | None:
    """What the folder was made with; None where it has no run.json.

    Raises:
        UserError: that is broken, or of another format.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise UserError(f"{path}: has format {content['format']}, this program reads {FORMAT}")
        return Settings(content["model"], content["tasks"], content.get("told", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); choose another --output"
        ) from None
