# SPDX-License-Identifier: Apache-2.0
"""Two results folders against each other, item by item."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eval_tasks.measures.comparison import Comparison, compare, compare_ratios
from eval_tasks.results.samples import (
    Sample,
    iterate_samples,
    natural_order,
    problem_digest,
    read_verdicts,
    read_votes,
    samples_file,
    tasks_in,
    verdicts_file,
    votes_file,
)
from eval_tasks.results.tables import NO_SHARES, markdown_table
from eval_tasks.results.task_table import task_named
from megatron.neox_arguments.errors import UserError

_LEGEND = (
    "Shares in %. Difference: second minus first, with its paired bootstrap interval at 95%, where items "
    "differ from each other in it; p: McNemar's "
    "exact test on the items that one of both alone has right."
)


@dataclass(frozen=True)
class Row:
    """One measure of one task; `left_out` items have samples in one of the folders alone."""

    task: str
    measure: str
    comparison: Comparison
    left_out: int


def compare_folders(first: Path, second: Path) -> list[Row]:
    """Every measure that both folders have: accuracy, votes, bits per byte.

    Raises:
        UserError: they share no task or no item, one has no verdicts yet, or an item is another problem
        there.
    """
    shared = [task for task in tasks_in(first) if task in tasks_in(second)]
    if not shared:
        raise UserError(
            f"--compare {first} {second}: share no task ({', '.join(tasks_in(first)) or 'none'} and "
            f"{', '.join(tasks_in(second)) or 'none'}); measure both on the same tasks"
        )
    rows: list[Row] = []
    for task in shared:
        sides = [_problems(folder, task) for folder in (first, second)]
        common = sorted(sides[0].keys() & sides[1].keys(), key=natural_order)
        for item in common:
            if sides[0][item] != sides[1][item]:
                raise UserError(
                    f"--compare {first} {second}: {task}: item {item} is not the same problem in both; "
                    "measure both on the same data"
                )
        if not common:
            raise UserError(
                f"--compare {first} {second}: {task}: share no item; measure both on the same data"
            )
        left_out = len(sides[0].keys() ^ sides[1].keys())
        if task_named(task).is_likelihood:
            found = {"bits_per_byte": _bits(first, second, task, common)}
        else:
            found = _answers(first, second, task, common)
        rows += [Row(task, measure, comparison, left_out) for measure, comparison in found.items()]
    return rows


def comparison_markdown(first: Path, second: Path, rows: list[Row]) -> str:
    """The rows as a table, with names of the folders."""
    head = [
        "task",
        "measure",
        "items",
        str(first),
        str(second),
        "difference",
        "only first",
        "only second",
        "p",
    ]
    cells = []
    for row in rows:
        found = row.comparison
        share = row.measure not in NO_SHARES
        factor, form = (100, "{:.1f}") if share else (1, "{:.4f}")
        values = [form.format(factor * value) for value in (found.first, found.second)]
        low, high = (
            f"{form.format(factor * bound)}" for bound in (found.difference.low, found.difference.high)
        )
        difference = ("{:+.1f}" if share else "{:+.4f}").format(factor * found.difference.value)
        discordant = ["" if each is None else str(each) for each in (found.only_first, found.only_second)]
        p_value = "" if found.p_value is None else f"{found.p_value:.2g}"
        cells.append(
            [
                row.task,
                row.measure,
                f"{found.items:,}",
                *values,
                difference if found.difference.method == "none" else f"{difference} [{low}, {high}]",
                *discordant,
                p_value,
            ]
        )
    lines = markdown_table(head, cells)
    lines += ["", _LEGEND]
    if any(row.comparison.p_value is None and row.measure not in NO_SHARES for row in rows):
        lines.append(
            "Without p: items have several samples, which are no items one by one; the vote, where there is "
            "one, has it."
        )
    left_out = {row.task: row.left_out for row in rows if row.left_out}
    lines += [
        f"{task}: {count:,} items left out, which only one folder has." for task, count in left_out.items()
    ]
    return "\n".join(lines)


def _problems(folder: Path, task: str) -> dict[str, bytes]:
    """A digest of problem and reference of each item."""
    return {
        sample.item: problem_digest(sample) for sample in iterate_samples(samples_file(folder, task), task)
    }


def _answers(first: Path, second: Path, task: str, common: list[str]) -> dict[str, Comparison]:
    shares, others = _shares(first, task), _shares(second, task)
    found = {"accuracy": compare([shares[item] for item in common], [others[item] for item in common])}
    if any(votes_file(folder, task).is_file() for folder in (first, second)):
        votes, other_votes = _votes(first, task, shares), _votes(second, task, others)
        found["majority vote"] = compare(
            [votes[item] for item in common], [other_votes[item] for item in common]
        )
    return found


def _votes(folder: Path, task: str, shares: dict[str, float]) -> dict[str, float]:
    """1 for each item whose vote is right; of one sample an item, the vote is that sample."""
    path = votes_file(folder, task)
    if not path.is_file():
        return shares
    return {item: float(vote.correct) for item, vote in read_votes(path).items()}


def _shares(folder: Path, task: str) -> dict[str, float]:
    path = verdicts_file(folder, task)
    if not path.is_file():
        raise UserError(f"{path}: is not there; make it with evaluate.py --rescore {folder}")
    verdicts: dict[str, list[bool]] = {}
    for verdict in read_verdicts(path).values():
        verdicts.setdefault(verdict.item, []).append(verdict.correct)
    return {item: sum(right) / len(right) for item, right in verdicts.items()}


def _bits(first: Path, second: Path, task: str, common: list[str]) -> Comparison:
    sides = [
        {sample.item: sample for sample in iterate_samples(samples_file(folder, task), task)}
        for folder in (first, second)
    ]
    bits = [[_bits_of(side, item, task) for item in common] for side in sides]
    lengths = [[float(side[item].bytes or 0) for item in common] for side in sides]
    return compare_ratios(bits[0], bits[1], lengths[0], lengths[1])


def _bits_of(side: Mapping[str, Sample], item: str, task: str) -> float:
    loglikelihood = side[item].loglikelihood
    if loglikelihood is None:
        raise UserError(f"task={task} item={item}: has no finite loglikelihood; look at the model")
    return -loglikelihood / math.log(2)
