# SPDX-License-Identifier: Apache-2.0
"""What is asked of a model for a task: lm-eval's requests, each with a name that stays the same."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from eval_tasks.results.samples import Sample
from eval_tasks.results.task_table import TASKS, VOTED
from eval_tasks.runs.catalogue import TaskEntry, resolved
from eval_tasks.runs.local_data import LocalFile
from eval_tasks.tasks.documents import RowError
from megatron.neox_arguments.errors import UserError, shown


@dataclass(frozen=True)
class Item:
    """A problem with its request. `arguments` is (prompt, text) for likelihood, else (prompt, settings)."""

    name: str
    doc: Mapping[str, Any] = field(repr=False)
    arguments: tuple[Any, Any] = field(repr=False)
    instance: Any = field(repr=False)

    @property
    def prompt(self) -> str:
        """All that the model reads before what it writes, or before what is scored."""
        return str(self.arguments[0])


@dataclass(frozen=True)
class Request:
    """One sample of an item, with the seed of its draws where tokens are drawn."""

    task: str
    item: Item
    sample: int
    seed: int

    @property
    def key(self) -> tuple[str, int]:
        return self.item.name, self.sample

    def instance(self, settings: Mapping[str, Any]) -> Any:
        """lm-eval's form of it; `settings` go over those of the task, such as a seed."""
        made = copy.copy(self.item.instance)
        if made.request_type == "generate_until":
            made.arguments = (self.item.prompt, {**self.item.arguments[1], **settings})
        made.resps, made.filtered_resps = [], {}
        return made

    def sample_of(self, answer: Any, tokens: int | None) -> Sample:
        """What is saved; `answer` is the generation, or lm-eval's (log-likelihood, is greedy)."""
        doc, text = self.item.doc, self.item.arguments[1]
        more = json.loads(doc["extra"]) if doc["extra"] else {}
        outcome: dict[str, Any] = {"generation": answer, "tokens": tokens}
        if self.item.instance.request_type == "loglikelihood":
            outcome = {"loglikelihood": float(answer[0]), "bytes": len(str(text).encode("utf-8"))}
        return Sample(
            task=self.task,
            item=self.item.name,
            sample=self.sample,
            problem=doc["problem"],
            reference=doc["reference"],
            level=doc["level"],
            subject=doc["subject"],
            prompt_sha256=hashlib.sha256(self.item.prompt.encode("utf-8")).hexdigest(),
            more=more,
            **outcome,
        )


def items_of(entry: TaskEntry, local: LocalFile | None, limit: int | None, max_new_tokens: int) -> list[Item]:
    """The items of a task, at most `limit`, taken from its members in turn.

    Raises:
        UserError: the data cannot be had, or lack what the task needs.
    """
    leaves = entry.leaves if local is None else dict([next(iter(entry.leaves.items()))])
    found = [_instances(entry.name, name, leaf, local, max_new_tokens) for name, leaf in leaves.items()]
    placed = list(_in_turn(found))[:limit]
    _check_references(entry.name, placed)
    instances = [instance for _, instance in placed]
    names = item_names(instance.doc["problem"] for instance in instances)
    return [
        Item(name, instance.doc, instance.args, instance)
        for name, instance in zip(names, instances, strict=True)
    ]


def _check_references(task: str, placed: list[tuple[str, Any]]) -> None:
    """Refuses references that no sample could be held against, before there are samples."""
    known = TASKS.get(task.removesuffix(VOTED))
    rule = None if known is None else known.reference_rule
    if rule is None:
        return
    for where, instance in placed:
        if rule.reference(instance.doc["reference"]) is None:
            raise UserError(
                f"{where}: reference={shown(instance.doc['reference'])}: holds no answer for the rule "
                f"{rule.name!r}; repair it, or name another field with --data-field {task}.reference=NAME"
            )


def _in_turn(lists: list[list[Any]]) -> Iterator[Any]:
    """One of each list, then the next of each, and so on: a limit takes from all of them."""
    for number in range(max(map(len, lists))):
        yield from (each[number] for each in lists if number < len(each))


def item_names(problems: Iterable[str]) -> list[str]:
    """Names that depend on the problem alone, so that runs on other copies of the data can be compared.

    They are the first 16 hexadecimal digits of the problem's sha256. Of equal problems the second is named
    with -2, and so on.
    """
    seen: dict[str, int] = {}
    names = []
    for problem in problems:
        name = hashlib.sha256(problem.encode("utf-8")).hexdigest()[:16]
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return names


def _instances(
    task_name: str, name: str, leaf: Mapping[str, Any], local: LocalFile | None, max_new_tokens: int
) -> list[tuple[str, Any]]:
    """lm-eval's requests of one of its tasks, one a document, each with the place of its row."""
    from lm_eval.tasks import TaskManager

    configuration = resolved(leaf)
    if configuration.get("generation_kwargs"):
        configuration["generation_kwargs"] = {
            **configuration["generation_kwargs"],
            "max_gen_toks": max_new_tokens,
        }
    else:
        configuration.pop("generation_kwargs", None)
    lines: list[int] = []
    if local is not None:
        numbered, split = local.numbered_rows(), configuration["test_split"]
        lines, rows = [number for number, _ in numbered], [row for _, row in numbered]
        configuration["custom_dataset"] = lambda **_: {split: rows}

    def place(row: int) -> str:
        return f"{name}: row {row} of the data" if local is None else f"{local.path}:{lines[row - 1]}"

    try:
        loaded = TaskManager(include_defaults=False).load([{**configuration, "task": name}])
    except RowError as error:
        raise UserError(error.told(place(error.row), task_name)) from None
    except UserError as error:
        raise UserError(f"{local.path}: {error}" if local is not None else str(error)) from None
    except (OSError, ValueError, RuntimeError) as error:
        if local is not None:
            raise
        raise UserError(
            f"{name}: {configuration['dataset_path']} cannot be had from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); connect, or give a local file with --data"
        ) from None
    task = loaded["tasks"][name]
    task.set_fewshot_seed(seed=0)
    task.build_all_requests()
    return [(place(instance.doc_id + 1), instance) for instance in task.instances]


def requests_of(entry: TaskEntry, items: list[Item], samples_per_item: int, seed: int) -> list[Request]:
    """All requests of a task: long prompts first, the samples of an item together."""
    ordered = sorted(items, key=lambda item: (-len(item.prompt), item.name))
    return [
        Request(entry.name, item, sample, _seed(seed, entry.name, item.name, sample))
        for item in ordered
        for sample in range(samples_per_item)
    ]


def _seed(seed: int, task: str, item: str, sample: int) -> int:
    """31 bits that differ from one sample to the next and are the same in every run."""
    digest = hashlib.sha256(f"{seed} {task} {item} {sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
