# SPDX-License-Identifier: Apache-2.0
"""Small files that are there whole or as they were, whatever happens: drafted, brought to the disk, renamed.

It lies on the ground floor because every room writes some. Token files and checkpoints, which are large, have
writers of their own.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

_DRAFT = re.compile(r"^\.(?P<of>.+)\.\d+\.draft$")


def sync(path: Path) -> None:
    """Brings a file to the disk, or the names in a folder: a rename is lasting after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """A hidden file beside `path` for the block to write; after the block it takes the name.

    Raises:
        OSError: the disk refuses. `path` is as it was, and the draft is gone.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        yield draft
        sync(draft)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


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
