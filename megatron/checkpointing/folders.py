# SPDX-License-Identifier: Apache-2.0
"""Names on disk: `SAVE/global_step500/` is one checkpoint, `SAVE/latest` names the newest complete one.

A checkpoint is written under a name that starts with a dot and renamed when it is whole, and `latest`
is replaced in one step: neither can be seen half written.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from megatron.neox_arguments.errors import UserError

LATEST = "latest"
_STEP = re.compile(r"^global_step(\d+)$")


def step_name(iteration: int) -> str:
    return f"global_step{iteration}"


def unfinished_name(iteration: int) -> str:
    return f".{step_name(iteration)}.unfinished"


def iterations_in(save: Path) -> list[int]:
    """Iterations with a checkpoint folder, ascending."""
    if not save.is_dir():
        return []
    found = [match for entry in save.iterdir() if (match := _STEP.match(entry.name)) and entry.is_dir()]
    return sorted(int(match.group(1)) for match in found)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a small file in one step, and only once its bytes are on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def mark_latest(save: Path, iteration: int) -> None:
    write_atomically(save / LATEST, step_name(iteration) + "\n")


def keep_newest(save: Path, count: int) -> list[Path]:
    """Removes all but the `count` newest checkpoints, never what `latest` names; returns what went."""
    latest = find(save)
    removed = []
    for iteration in iterations_in(save)[:-count]:
        folder = save / step_name(iteration)
        if folder != latest:
            # Renamed first: a folder with a checkpoint's name is whole.
            doomed = folder.rename(save / f".{folder.name}.removed")
            shutil.rmtree(doomed, ignore_errors=True)
            removed.append(folder)
    return removed


def find(load: Path, iteration: int | None = None) -> Path | None:
    """The folder of the checkpoint to load from `load`, or None where there is none yet.

    `load` is a run's folder (with `latest`) or one checkpoint's own folder. `iteration` picks one.

    Raises:
        UserError: `iteration`, or what `latest` names, is not there.
    """
    if _STEP.match(load.name) and (load / "checkpoint.json").is_file():
        return load
    there = iterations_in(load)
    if iteration is not None:
        if iteration not in there:
            raise UserError(
                f"iteration={iteration}: {load} has no {step_name(iteration)}; it has "
                f"{', '.join(map(str, there)) or 'none'}"
            )
        return load / step_name(iteration)
    latest = load / LATEST
    if not latest.is_file():
        if there:
            raise UserError(
                f"load={load}: the file `latest` is missing beside global_step{there[-1]}; "
                f"choose one with iteration: {there[-1]}"
            )
        return None
    named = latest.read_text(encoding="utf-8", errors="replace").strip()
    match = _STEP.match(named)
    if match is None or int(match.group(1)) not in there:
        raise UserError(
            f"load={load}: `latest` names {named!r}, which is not there; "
            f"choose one of {', '.join(map(str, there)) or 'none'} with iteration: N"
        )
    return load / step_name(int(match.group(1)))
