# SPDX-License-Identifier: Apache-2.0
"""One point of a study: a real run of deepy.py from the user's base checkpoint, and what it measures.

A finished point has a `result.json` with its fingerprint and is not run again. A killed one is started by the
same command; deepy.py goes on from the checkpoint in the point's own `save`, or begins again where there is
none. Once measured, a point's checkpoints are removed unless they are to be kept: they are the large part."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.checkpointing import folders
from megatron.neox_arguments.errors import UserError
from tools.mixture_parts.settings import Measure, Point, Study, write_text
from tools.quickstart_parts.steps import end_with

ROOT = Path(__file__).resolve().parents[2]
# A run whose parent was killed is told to stop, and saves before it does.
LOCK_WAIT_SECONDS = 120.0
RESULT, LOG, TEXTS = "result.json", "run.log", "measure.jsonl"


class Stopped(Exception):
    """The run was asked to stop, and has saved."""


@dataclass(frozen=True)
class Result:
    """A finished point."""

    point: Point
    value: float
    seconds: float
    """Of the start that finished it."""


def read_result(study: Study, point: Point) -> Result | None:
    """The result of a point; None where it is not finished, or was another run."""
    try:
        fields = json.loads((study.folder(point) / RESULT).read_text(encoding="utf-8"))
        if fields["fingerprint"] != study.fingerprint(point):
            return None
        return Result(point, float(fields["value"]), float(fields["seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_texts(measure: Measure, output: Path) -> None:
    """The documents of the measure as `{"text"}` lines, each made of its fields by the template.

    Raises:
        UserError: the file is broken, or a field of the template is missing.
    """
    if measure.documents is None:
        return
    lines = []
    try:
        content = Path(measure.documents).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--documents={measure.documents}: cannot be read ({error})") from None
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            text = measure.template.format_map(json.loads(line))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f"--documents={measure.documents}:{number}: does not fill --template "
                f"{measure.template!r} ({type(error).__name__}: {error}); name keys that every line has"
            ) from None
        lines.append(json.dumps({"text": text}))
    if not lines:
        raise UserError(f"--documents={measure.documents}: holds nothing; give JSONL")
    write_text(output / TEXTS, "".join(f"{line}\n" for line in lines))


def train_command(study: Study, point: Point, deepy_arguments: Sequence[str]) -> list[str]:
    """The run of a point, as it can be typed."""
    return [
        sys.executable, str(ROOT / "deepy.py"), str(ROOT / "train.py"), *study.arguments(point),
        *deepy_arguments,
    ]  # fmt: skip


def run_point(
    study: Study, point: Point, deepy_arguments: Sequence[str] = (), keep_checkpoints: bool = False
) -> Result:
    """Trains and measures a point, or takes its result.

    Raises:
        UserError: a command failed, or another process works on the point.
        Stopped: the run was asked to stop.
    """
    done = read_result(study, point)
    if done is not None:
        return done
    folder = study.folder(point)
    with _alone(folder) as lock:
        started = time.time()
        save = folder / "save"
        steps = study.base.schedule.train_iters
        if _iteration(save) != steps:
            _run(train_command(study, point, deepy_arguments), folder, f"point {point.number}", lock)
        if _iteration(save) != steps:
            raise Stopped
        value = _measured(study, folder, save, lock)
        if not math.isfinite(value):
            raise UserError(
                f"{study.measure.name}: is {value} for {save}; look at {folder / LOG}. The run is kept: "
                "with what measures it repaired, the same command goes on from here"
            )
        result = Result(point, value, time.time() - started)
        content = {
            "fingerprint": study.fingerprint(point),
            "weights": point.weights,
            "seed": point.seed,
            "measure": study.measure.name,
            "value": value,
            "seconds": round(result.seconds, 1),
        }
        write_text(folder / RESULT, json.dumps(content, indent=1) + "\n")
        if not keep_checkpoints:
            for iteration in folders.iterations_in(save):
                shutil.rmtree(save / folders.step_name(iteration))
            (save / folders.LATEST).unlink(missing_ok=True)
    return result


def _iteration(save: Path) -> int | None:
    newest = folders.find(save) if save.is_dir() else None
    return None if newest is None else folders.iteration_of(newest)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Keeps a second process away from a point; waits for what a killed one has left to end."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another --output") from None
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise UserError(f"{folder}: another process works on this point; wait for its end") from None
        time.sleep(0.2)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _run(command: Sequence[str], folder: Path, what: str, lock: int) -> None:
    """Runs a command with its output in the point's log.

    Raises:
        UserError: it failed. Stopped: Ctrl-C.
    """
    log = folder / LOG
    with open(log, "ab") as file:
        file.write(f"$ {shlex.join(command)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),  # held as long as the command lives, even without us
            preexec_fn=end_with(os.getpid()),  # told to stop when we die, however we die
        )
        try:
            status = process.wait()
        except KeyboardInterrupt:  # the terminal has sent it to the run, too
            process.wait()
            raise Stopped from None
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if status == 130:
        raise Stopped
    if status:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
        raise UserError(
            f"{what}: ended with status {status}; the end of {log}:\n  " + "\n  ".join(tail)
            + "\n  put that right, and the same command goes on from here"
        )  # fmt: skip


def _measured(study: Study, folder: Path, save: Path, lock: int) -> float:
    measure = study.measure
    out = folder / "measure.json"
    out.unlink(missing_ok=True)
    if measure.command is None:
        most = [] if measure.max_documents is None else ["--max-documents", str(measure.max_documents)]
        command = [
            sys.executable, str(ROOT / "tools" / "bits_per_byte.py"), str(save), "--documents",
            f"measure={study.output / TEXTS}", "--max-tokens", str(measure.max_tokens), "--json",
            str(out), *most,
        ]  # fmt: skip
    else:
        places = {
            "checkpoint": str(save.resolve()),
            "point": str(folder.resolve()),
            "json": str(out.resolve()),
        }
        command = [_filled(part, places) for part in shlex.split(measure.command)]
    _run(command, folder, f"measuring {folder}", lock)
    try:
        content = json.loads(out.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--metric-command: left no JSON at {out} ({error}); write it to {{json}} (it runs without a "
            "shell: for > or | give sh -c '…')"
        ) from None
    if measure.command is None:
        return float(content["sources"]["measure"]["bits_per_byte"])
    assert measure.metric is not None
    return value_at(content, measure.metric)


def _filled(part: str, places: dict[str, str]) -> str:
    for name, path in places.items():
        part = part.replace("{" + name + "}", path)
    return part


def value_at(content: Any, path: str) -> float:
    """The number at a path of keys, such as `results/minerva_math/exact_match,none`.

    Raises:
        UserError: there is none.
    """
    found = content
    for name in path.split("/"):
        if not isinstance(found, dict) or name not in found:
            keys = ", ".join(list(found)[:8]) if isinstance(found, dict) else f"a {type(found).__name__}"
            raise UserError(f"--metric={path}: there is no {name!r}; there is {keys}")
        found = found[name]
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise UserError(f"--metric={path}: is {found!r}, not a number")
    return float(found)
