# SPDX-License-Identifier: Apache-2.0
"""The tasks that evaluate.py knows, read from the YAML files of eval_tasks/tasks without importing lm-eval.

A YAML file with `task:` is one data set with its prompt; one with `group:` is several that count as one, and
what else stands in it goes over what its members say. Both forms are lm-eval's.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron.neox_arguments.errors import ConfigError, Problem

FOLDER = Path(__file__).parents[1] / "tasks"
# What a group's own keys are; the rest goes to its members (lm_eval.config.group.GroupConfig, 0.4.13).
GROUP_KEYS = ("group", "group_alias", "task", "aggregate_metric_list", "metadata")


@dataclass(frozen=True)
class Function:
    """`!function utils.documents` in a YAML file of `folder`."""

    folder: Path
    name: str

    def resolve(self) -> Callable[..., Any]:
        """The function: of the module beside the YAML, or of any that can be imported, as in lm-eval."""
        module, _, function = self.name.rpartition(".")
        if (self.folder / f"{module}.py").is_file():
            inside = ".".join(self.folder.relative_to(FOLDER).parts)
            module = f"{__package__.partition('.')[0]}.tasks.{inside}.{module}"
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return found


@dataclass(frozen=True)
class TaskEntry:
    """A task by its name. `leaves` are the configurations that it consists of, as lm-eval takes them."""

    name: str
    description: str
    leaves: Mapping[str, Mapping[str, Any]] = field(repr=False)

    @property
    def first(self) -> Mapping[str, Any]:
        """Any of the leaves: but for data set and subject they are alike."""
        return next(iter(self.leaves.values()))

    @property
    def is_generated(self) -> bool:
        """Whether the model writes; else the likelihood of a text is measured."""
        return str(self.first["output_type"]) == "generate_until"

    @property
    def samples_per_item(self) -> int:
        """k of majority voting as published; 1 for tasks that decode greedily."""
        return int(self.first.get("repeats", 1))

    @property
    def generation(self) -> Mapping[str, Any]:
        """`until`, `do_sample`, `temperature`, `top_p`, `max_gen_toks`; empty where nothing is generated."""
        return self.first.get("generation_kwargs") or {}

    @property
    def is_sampled(self) -> bool:
        """Whether tokens are drawn."""
        return bool(self.generation.get("do_sample"))

    @property
    def prover(self) -> str | None:
        """The proof assistant that judges what is written, which tools/prove.py whole asks; else None."""
        found = self.first.get("metadata", {}).get("prover")
        return None if found is None else str(found)

    @property
    def is_proof(self) -> bool:
        """Whether proofs are written, which evaluate.py does not judge."""
        return self.prover is not None


@functools.cache
def catalogue() -> dict[str, TaskEntry]:
    """Every task and group by its name, those that are members of a group left out."""
    files = sorted(FOLDER.rglob("*.yaml"))
    configurations = [_read(path) for path in files]
    tasks = {each["task"]: each for each in configurations if "group" not in each}
    groups = {each["group"]: each for each in configurations if "group" in each}
    members = {name for group in groups.values() for name in group["task"]}
    entries = [_group_entry(group, tasks) for group in groups.values()]
    entries += [
        TaskEntry(name, _description(task), {name: task})
        for name, task in tasks.items()
        if name not in members
    ]
    return {entry.name: entry for entry in sorted(entries, key=lambda entry: entry.name)}


def _group_entry(group: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> TaskEntry:
    over = {key: value for key, value in group.items() if key not in GROUP_KEYS}
    leaves = {name: {**tasks[name], **over} for name in group["task"]}
    return TaskEntry(group["group"], _description(group), leaves)


def _description(configuration: Mapping[str, Any]) -> str:
    return str(configuration.get("metadata", {}).get("description", ""))


def _read(path: Path) -> dict[str, Any]:
    """A YAML file over what it includes."""

    class Loader(yaml.SafeLoader):
        """With `!function`, which stands for a function of this file's folder."""

    def function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Function:
        return Function(path.parent, str(loader.construct_scalar(node)))

    Loader.add_constructor("!function", function)
    with open(path, encoding="utf-8") as file:
        own: dict[str, Any] = yaml.load(file, Loader)
    included = own.pop("include", None)
    return own if included is None else {**_read(path.parent / included), **own}


def resolved(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """A leaf's configuration with functions in place of their names, as lm-eval takes it."""
    return {
        key: value.resolve() if isinstance(value, Function) else value for key, value in configuration.items()
    }


def chosen(names: Sequence[str]) -> list[TaskEntry]:
    """The tasks of these names, in this order.

    Raises:
        ConfigError: there is no task of a name, or one is named twice.
    """
    known, problems = catalogue(), []
    for name in dict.fromkeys(names):
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            remedy = f"did you mean {near[0]}? --list-tasks shows all" if near else "--list-tasks shows all"
            problems.append(Problem("--tasks", name, "no such task", remedy))
        elif list(names).count(name) > 1:
            problems.append(Problem("--tasks", name, "is named twice", "name it once"))
    if problems:
        raise ConfigError(problems)
    return [known[name] for name in names]


def listing() -> str:
    """All tasks with what they are, one a line."""
    entries = catalogue().values()
    width = max(len(entry.name) for entry in entries)
    return "\n".join(f"{entry.name:<{width}}  {entry.description}" for entry in entries)
