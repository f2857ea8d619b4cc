# SPDX-License-Identifier: Apache-2.0
"""Facts in any order become items in a fixed order: a file sorts them, so memory does not grow."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from megatron.neox_arguments.errors import UserError
from tools.explorer_parts.records import PROOF, SAMPLE, VERDICT, VOTE, Fact, problem_id

_SCHEMA = """
    PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE; PRAGMA temp_store=FILE;
    CREATE TABLE items (id INTEGER PRIMARY KEY, task TEXT, item TEXT, sort TEXT, problem BLOB, file TEXT,
        UNIQUE (task, item));
    CREATE TABLE facts (item INTEGER, model INTEGER, part INTEGER, sample INTEGER, fields TEXT, file TEXT,
        PRIMARY KEY (item, model, part, sample)) WITHOUT ROWID;
"""


@dataclass
class Run:
    """What one model made of an item: samples, by their number, with a vote, or a proof."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    vote: dict[str, Any] | None = None
    proof: dict[str, Any] | None = None


@dataclass
class Item:
    """An item with the runs of each model that has any, by the model's number."""

    task: str
    id: str
    runs: dict[int, Run]


class Gathering:
    """Facts on the disk. `models` are the names of the models, in the order they came in."""

    def __init__(self, file: Path) -> None:
        self._database = sqlite3.connect(file)
        self._database.executescript(_SCHEMA)
        self.models: list[str] = []

    def add_model(self, name: str) -> int:
        """The number of a model; a new one goes to the end."""
        if name not in self.models:
            self.models.append(name)
        return self.models.index(name)

    def add(self, fact: Fact) -> None:
        """Keeps a fact.

        Raises:
            UserError: the item has another problem in another file, or the same sample another text.
        """
        model = self.add_model(_sound(fact.model))
        item = self._item(fact)
        sample = fact.sample
        if sample is None:
            query = "SELECT COALESCE(MAX(sample) + 1, 0) FROM facts WHERE item = ? AND model = ? AND part = ?"
            (sample,) = self._database.execute(query, (item, model, fact.part)).fetchone()
        key = (item, model, fact.part, sample)
        fields = json.dumps(fact.fields, separators=(",", ":"))
        try:
            self._database.execute("INSERT INTO facts VALUES (?, ?, ?, ?, ?, ?)", (*key, fields, fact.where))
        except sqlite3.IntegrityError:
            query = "SELECT fields, file FROM facts WHERE item = ? AND model = ? AND part = ? AND sample = ?"
            known, where = self._database.execute(query, key).fetchone()
            if known != fields:
                raise UserError(
                    f"{fact.where}: item={fact.item} sample={sample} of {fact.model}: {where} differs; "
                    "remove one of the two, or name the models apart: NAME=PATH"
                ) from None

    def _item(self, fact: Fact) -> int:
        """The number of a fact's item, which is made where it is new."""
        name = _sound(problem_id(fact.problem or "") if fact.item is None else fact.item)
        task = _sound(fact.task)
        digest = (
            None if fact.problem is None else hashlib.sha256(fact.problem.encode("utf-8", "replace")).digest()
        )
        query = "SELECT id, problem, file FROM items WHERE task = ? AND item = ?"
        found = self._database.execute(query, (task, name)).fetchone()
        if found is None:
            (count,) = (
                self._database.execute("SELECT COUNT(*) FROM items").fetchone() if fact.item is None else (0,)
            )
            sort = f"{count:020}" if fact.item is None else _natural(name)
            insert = "INSERT INTO items (task, item, sort, problem, file) VALUES (?, ?, ?, ?, ?)"
            return int(self._database.execute(insert, (task, name, sort, digest, fact.where)).lastrowid or 0)
        number, known, where = found
        if digest is not None and known is None:
            self._database.execute("UPDATE items SET problem = ? WHERE id = ?", (digest, number))
        elif digest is not None and known != digest and fact.item is not None:
            raise UserError(
                f"{fact.where}: item={name} of {task}: has another problem in {where}; give these files to "
                "explorers of their own, or the items ids of their own"
            )
        return int(number)

    def task_kinds(self) -> dict[str, str]:
        """task → proofs or samples"""
        query = "SELECT task, MAX(part = ?) FROM items JOIN facts ON items.id = facts.item GROUP BY task"
        return {
            task: "proofs" if has_proofs else "samples"
            for task, has_proofs in self._database.execute(query, (PROOF,))
        }

    def items(self) -> Iterator[Item]:
        """The items by task and id, numbers in ids as numbers; those without an id in the order they came in.

        Raises:
            UserError: a verdict or a vote is of a sample that is not there.
        """
        query = "SELECT id, task, item FROM items ORDER BY task, sort, item"
        facts = (
            "SELECT model, part, sample, fields, file FROM facts WHERE item = ? ORDER BY model, part, sample"
        )
        for number, task, name in self._database.execute(query):
            runs = {
                model: _run(list(rows), name)
                for model, rows in groupby(self._database.execute(facts, (number,)), key=lambda row: row[0])
            }
            yield Item(task, name, runs)

    def close(self) -> None:
        """Lets go of the file."""
        self._database.close()


def _run(rows: list[tuple[int, int, int, str, str]], item: str) -> Run:
    run, by_number = Run(), {}
    for _, part, sample, text, where in rows:  # in the order of parts: samples come before their verdicts
        fields = json.loads(text)
        if part == SAMPLE:
            by_number[sample] = {"n": sample, **fields}
        elif part == VERDICT:
            if sample not in by_number:
                raise UserError(
                    f"{where}: item={item} sample={sample}: has no sample; remove the line or score again"
                )
            by_number[sample] |= fields
        elif part == VOTE:
            if not by_number:
                raise UserError(f"{where}: item={item}: has no sample; remove the line or score again")
            run.vote = fields
        else:
            run.proof = fields
    run.samples = list(by_number.values())
    return run


def _natural(name: str) -> str:
    """Sorts `item 2` before `item 10`."""
    return re.sub(r"[0-9]+", lambda digits: digits[0].zfill(20), name)


def _sound(name: str) -> str:
    """Halves of surrogate pairs, which no file can hold, become `?`."""
    return name.encode("utf-8", "replace").decode()
