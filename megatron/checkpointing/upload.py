# SPDX-License-Identifier: Apache-2.0
"""Uploading whole checkpoints while training goes on: one thread, a bounded queue, patience.

One checkpoint is uploaded at a time. Behind it waits the newest alone, and milestones, which stay on the disk
anyway: a newer one takes the place of one that waits. So the disk holds at most one checkpoint more than
without uploads, however long the store is away, and training never waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from megatron.checkpointing import manifest
from megatron.checkpointing.folders import iteration_of
from megatron.checkpointing.manifest import MANIFEST, FileEntry
from megatron.checkpointing.remote import Backoff, Remote, in_words, persist

T = TypeVar("T")

# How often somebody who waits for the end looks whether he is to stop waiting.
_LOOK_SECONDS = 0.2


class _Stopped(Exception):
    """The uploader was told to stop."""


class _NotUploadable(Exception):
    """This checkpoint cannot be uploaded, however often it is tried."""


@dataclass(frozen=True)
class _Job:
    folder: Path
    may_be_skipped: bool
    moves_latest: bool


class Uploader:
    """Uploads checkpoints to one place, in the order in which they come. `log` is called from its thread."""

    def __init__(self, remote: Remote, log: Callable[[str], None], backoff: Backoff | None = None) -> None:
        self._remote, self._log, self._backoff = remote, log, backoff or Backoff()
        self._changed = threading.Condition()
        self._waiting: list[_Job] = []
        self._current: _Job | None = None
        self._refused: list[str] = []
        self._failure: str | None = None  # of the last attempt, while the store is away
        self._away_since: float | None = None
        self._stop = threading.Event()
        # A daemon: a store that never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
        self._thread.start()

    def add(self, folder: Path, *, may_be_skipped: bool = True, moves_latest: bool = True) -> None:
        """Queues a whole checkpoint. One that may be skipped gives way to the next that is added."""
        with self._changed:
            skipped = [
                job for job in self._waiting if job.folder == folder or (job.may_be_skipped and moves_latest)
            ]
            self._waiting = [job for job in self._waiting if job not in skipped]
            self._waiting.append(_Job(folder, may_be_skipped, moves_latest))
            self._changed.notify_all()
        for job in skipped:
            if job.folder != folder:
                self._log(f"{job.folder.name} is not uploaded: {folder.name} is newer and takes its place")

    @property
    def in_progress(self) -> Path | None:
        """The folder that is being uploaded, which must stay where it is."""
        with self._changed:
            return self._current.folder if self._current is not None else None

    def not_uploaded(self) -> list[str]:
        """What still waits, is being uploaded, or could not be, in words."""
        with self._changed:
            jobs = [self._current] if self._current is not None else []
            names = [job.folder.name for job in [*jobs, *self._waiting]]
            why = f" ({self._failure})" if self._failure is not None else ""
            return [*self._refused, *(f"{name}{why}" for name in names)]

    def finish(self, limit_seconds: float, is_interrupted: Callable[[], bool] = lambda: False) -> list[str]:
        """Waits until all is uploaded, or the limit, and ends; returns what was not uploaded."""
        deadline = time.monotonic() + limit_seconds
        with self._changed:
            while (self._waiting or self._current) and time.monotonic() < deadline and not is_interrupted():
                self._changed.wait(_LOOK_SECONDS)
        left = self.not_uploaded()
        self.stop()
        return left

    def stop(self) -> None:
        """Ends at the next moment where nothing is being sent; what is left is not uploaded."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._upload(job)
            except _Stopped:
                return
            except Exception as error:  # of this checkpoint: those of the store are waited for
                why = str(error) or type(error).__name__
                self._log(f"warning: {job.folder.name} is not uploaded to {self._remote.url}: {why}")
                with self._changed:
                    self._refused.append(f"{job.folder.name} ({why})")

    def _next(self) -> _Job | None:
        with self._changed:
            self._current = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._stop.is_set())
            if self._stop.is_set():
                return None
            self._current = self._waiting.pop(0)
            return self._current

    def _upload(self, job: _Job) -> None:
        folder, remote, started = job.folder, self._remote, time.monotonic()
        iteration = iteration_of(folder)
        if not (folder / MANIFEST).is_file():
            raise _NotUploadable(f"it has no {MANIFEST}, so that nobody could tell whether it is whole")
        sealed = (folder / MANIFEST).read_bytes()
        if self._patiently(lambda: remote.manifest_of(iteration)) != sealed:
            manifest.verify(folder, contents=True)
            entries = manifest.read(folder)
            assert entries is not None
            self._patiently(lambda: remote.withdraw(iteration))
            for name, entry in sorted(entries.items()):
                self._put(folder, name, entry)
            # It may have been replaced meanwhile, where somebody went back; the new one is queued too.
            if not (folder / MANIFEST).is_file() or (folder / MANIFEST).read_bytes() != sealed:
                raise _NotUploadable("it was replaced or removed while it was uploaded")
            self._patiently(lambda: remote.write(f"{folder.name}/{MANIFEST}", sealed))
            size_bytes = sum(entry.size_bytes for entry in entries.values())
            self._log(
                f"uploaded {remote.url}/{folder.name} ({size_bytes / 1e6:,.1f} MB, "
                f"{time.monotonic() - started:.1f} s)"
            )
        if job.moves_latest:
            self._patiently(lambda: remote.mark_latest(iteration))

    def _put(self, folder: Path, name: str, entry: FileEntry) -> None:
        file, remote_name = folder / name, f"{folder.name}/{name}"

        def put() -> None:
            if not file.is_file() or file.stat().st_size != entry.size_bytes:
                raise _NotUploadable(f"the file {name} was removed or changed while it was uploaded")
            self._remote.put(file, remote_name)
            arrived = self._remote.size_bytes(remote_name)
            if arrived != entry.size_bytes:
                raise OSError(f"{arrived:,} of {entry.size_bytes:,} bytes of {name} arrived")

        self._patiently(put)

    def _patiently(self, action: Callable[[], T]) -> T:
        """Repeats it until it succeeds or the uploader is to stop; an outage is said once, and its end."""

        def wait(error: Exception, pause_seconds: float) -> None:
            if isinstance(error, _NotUploadable):
                raise error
            with self._changed:
                self._failure = in_words(error)
            if self._away_since is None:
                self._away_since = time.monotonic()
                self._log(
                    f"warning: {self._remote.url} does not take uploads ({self._failure}); training goes on, "
                    "they are tried again and again"
                )
            if self._stop.wait(pause_seconds):
                raise _Stopped

        if self._stop.is_set():
            raise _Stopped
        result = persist(action, wait, self._backoff)
        if self._away_since is not None:
            self._log(
                f"{self._remote.url} takes uploads again, after {time.monotonic() - self._away_since:.0f} s"
            )
            self._away_since = None
            with self._changed:
                self._failure = None
        return result
