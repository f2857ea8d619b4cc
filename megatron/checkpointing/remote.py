# SPDX-License-Identifier: Apache-2.0
"""A run's checkpoints at a URL, laid out as in a save folder, and patience with a store that is away.

fsspec reads and writes every kind of URL; credentials and endpoints are what its packages take from the
environment. An object store replaces one object at once and knows no renaming, so a checkpoint there is whole
when its manifest is there, which is written last, and `latest` names whole ones only.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from megatron.checkpointing.folders import LATEST, iteration_named, step_name
from megatron.checkpointing.manifest import MANIFEST
from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.urls import missing_package, without_secrets
from megatron.neox_arguments.whole_files import write_whole

T = TypeVar("T")

_PROBE = ".writable"
_LOCAL = ("file", "local")
# Errors of botocore that no waiting mends; it is not imported where no s3:// is used.
_LASTING = ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "ProfileNotFound")


@dataclass(frozen=True)
class Backoff:
    """Pauses between attempts: doubled each time up to the longest, half of each by chance.

    The chance keeps many runs, for which a store was away together, from coming back together.
    """

    first_seconds: float = 1.0
    longest_seconds: float = 30.0

    def pauses(self) -> Iterator[float]:
        generator = random.Random()  # not the one that others may have seeded
        for attempt in itertools.count():
            whole = min(self.longest_seconds, self.first_seconds * 2.0 ** min(attempt, 30))
            yield whole * generator.uniform(0.5, 1.0)


def persist(action: Callable[[], T], on_failure: Callable[[Exception, float], None], backoff: Backoff) -> T:
    """Repeats `action` until it succeeds; `on_failure` gets the error and the pause, and waits or raises."""
    for pause_seconds in backoff.pauses():
        try:
            return action()
        except Exception as error:
            on_failure(error, pause_seconds)
    raise AssertionError("the pauses never end")


def try_for(seconds: float, action: Callable[[], T], backoff: Backoff | None = None) -> T:
    """Repeats `action` for some time; what waiting does not mend is raised at once."""
    deadline = time.monotonic() + seconds

    def wait(error: Exception, pause_seconds: float) -> None:
        if is_lasting(error) or time.monotonic() + pause_seconds > deadline:
            raise error
        time.sleep(pause_seconds)

    return persist(action, wait, backoff or Backoff())


def is_lasting(error: Exception) -> bool:
    """Whether another attempt would fail as well, until somebody puts something right."""
    lasting = (PermissionError, FileNotFoundError, UserError, ValueError, TypeError)
    return isinstance(error, lasting) or type(error).__name__ in _LASTING


def in_words(error: BaseException) -> str:
    """The first line of an error of fsspec's packages, without credentials."""
    text = str(error.strerror or error) if isinstance(error, OSError) else str(error)
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    known = without_secrets(line, os.environ)
    return (known if len(known) <= 200 else known[:199] + "…") or type(error).__name__


class Remote:
    """The folder at `url`. Methods raise what fsspec raises; a missing object is a FileNotFoundError.

    They may be called from any thread.
    """

    def __init__(self, url: str, filesystem: Any, root: str) -> None:
        self.url, self._filesystem, self._root = url.rstrip("/"), filesystem, root.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def read(self, name: str) -> bytes:
        content: bytes = self._filesystem.cat_file(self._path(name))
        return content

    def read_range(self, name: str, start: int, end: int) -> bytes:
        content: bytes = self._filesystem.cat_file(self._path(name), start=start, end=end)
        return content

    def size_bytes(self, name: str) -> int:
        return int(self._filesystem.info(self._path(name))["size"])

    def write(self, name: str, content: bytes) -> None:
        """Writes a small object in one step."""
        path = self._path(name)
        if _protocol(self._filesystem) in _LOCAL:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_whole(Path(path), content.decode())
        else:
            self._filesystem.pipe_file(path, content)

    def put(self, file: Path, name: str) -> None:
        """Uploads one file, in parts at once where it is large."""
        self._filesystem.put_file(str(file), self._path(name))

    def remove(self, name: str) -> None:
        self._filesystem.rm_file(self._path(name))

    def check_writable(self) -> None:
        """Writes a small object and removes it."""
        self.write(_PROBE, b"")
        self.remove(_PROBE)

    def manifest_of(self, iteration: int) -> bytes | None:
        """The manifest of a checkpoint; None where it is not whole, or not there."""
        try:
            return self.read(f"{step_name(iteration)}/{MANIFEST}")
        except FileNotFoundError:
            return None

    def iterations(self) -> list[int]:
        """Iterations with something in their folder, whole or not, ascending."""
        try:
            names = self._filesystem.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        found = [iteration_named(str(name).rstrip("/").rpartition("/")[2]) for name in names]
        return sorted(iteration for iteration in found if iteration is not None)

    def latest(self) -> int | None:
        """What `latest` names; None where there is none.

        Raises:
            UserError: it names no checkpoint.
        """
        try:
            text = self.read(LATEST).decode(errors="replace").strip()
        except FileNotFoundError:
            return None
        iteration = iteration_named(text)
        if iteration is None:
            raise UserError(
                f"{self.url}: `latest` names {text!r}, which is no checkpoint; write the name of one into it"
            )
        return iteration

    def mark_latest(self, iteration: int) -> None:
        self.write(LATEST, f"{step_name(iteration)}\n".encode())

    def withdraw(self, iteration: int) -> None:
        """Before a checkpoint is written anew: it is not whole, and `latest` names an older one, or none.

        May be repeated.
        """
        if self.manifest_of(iteration) is None and self.latest() != iteration:
            return
        if self.latest() == iteration:
            older = [step for step in self.iterations() if step < iteration and self.manifest_of(step)]
            if older:
                self.mark_latest(older[-1])
            else:
                self.remove(LATEST)
        if self.manifest_of(iteration) is not None:
            self.remove(f"{step_name(iteration)}/{MANIFEST}")


def open_remote(url: str) -> Remote:
    """The folder at a URL; nothing is sent yet.

    Raises:
        UserError: its protocol is unknown, or needs a package that is not installed.
    """
    if (problem := missing_package(url)) is not None:
        raise UserError(f"{url}: {'; '.join(problem)}")
    from fsspec.core import url_to_fs

    is_local = url.partition("://")[0] in _LOCAL
    # Others write there too, so that no listing may be remembered.
    options = {"auto_mkdir": True} if is_local else {"use_listings_cache": False}
    filesystem, root = url_to_fs(url, **options)
    return Remote(url, filesystem, root)


def _protocol(filesystem: Any) -> str:
    protocol = filesystem.protocol
    return str(protocol if isinstance(protocol, str) else protocol[0])


def split_url(url: str) -> tuple[str, int | None]:
    """The URL of a run's folder, and the iteration where `url` is that of one checkpoint."""
    head, _, last = url.rstrip("/").rpartition("/")
    iteration = iteration_named(last)
    return (url.rstrip("/"), None) if iteration is None else (head, iteration)
