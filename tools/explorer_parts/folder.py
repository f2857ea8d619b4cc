# SPDX-License-Identifier: Apache-2.0
"""The output folder: made beside its place, moved there whole, and put over nothing but an explorer."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.whole_files import sync, write_whole

MARK = "explorer.json"
MADE_BY = "tools/explorer.py"
PARTS = Path(__file__).parent


def check(output: Path, overwrite: bool) -> None:
    """Refuses an output folder whose content would be lost.

    Raises:
        UserError: the folder holds something that is not an explorer, or an explorer without `overwrite`.
    """
    if not output.exists() and not output.is_symlink():
        return
    if output.is_symlink():
        raise UserError(
            f"--output={output}: is a link, whose place a folder would take; give the folder it leads to "
            f"({os.path.realpath(output)})"
        )
    if not output.is_dir():
        raise UserError(f"--output={output}: is no folder; choose another name")
    if os.path.ismount(output):
        raise UserError(
            f"--output={output}: is a mount point, which no other folder can take the place of; give a "
            f"folder in it ({output / 'explorer'})"
        )
    there = {path.relative_to(output).as_posix() for path in output.rglob("*") if not path.is_dir()}
    if not there:
        return
    strangers = sorted(there - _written(output))
    if strangers:
        raise UserError(
            f"--output={output}: holds {strangers[0]}, which no explorer wrote; choose another folder"
        )
    if not overwrite:
        raise UserError(f"--output={output}: holds an explorer already; add --overwrite to replace it")


def _written(output: Path) -> set[str]:
    """The files an explorer wrote there, by its own list."""
    try:
        mark = json.loads((output / MARK).read_bytes())
        return {MARK, *mark["files"]} if mark["made_by"] == MADE_BY else set()
    except (OSError, ValueError, TypeError, KeyError):
        return set()


@contextlib.contextmanager
def drafted(output: Path) -> Iterator[Path]:
    """A hidden folder beside `output` for the block to fill; after the block it takes the name, and what was
    there before is removed. What a killed run left is put right first.

    Raises:
        UserError: the folder cannot be written, or another explorer is being written there.
    """
    output = output.absolute()
    draft, old = (output.with_name(f".{output.name}.{word}") for word in ("draft", "old"))
    with _as_user_errors(output), _sole_writer(draft, output):
        if old.exists() and not output.exists():  # killed between the two renames below
            old.rename(output)
        elif old.exists():  # killed after them
            shutil.rmtree(old)
        _empty(draft)
        try:
            yield draft
            write_mark(draft)
            if output.exists():
                output.rename(old)
            draft.rename(output)
            sync(output.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _as_user_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--output={output}: cannot be written ({error.strerror}); make room or choose another folder"
        ) from None


@contextlib.contextmanager
def _sole_writer(draft: Path, output: Path) -> Iterator[None]:
    """Makes the draft and holds it; the lock is on the folder itself, so that none is left behind."""
    draft.parent.mkdir(parents=True, exist_ok=True)
    draft.mkdir(exist_ok=True)
    lock = os.open(draft, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not draft.exists() or os.fstat(lock).st_ino != draft.stat().st_ino:
            raise BlockingIOError  # renamed by another run since it was opened
        yield
    except BlockingIOError:
        raise UserError(
            f"--output={output}: another explorer is being written there; wait for it to end"
        ) from None
    finally:
        os.close(lock)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_mark(folder: Path) -> None:
    """Lists what is in the folder, so that a later run knows what it may replace."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    write_whole(folder / MARK, json.dumps({"made_by": MADE_BY, "files": files}, indent=1) + "\n")


def copy_page(folder: Path) -> None:
    """Copies the page and KaTeX."""
    ignored = shutil.ignore_patterns(".*", "*.md")
    shutil.copytree(PARTS / "page", folder, dirs_exist_ok=True, copy_function=shutil.copyfile, ignore=ignored)
    shutil.copytree(PARTS / "katex", folder / "katex", copy_function=shutil.copyfile, ignore=ignored)
