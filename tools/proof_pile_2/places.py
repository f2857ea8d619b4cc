# SPDX-License-Identifier: Apache-2.0
"""Where input lies: paths, and URLs of whatever fsspec has a protocol for (`hf://datasets/…`, `s3://…`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.urls import is_url, missing_package

Place: TypeAlias = "Path | str"
"""A path, or a URL as a string."""
# What a remote file system says of a file that changes with its content, as far as it says it.
_VERSION_KEYS = ("ETag", "etag", "sha256", "blob_id", "last_modified", "LastModified", "mtime", "created")


def place_of(text: str | Path) -> Place:
    """A command's argument as a place."""
    return str(text) if is_url(text) else Path(text)


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path as text; bytes of a name that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def open_place(place: Place) -> IO[bytes]:
    """The file, to be read. Errors: OSError, UserError."""
    if isinstance(place, Path):
        return open(place, "rb")
    system, path = _system(place)
    opened: IO[bytes] = system.open(path, "rb")
    return opened


def identity_of(place: Place) -> list[object]:
    """Name, size, and time or version. Errors: `UserError` where the file is gone."""
    try:
        if isinstance(place, Path):
            status = os.stat(place)
            return [shown_path(place), status.st_size, status.st_mtime_ns]
        system, path = _system(place)
        information = system.info(path)
    except OSError as error:
        raise UserError(
            f"{shown_path(place)}: cannot be read ({error.strerror or error}); check it"
        ) from None
    versions = [str(information[key]) for key in _VERSION_KEYS if information.get(key) is not None]
    return [place, information.get("size"), *versions]


def listing(url: str) -> Iterator[tuple[str, int]]:
    """(URL, size) of the files below a URL, or of the one that it names, sorted.

    Errors: `UserError` where it cannot be listed."""
    system, path = _system(url)
    try:
        found = system.find(path, detail=True)
    except Exception as error:  # each file system raises its own
        raise UserError(
            f"{url}: cannot be listed ({error}); check the URL and that you may read it"
        ) from None
    for name in sorted(found):
        yield system.unstrip_protocol(name), int(found[name].get("size") or 0)


def _system(url: str) -> tuple[Any, str]:
    import fsspec

    if problem := missing_package(url):
        raise UserError(f"{url}: {problem[0]}; {problem[1]}")
    return fsspec.core.url_to_fs(url)
