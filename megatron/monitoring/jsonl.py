# SPDX-License-Identifier: Apache-2.0
"""The run's own record, `metrics.jsonl`: one JSON object a line, appended over all resumes, and its reader.

Every line has `kind` (`step`, `evaluation` or an event's kind), `iteration` where it belongs to one, and
`time` (Unix seconds). A number that is not finite is written as null. A resumed run writes `start` with the
iteration it goes on from; what an earlier attempt wrote beyond that iteration stays in the file and is left
out by the reader.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron.monitoring.metrics import EvalReport, Sink, StepReport
from megatron.neox_arguments.errors import UserError

FILE_NAME = "metrics.jsonl"


class JsonlSink(Sink):
    """Appends to `path`, each line with one write, so that a killed run leaves whole lines.

    Raises:
        UserError: the file cannot be opened for appending.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open for the length of the run
            self._torn = _ends_within_line(path)
        except OSError as error:
            raise UserError(
                f"log_dir={path.parent}: {error.strerror}; choose a folder that can be written with "
                "--set log_dir=…"
            ) from error

    def step(self, report: StepReport) -> None:
        self._append("step", asdict(report))

    def evaluation(self, report: EvalReport) -> None:
        self._append(
            "evaluation",
            {"iteration": report.iteration, "split": report.split, "losses": dict(report.losses)},
        )

    def event(self, kind: str, fields: Mapping[str, object]) -> None:
        self._append(kind, dict(fields))

    def close(self) -> None:
        self._file.close()

    def _append(self, kind: str, fields: dict[str, object]) -> None:
        record = {"kind": kind, **_finite(fields), "time": round(time.time(), 3)}
        line = json.dumps(record, ensure_ascii=False, allow_nan=False, default=str).encode() + b"\n"
        if self._torn:  # a line was cut short by a kill or a full disk: end it first
            line = b"\n" + line
        self._torn = True
        if self._file.write(line) != len(line):
            raise OSError("the disk is full: a line was written in part")
        self._torn = False


def _ends_within_line(path: Path) -> bool:
    with open(path, "rb") as existing:
        if existing.seek(0, os.SEEK_END) == 0:
            return False
        existing.seek(-1, os.SEEK_END)
        return existing.read(1) != b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


@dataclass
class RunHistory:
    """A run as it stands, attempts merged: for each iteration what was written last."""

    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    evaluations: dict[tuple[str, int], dict[str, float | None]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    broken_lines: int = 0

    def add(self, record: dict[str, Any]) -> None:
        """Takes one line's object; later ones win over earlier ones of the same iteration."""
        kind = record["kind"]
        if kind == "step":
            self.steps[int(record["iteration"])] = record
        elif kind == "evaluation":
            self.evaluations[str(record["split"]), int(record["iteration"])] = dict(record["losses"])
        else:
            if kind == "start" and isinstance(record.get("iteration"), int):
                self._forget_after(record["iteration"])
            self.events.append(record)

    def _forget_after(self, iteration: int) -> None:
        self.steps = {at: step for at, step in self.steps.items() if at <= iteration}
        self.evaluations = {key: losses for key, losses in self.evaluations.items() if key[1] <= iteration}

    def losses_by_source(self, split: str) -> dict[str, list[tuple[int, float]]]:
        """(iteration, loss) of each source of `split`, in order; values that were not finite are left out."""
        series: dict[str, list[tuple[int, float]]] = {}
        for (of_split, iteration), losses in sorted(self.evaluations.items()):
            if of_split == split:
                for source, loss in losses.items():
                    if loss is not None:
                        series.setdefault(source, []).append((iteration, loss))
        return series


def read_history(path: Path) -> RunHistory:
    """Reads a run's `metrics.jsonl`; lines that are cut short are counted, not shown.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    history = RunHistory()
    try:
        with open(path, "rb") as file:
            for line in file:
                try:
                    history.add(json.loads(line))
                except (ValueError, KeyError, TypeError):
                    history.broken_lines += bool(line.strip())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the folder of a run that has {FILE_NAME}") from error
    return history
