# SPDX-License-Identifier: Apache-2.0
"""Small files that are there whole or as they were, whatever happens: drafted, brought to the disk, renamed.

It lies on the ground floor because every room writes some. Token files and checkpoints, which are large, have
writers of their own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

_DRAFT = re.compile(r"^\.(?P<of>.+?)(\.\d+)?\.draft$")


def sync(path: Path) -> None:
    """Brings a file to the disk, or the names in a folder: a rename is lasting after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """A hidden file beside `path` for the block to write, empty at first; after the block it takes the name.

    Its name is the same each time, so that what a killed writer leaves is overwritten by the next. Should
    another be at work on the same file, the draft has this process's name.

    Raises:
        OSError: the disk refuses. `path` is as it was, and the draft is gone.
    """
    draft, descriptor = _own_draft(path)
    try:
        yield draft
        sync(draft)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _own_draft(path: Path) -> tuple[Path, int]:
    """The draft of a file, empty, and the descriptor by which it is locked against other writers."""
    usual, own = (path.with_name(f".{path.name}.{middle}draft") for middle in ("", f"{os.getpid()}."))
    for draft in (usual, own):
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if draft == own or _is_locked(draft, descriptor):
            os.ftruncate(descriptor, 0)
            return draft, descriptor
        os.close(descriptor)
    raise AssertionError("a draft of this process's own needs no lock")


def _is_locked(draft: Path, descriptor: int) -> bool:
    """Whether the draft is this writer's; another's is locked, or has got its name meanwhile."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: then nothing keeps two writers apart, as with any other file
    try:
        return os.fstat(descriptor).st_ino == os.stat(draft).st_ino
    except FileNotFoundError:
        return False


def draft_of(name: str) -> str | None:
    """The name of the file that a file of this name is a draft of: one stays where its writer was killed."""
    match = _DRAFT.match(name)
    return match["of"] if match else None


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes or replaces a file in one step; text is UTF-8.

    Raises:
        OSError: the disk refuses. `path` is as it was.
    """
    with drafted(path) as draft:
        draft.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
