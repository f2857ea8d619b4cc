# SPDX-License-Identifier: Apache-2.0
"""Accuracy of a model on test items with hits and without, by level: the table by which Llemma's authors
judge whether what a model has seen made it better (Llemma, arXiv:2310.10631, section 3.5).

Intervals are Wilson's score intervals at 95% (E. B. Wilson, 1927, "Probable inference, the law of succession,
and statistical inference"), which hold for few items and for accuracies near 0 and 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from eval_tasks.measures.intervals import wilson
from eval_tasks.results.samples import iterate_samples, samples_file
from megatron.neox_arguments.errors import UserError
from tools.overlap_parts.items import Item

# Where a result says whether it is right: ours, then lm-eval's metrics of tasks with one answer.
CORRECT_KEYS = ("correct", "exact_match", "exact_match,none", "acc", "is_correct")
# A verdict of evaluate.py has the texts of its item under these names, whatever the test set calls them.
EVALUATED = "evaluate.py"
EVALUATED_TEXTS = ("problem", "reference")
ID_KEYS = ("doc_id", "id", "item", "index")


@dataclass(frozen=True)
class Share:
    """`right` of `of`, with the bounds of its interval; no bounds of nothing."""

    right: int
    of: int

    @property
    def accuracy(self) -> float | None:
        return self.right / self.of if self.of else None

    @property
    def interval(self) -> tuple[float, float] | None:
        return wilson(self.right, self.of) if self.of else None


@dataclass(frozen=True)
class Row:
    """One level of the table."""

    level: str
    with_hits: Share
    without_hits: Share


@dataclass(frozen=True)
class Table:
    """The rows, the last over all levels, and what could not be put into it."""

    rows: list[Row]
    results: int
    unmatched_results: int
    items_without_result: int

    def as_json(self) -> dict[str, Any]:
        """For the JSON report."""
        rows = [
            {
                "level": row.level,
                **{
                    name: {**asdict(share), "accuracy": share.accuracy, "wilson_95": share.interval}
                    for name, share in (("with_hits", row.with_hits), ("without_hits", row.without_hits))
                },
            }
            for row in self.rows
        ]
        return {**asdict(self), "rows": rows, "interval": "Wilson score, 95%"}


def table_of(
    files: Sequence[Path], items: Sequence[Item], key: str, level_key: str, metric: str | None, hit: set[Any]
) -> Table:
    """Joins results with items, by the item's text where a result has it, else by its id.

    `hit` holds the ids of the items with hits. A result counts as often as it stands there.

    Raises:
        UserError: a file cannot be read, or no result belongs to any item.
    """
    by_text = {" ".join(item.text.split()): item for item in items}
    by_id: dict[Any, Item] = {item.id: item for item in items}
    counts: dict[str, list[int]] = {}
    seen: set[Any] = set()
    results = unmatched = 0
    for where, fields in _results(files):
        results += 1
        item = _item_of(fields, key, by_text, by_id)
        if item is None:
            unmatched += 1
            continue
        seen.add(item.id)
        level = _nested(fields, level_key)
        level = item.level if level is None else str(level)
        of_level = counts.setdefault("all items" if level is None else level, [0, 0, 0, 0])
        at = 0 if item.id in hit else 2
        of_level[at] += _is_right(fields, metric, where)
        of_level[at + 1] += 1
    if results == unmatched:
        raise UserError(
            f"--results={files[0]}: none of its {results} results belongs to an item of --test; give the "
            f"results of the same test set, with the text under {key!r} or the item's id under "
            f"{', '.join(ID_KEYS)}"
        )
    rows = [_row(level, counts[level]) for level in sorted(counts)]
    if list(counts) != ["all items"]:
        rows.append(_row("all items", [sum(column) for column in zip(*counts.values(), strict=True)]))
    return Table(rows, results, unmatched, len(items) - len(seen))


def _row(level: str, counts: Sequence[int]) -> Row:
    return Row(level, Share(counts[0], counts[1]), Share(counts[2], counts[3]))


def _results(files: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in files:
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise UserError(f"--results={path}: cannot be read ({error.strerror}); give JSONL") from None
        about = _evaluated_items(path)
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                fields = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise UserError(f"--results={path}:{number}: is not JSON ({error.msg}); repair it") from None
            if not isinstance(fields, dict):
                raise UserError(f"--results={path}:{number}: is not a JSON object; give one a line")
            yield f"{path}:{number}", {**_of_item(about, fields), **fields}


def _evaluated_items(path: Path) -> dict[str, dict[str, Any]]:
    """What evaluate.py keeps of each item, in `samples_<task>.jsonl` beside its verdicts; else nothing."""
    task = path.stem.removeprefix("verdicts_")
    samples = samples_file(path.parent, task)
    if task == path.stem or not samples.is_file():
        return {}
    return {
        sample.item: {
            EVALUATED: True,
            "problem": sample.problem,
            "reference": sample.reference,
            "level": sample.level,
        }
        for sample in iterate_samples(samples)
    }


def _of_item(about: dict[str, dict[str, Any]], fields: dict[str, Any]) -> dict[str, Any]:
    item = fields.get("item")
    return about.get(item, {}) if isinstance(item, str) else {}


def _nested(fields: dict[str, Any], key: str) -> Any:
    """A field of a result, or of the document that lm-eval keeps in it."""
    if fields.get(key) is not None:
        return fields[key]
    document = fields.get("doc")
    return document.get(key) if isinstance(document, dict) else None


def _item_of(
    fields: dict[str, Any], key: str, by_text: dict[str, Item], by_id: dict[Any, Item]
) -> Item | None:
    keys = (key, *EVALUATED_TEXTS) if EVALUATED in fields else (key,)
    texts = [text for key in keys if isinstance(text := _nested(fields, key), str)]
    if texts:
        found = (by_text.get(" ".join(text.split())) for text in texts)
        return next((item for item in found if item is not None), None)
    for name in ID_KEYS:
        value = fields.get(name)
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            return by_id.get(value)
    return None


def _is_right(fields: dict[str, Any], metric: str | None, where: str) -> bool:
    for name in CORRECT_KEYS if metric is None else (metric,):
        value = fields.get(name)
        if value in (0, 1):  # True and False too
            return bool(value)
    wanted = " or ".join(CORRECT_KEYS if metric is None else (metric,))
    raise UserError(f"--results={where}: has no {wanted} that is true, false, 0 or 1; name it with --metric")
