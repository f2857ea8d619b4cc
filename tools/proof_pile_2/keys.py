# SPDX-License-Identifier: Apache-2.0
"""Deduplication over a whole corpus, in memory that does not grow with it.

Pass one writes, for each shard, a file of rows: key, shard, document and a payload, sorted by key. Pass
two takes one stretch of the key space at a time, which lies in one piece in every file, and lets a
`Resolver` say which documents go. Both keep what is finished, as stages do. The result is a list of
numbers for each shard, which the next stage over the same shards leaves out (`Omissions`)."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from megatron.neox_arguments.whole_files import drafted
from tools.proof_pile_2 import outputs
from tools.proof_pile_2.documents import Broken, Document
from tools.proof_pile_2.reports import write_json
from tools.proof_pile_2.shards import Shard
from tools.proof_pile_2.tasks import Progress, run_tasks, stop_if_asked

Rows = npt.NDArray[Any]
"""Structured: `key` (unsigned, 64 bits), `key_low` (the same, less significant), `shard` and `document`
(numbers in the order of the corpus), and `payload` (unsigned, 64 bits)."""

ROW = np.dtype(
    [("key", ">u8"), ("key_low", ">u8"), ("shard", "<u4"), ("document", "<u4"), ("payload", "<u8")]
)
# A part of the key space has about so many bytes of rows; sorting takes a few times as much memory.
PART_BYTES = 64 << 20
_REST = struct.Struct("<IIQ")  # what follows the key in a row


class KeyMaker(Protocol):
    """What documents have in common. Picklable and pure."""

    @property
    def name(self) -> str:
        """Shown in reports."""

    @property
    def version(self) -> str:
        """As a step's."""

    def __call__(self, document: Document) -> Iterable[tuple[bytes, int]]:
        """(16 bytes of key, payload below 2^64) for each key of a document. Keys have to be spread evenly, as
        hashes are."""


class Resolver(Protocol):
    """Decides, among rows with equal keys, which documents go. Picklable and pure."""

    @property
    def version(self) -> str:
        """As a step's."""

    def __call__(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """For rows sorted by key, shard and document, of which no key lies partly elsewhere: whether the
        row's document is left out."""


@dataclass(frozen=True)
class LaterDocuments:
    """Of documents that share a key, all but the first in the order of the corpus go, whether or not the
    first itself is kept. A key that a document holds twice says nothing."""

    version: str = "1"

    def __call__(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Compare each row with the first of its key."""
        first = group_starts(rows)
        owner = rows[first]
        return np.asarray((rows["shard"] != owner["shard"]) | (rows["document"] != owner["document"]))


def group_starts(rows: Rows) -> npt.NDArray[np.int64]:
    """For each of the sorted rows, the index of the first row with its key."""
    if len(rows) == 0:
        return np.zeros(0, np.int64)
    new = np.ones(len(rows), bool)
    new[1:] = (rows["key"][1:] != rows["key"][:-1]) | (rows["key_low"][1:] != rows["key_low"][:-1])
    return np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))


@dataclass(frozen=True)
class DroppedLists:
    """The documents that `find_dropped` found: the `Omissions` of the next stage over the same shards."""

    rule: str
    folder: Path

    def identity(self, shard: str) -> object:
        """A hash of the list."""
        return hashlib.sha256(self._path(shard).read_bytes()).hexdigest()

    def of(self, shard: str) -> frozenset[int]:
        """The numbers of the documents of a shard."""
        return frozenset(np.fromfile(self._path(shard), "<u4").tolist())

    def _path(self, shard: str) -> Path:
        return self.folder / f"{shard}.u4"


@dataclass(frozen=True)
class _KeysTask:
    maker: KeyMaker
    shard: Shard
    number: int
    folder: Path
    fingerprint: str


def _write_keys(task: _KeysTask) -> tuple[int, int]:
    """Pass one for a shard; returns its bytes of input and its number of rows."""
    rows, number = bytearray(), -1
    for item in task.shard.read():
        stop_if_asked()
        if isinstance(item, Broken):
            continue
        number += 1
        for key, payload in task.maker(item):
            rows += key + _REST.pack(task.number, number, payload)
    array = _sorted_by_key(np.frombuffer(rows, ROW))
    with outputs.writing(task.folder):
        _write_array(task.folder / f"{task.shard.name}.rows", array)
        write_json(
            task.folder / f"{task.shard.name}.json", {"fingerprint": task.fingerprint, "rows": len(array)}
        )
    return task.shard.size_bytes, len(array)


def _sorted_by_key(rows: Rows) -> Rows:
    """Rows with equal keys stay in the order in which they stand."""
    native = [rows[name].astype(np.uint64) for name in ("key_low", "key")]
    return rows[np.lexsort(native)]


def _write_array(path: Path, array: Rows) -> None:
    with drafted(path) as draft:
        array.tofile(draft)


_LAST_KEY = (1 << 64) - 1


@dataclass(frozen=True)
class _PartTask:
    """Keys from `low` to `high`, which is left out unless it is the last key there is."""

    resolver: Resolver
    files: tuple[Path, ...]
    low: int
    high: int
    path: Path


def _resolve_part(task: _PartTask) -> int:
    """Pass two for one stretch of the key space: the (shard, document) pairs that go, sorted, to a file."""
    stretches = []
    for file in task.files:
        stop_if_asked()
        if file.stat().st_size:
            mapped = np.memmap(file, ROW, mode="r")
            first, last = np.searchsorted(mapped["key"], np.array([task.low, task.high], np.uint64), "left")
            end = len(mapped) if task.high == _LAST_KEY else int(last)
            stretches.append(np.array(mapped[int(first) : end]))
    rows = np.concatenate(stretches) if stretches else np.zeros(0, ROW)
    rows = _sorted_by_key(rows)  # shards are in their order, and documents within a shard and key
    gone = rows[task.resolver(rows)]
    pairs = np.unique(gone["shard"].astype(np.uint64) << np.uint64(32) | gone["document"].astype(np.uint64))
    with outputs.writing(task.path.parent):
        _write_array(task.path, pairs.astype("<u8"))
    return 1


def find_dropped(
    maker: KeyMaker,
    resolver: Resolver,
    plan: Callable[[], Iterable[Shard]],
    folder: Path,
    rule: str,
    *,
    workers: int = 1,
    part_bytes: int = PART_BYTES,
    log_interval_seconds: float = 5.0,
) -> DroppedLists:
    """Both passes over the shards of `plan`, with all that they write below `folder`. What an earlier run
    finished is kept; nothing in `folder` is an output, so that what does not fit is made anew.

    Errors: `UserError` for an input that is gone, a disk that refuses, a process that dies."""
    with outputs.locked(folder), outputs.writing(folder):
        keys = folder / "keys"
        outputs.remove_partial_files(folder, ("keys", "lists"))
        keys.mkdir(exist_ok=True)
        shards = list(plan())
        tasks = [_KeysTask(maker, shard, number, keys, _keys_fingerprint(maker, shard, number))
                 for number, shard in enumerate(shards)]  # fmt: skip
        _run_keys(tasks, workers, log_interval_seconds)
        content = hashlib.sha256(f"{resolver.version}\n{part_bytes}\n".encode())
        for task in tasks:
            content.update(f"{task.shard.name} {task.fingerprint}\n".encode())
        lists, done = folder / "lists", folder / "lists.json"
        parts = folder / f"parts-{content.hexdigest()[:16]}"
        finished = _is(done, content.hexdigest())
        for other in folder.glob("parts-*"):
            if finished or other != parts:
                shutil.rmtree(other)
        if not finished:
            done.unlink(missing_ok=True)
            _run_parts(tasks, resolver, parts, part_bytes, workers, log_interval_seconds)
            _write_lists(shards, parts, lists)
            write_json(done, {"fingerprint": content.hexdigest()})
            shutil.rmtree(parts)
        return DroppedLists(rule, lists)


def _keys_fingerprint(maker: KeyMaker, shard: Shard, number: int) -> str:
    parts = [maker.name, maker.version, number, shard.name, shard.identity()]
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()


def _is(path: Path, fingerprint: str) -> bool:
    try:
        return bool(orjson.loads(path.read_bytes())["fingerprint"] == fingerprint)
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return False


def _run_keys(tasks: list[_KeysTask], workers: int, log_interval_seconds: float) -> None:
    total_bytes = sum(task.shard.size_bytes for task in tasks)
    name = tasks[0].maker.name if tasks else ""
    progress = Progress(f"{name}: keys", len(tasks), total_bytes, log_interval_seconds)

    def unfinished() -> Iterator[_KeysTask]:
        for task in tasks:
            if _is(task.folder / f"{task.shard.name}.json", task.fingerprint):
                progress.advance(task.shard.size_bytes, already=True)
            else:
                (task.folder / f"{task.shard.name}.json").unlink(missing_ok=True)
                yield task

    for nbytes, _ in run_tasks(_write_keys, unfinished(), workers, progress.show):
        progress.advance(nbytes)


def _run_parts(
    tasks: list[_KeysTask],
    resolver: Resolver,
    parts: Path,
    part_bytes: int,
    workers: int,
    log_interval_seconds: float,
) -> None:
    files = tuple(task.folder / f"{task.shard.name}.rows" for task in tasks)
    total_bytes = sum(file.stat().st_size for file in files)
    number = max(1, -(-total_bytes // part_bytes))
    bounds = [(part << 64) // number for part in range(number)] + [_LAST_KEY]
    parts.mkdir(exist_ok=True)
    progress = Progress("comparing keys", number, total_bytes, log_interval_seconds)
    todo = [
        _PartTask(resolver, files, low, high, parts / f"{part:05}.pairs")
        for part, (low, high) in enumerate(itertools.pairwise(bounds))
    ]
    unfinished = [task for task in todo if not task.path.exists()]
    for _ in range(number - len(unfinished)):
        progress.advance(total_bytes // number, already=True)
    for _ in run_tasks(_resolve_part, unfinished, workers, progress.show):
        progress.advance(total_bytes // number)


def _write_lists(shards: list[Shard], parts: Path, lists: Path) -> None:
    """The parts' pairs, sorted out by shard."""
    lists.mkdir(exist_ok=True)
    files = [file for file in sorted(parts.iterdir()) if file.stat().st_size]
    opened = [np.memmap(file, "<u8", mode="r") for file in files]
    for number, shard in enumerate(shards):
        bounds = np.array([number << 32, (number + 1) << 32], np.uint64)
        found = [pairs[slice(*np.searchsorted(pairs, bounds, "left"))] for pairs in opened]
        numbers = (
            np.unique(np.concatenate(found)) & np.uint64(0xFFFFFFFF) if found else np.zeros(0, np.uint64)
        )
        _write_array(lists / f"{shard.name}.u4", numbers.astype("<u4"))
