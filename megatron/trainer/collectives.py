# SPDX-License-Identifier: Apache-2.0
"""Who waits for whom in which collective, from torch's flight recorder, which works with NCCL and with gloo.

Every collective of a process group has a number. A rank whose last one has a higher number than that of
another rank of the group waits for the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Waiting:
    """The collective that a rank is in, or was in last."""

    group: str
    number: int
    name: str  # such as gloo:all_reduce
    ranks: tuple[int, ...]  # of the group


@dataclass(frozen=True)
class Position:
    """Where a rank is: its collective, and how far it is in each of its groups."""

    waiting: Waiting | None
    numbers: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return {"waiting": None if self.waiting is None else vars(self.waiting), "numbers": self.numbers}

    @staticmethod
    def of_json(content: Mapping[str, Any]) -> Position:
        waiting = content["waiting"]
        if waiting is not None:
            waiting = Waiting(**{**waiting, "ranks": tuple(waiting["ranks"])})
        return Position(waiting, dict(content["numbers"]))


def position_here() -> Position:
    """This rank's, as torch recorded it; from any thread. Unknown where this torch has no recorder."""
    from torch._C import _distributed_c10d

    # A torch with NCCL has a recorder of its own for it.
    names = ("_dump_nccl_trace_json", "_dump_fr_trace_json")
    dumps: list[Any] = [getattr(_distributed_c10d, name, None) for name in names]
    positions = [position_of(json.loads(dump())) for dump in dumps if dump is not None]
    return next((found for found in positions if found.waiting is not None), Position(None, {}))


def position_of(trace: Mapping[str, Any]) -> Position:
    """The position that a dump of the flight recorder tells.

    With NCCL the last collective may be queued behind one that does not end; that one counts.
    """
    members = {
        name: tuple(json.loads(config["ranks"])) for name, config in trace.get("pg_config", {}).items()
    }
    numbers: dict[str, int] = {}
    last: Mapping[str, Any] | None = None
    for entry in sorted(trace.get("entries", []), key=lambda entry: entry["time_created_ns"]):
        if entry.get("is_p2p"):
            continue
        last = entry
        numbers[entry["process_group"][0]] = entry["collective_seq_id"]
        if entry["profiling_name"].startswith("nccl") and entry["state"] != "completed":
            break
    if last is None:
        return Position(None, numbers)
    group = last["process_group"][0]
    waiting = Waiting(group, last["collective_seq_id"], last["profiling_name"], members.get(group, ()))
    return Position(waiting, numbers)


def waited_for(positions: Mapping[int, Position | None]) -> dict[int, list[int]]:
    """For each rank that others wait for, and that waits for none itself: those others.

    A rank whose position is None has not answered, and is waited for wherever it is a member.
    """
    waits = {rank: _missing(rank, position, positions) for rank, position in positions.items()}
    blamed: dict[int, list[int]] = {}
    for rank, others in waits.items():
        for other in others:
            if not waits[other]:
                blamed.setdefault(other, []).append(rank)
    return blamed


def _missing(rank: int, position: Position | None, positions: Mapping[int, Position | None]) -> list[int]:
    if position is None or position.waiting is None:
        return []
    waiting, missing = position.waiting, []
    for other in waiting.ranks:
        if other == rank or other not in positions:
            continue
        at = positions[other]
        if at is None or at.numbers.get(waiting.group, 0) < waiting.number:
            missing.append(other)
    return missing
