# SPDX-License-Identifier: Apache-2.0
"""Names on disk: `SAVE/global_step500/` is one checkpoint, `SAVE/latest` names the newest complete one.

A checkpoint is written under a name that starts with a dot and renamed when it is whole, and `latest`
is replaced in one step: neither can be seen half written.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.whole_files import draft_of, drafted, sync, write_whole

LATEST = "latest"
_SMALL_FILES = (LATEST, "attempt")  # the second is of trainer/fence.py
_STEP = re.compile(r"^global_step(\d+)$")
_REMNANT = re.compile(r"^\.global_step\d+\.(attempt\d+\.)?(unfinished|removed|download)$")


def step_name(iteration: int) -> str:
    return f"global_step{iteration}"


def unfinished_name(iteration: int, attempt: int = 0) -> str:
    """`attempt` keeps what two attempts at a run write apart; 0 where there is one alone."""
    return f".{step_name(iteration)}." + (f"attempt{attempt}." if attempt else "") + "unfinished"


def download_name(iteration: int) -> str:
    """A checkpoint that is being downloaded; what is there is gone on with."""
    return f".{step_name(iteration)}.download"


def removed_path(folder: Path) -> Path:
    """The name of a checkpoint that is on its way out."""
    return folder.with_name(f".{folder.name}.removed")


def iteration_of(folder: Path) -> int:
    """The iteration of a checkpoint's own folder."""
    match = _STEP.match(folder.name)
    assert match is not None, folder
    return int(match.group(1))


def iteration_named(name: str) -> int | None:
    """The iteration of a checkpoint's name; None for any other."""
    match = _STEP.match(name)
    return int(match.group(1)) if match is not None else None


def iterations_in(save: Path) -> list[int]:
    """Iterations with a checkpoint folder, ascending."""
    if not save.is_dir():
        return []
    found = [match for entry in save.iterdir() if (match := _STEP.match(entry.name)) and entry.is_dir()]
    return sorted(int(match.group(1)) for match in found)


def choose_from(save: Path | str, iterations: list[int]) -> str:
    """A remedy: how to take one of these checkpoints."""
    if not iterations:
        return "there is no other checkpoint in its place"
    return (
        f"choose one of {', '.join(map(str, iterations[-8:]))}: in a run with --set load={save} --set "
        f"iteration={iterations[-1]}, elsewhere with --iteration {iterations[-1]}"
    )


def remove_unfinished(save: Path) -> None:
    """Removes what a killed run left half written, or half removed."""
    for entry in save.iterdir():
        if _REMNANT.match(entry.name):
            shutil.rmtree(entry, ignore_errors=True)
        elif draft_of(entry.name) in _SMALL_FILES:
            entry.unlink(missing_ok=True)


def mark_latest(save: Path, iteration: int) -> None:
    write_whole(save / LATEST, step_name(iteration) + "\n")


def put_in_place(unfinished: Path, final: Path) -> None:
    """Gives a whole checkpoint its name, and moves `latest` to it.

    Raises:
        OSError: `latest` cannot be written; everything is as it was.
    """
    with drafted(final.with_name(LATEST)) as draft:
        draft.write_text(final.name + "\n")  # first, because it needs space: the rest are renames
        sync(draft)
        if final.exists():
            final.rename(removed_path(final))
        unfinished.rename(final)
    sync(final.parent)
    shutil.rmtree(removed_path(final), ignore_errors=True)


def undo_half_replaced(save: Path) -> Path | None:
    """Gives a checkpoint its name back where a run was killed between the two renames of its replacement.

    Returns the checkpoint, or None where there is nothing of the kind.
    """
    latest = save / LATEST
    if not latest.is_file():
        return None
    named = latest.read_text(encoding="utf-8", errors="replace").strip()
    if _STEP.match(named) is None or (save / named).exists() or not removed_path(save / named).is_dir():
        return None
    return removed_path(save / named).rename(save / named)


def keep_newest(
    save: Path,
    count: int,
    is_milestone: Callable[[int], bool] = lambda _: False,
    in_use: Path | None = None,
) -> list[Path]:
    """Removes all but the `count` newest checkpoints up to the one that `latest` names; returns what went.

    Milestones are neither counted nor removed, and nor are checkpoints after `latest`: those are of another
    course of the run, from which somebody went back. `in_use` is not removed.
    """
    latest = find(save)
    if latest is None:
        return []
    counted = [
        step for step in iterations_in(save) if step <= iteration_of(latest) and not is_milestone(step)
    ]
    removed = []
    for iteration in counted[:-count]:
        folder = save / step_name(iteration)
        if folder == in_use:
            continue
        # Renamed first: a folder with a checkpoint's name is whole.
        doomed = folder.rename(removed_path(folder))
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
                + choose_from(load, there)
            )
        return None
    named = latest.read_text(encoding="utf-8", errors="replace").strip()
    match = _STEP.match(named)
    if match is None or int(match.group(1)) not in there:
        raise UserError(
            f"load={load}: `latest` names {named!r}, which is not there; {choose_from(load, there)}"
        )
    return load / step_name(int(match.group(1)))
