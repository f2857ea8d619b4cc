# SPDX-License-Identifier: Apache-2.0
"""The search over whole corpora: many processes search, one writes in order and keeps its place.

`OUTPUT/.overlap/` holds the hits so far and a state that says how many stretches of which corpus they are of.
A killed search goes on after the last stretch of the state: what lies before is read again and not searched
again. Hits of stretches after the state are cut off first, so that nothing is lost or stands twice."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.whole_files import write_whole
from tools.overlap_parts.corpus import (
    Found,
    Place,
    Stretch,
    chained,
    check_tokenizers,
    files_of,
    search_stretch,
    stretches,
    total_bytes,
)
from tools.overlap_parts.items import Spec
from tools.overlap_parts.search import build_search

WORK, HITS, STATE = ".overlap", "hits.jsonl", "state.json"
SHOWN_BROKEN = 20
COMMIT_SECONDS, PROGRESS_SECONDS = 2.0, 5.0


@dataclass
class Counts:
    """What was searched of one corpus."""

    documents: int = 0
    read: int = 0
    hit_documents: int = 0
    hits: int = 0
    broken: int = 0


@dataclass
class State:
    """How far a search has come."""

    fingerprint: str
    place: int = 0
    stretches: int = 0
    """Of the place that is being searched."""
    chain: str = ""
    hits_bytes: int = 0
    counts: list[Counts] = field(default_factory=list)
    is_searched: bool = False

    @classmethod
    def read(cls, path: Path) -> State | None:
        """The state of an earlier start; None where there is none or it is damaged."""
        try:
            fields = orjson.loads(path.read_bytes())
            return cls(**{**fields, "counts": [Counts(**counts) for counts in fields["counts"]]})
        except (OSError, ValueError, TypeError, KeyError):
            return None


@dataclass(frozen=True)
class Job:
    """A search and what it runs over."""

    spec: Spec
    places: tuple[Place, ...]
    json_key: str
    suffixes: tuple[str, ...] | None
    output: Path
    skip_broken: bool
    workers: int

    def fingerprint(self) -> str:
        """Of all that decides the hits; a corpus counts by its files, their sizes and last changes."""
        files = [(place.name, files_of(place, self.json_key, self.suffixes)) for place in self.places]
        return chained_text(self.spec.digest(), repr((files, self.json_key, self.suffixes)))


def chained_text(*parts: str) -> str:
    """A hash over texts."""
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def write_output(path: Path, data: bytes) -> None:
    """Writes a file under a hidden name, and then gives it its own.

    Raises:
        UserError: the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another folder") from None


@contextlib.contextmanager
def sole_writer(output: Path) -> Iterator[None]:
    """Keeps a second search out of an output folder.

    Raises:
        UserError: another process works there, or the folder cannot be made.
    """
    try:
        (output / WORK).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output / WORK / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(
            f"--output={output}: cannot be written ({error.strerror}); choose another folder"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"--output={output}: another search is at work there; wait for it to end") from None
    try:
        yield
    finally:
        os.close(descriptor)


def opened_state(job: Job, overwrite: bool) -> State:
    """Where to begin: at the start, or where an earlier start of the same search came to.

    Raises:
        UserError: the folder holds another search, or files that are not of a search.
    """
    work = job.output / WORK
    fingerprint = job.fingerprint()
    state = State.read(work / STATE)
    if state is not None and state.fingerprint == fingerprint and not overwrite:
        return state
    ours = {WORK, HITS, "report.json", "report.html"}
    others = sorted(path.name for path in job.output.iterdir() if path.name not in ours)
    if others:
        raise UserError(f"--output={job.output}: holds {others[0]}, which is not of a search; give a new one")
    if (state is not None or (job.output / HITS).exists()) and not overwrite:
        raise UserError(
            f"--output={job.output}: holds a search of other settings, test set or corpus; give another "
            "folder, or replace it with --overwrite"
        )
    for name in (STATE, HITS, "clean.json"):
        (work / name).unlink(missing_ok=True)
    for name in ours - {WORK}:
        (job.output / name).unlink(missing_ok=True)
    return State(fingerprint)


def run_search(job: Job, overwrite: bool) -> State:
    """Searches all corpora, or what is left of them; `OUTPUT/hits.jsonl` is there afterwards.

    Raises:
        UserError: a broken place (unless they are skipped), a disk that refuses, a process that dies.
    """
    build_search(job.spec)  # before anything is written; compiles, so that processes find it compiled
    check_tokenizers(job.places, job.spec)
    state = opened_state(job, overwrite)
    work = job.output / WORK
    if not state.is_searched:
        with _Log(work, state) as log, _searching(job) as pool:
            for number in range(state.place, len(job.places)):
                _search_place(job, number, log, pool)
            if job.fingerprint() != state.fingerprint:
                raise UserError(
                    "--corpus: has changed while it was searched; begin anew with --overwrite when nobody "
                    "writes it"
                )
            log.commit(is_searched=True)
    if (work / HITS).exists():
        os.replace(work / HITS, job.output / HITS)
    if not (job.output / HITS).exists():
        raise UserError(f"{job.output / HITS}: is gone; begin anew with --overwrite")
    return state


def _search_place(job: Job, number: int, log: _Log, pool: ProcessPoolExecutor | None) -> None:
    place, state = job.places[number], log.state
    if number == len(state.counts):
        state.counts.append(Counts())
    progress = _Progress(place.name, total_bytes(place, job.json_key, job.suffixes))
    for chain, found, read_bytes in _in_order(job, place, state, pool):
        _note_broken(job, state.counts[-1], found)
        log.add(place, chain, found, build_search(job.spec).ids)
        progress.show(read_bytes, state.counts[-1])
    state.place, state.stretches, state.chain = number + 1, 0, ""
    log.commit()


def _in_order(
    job: Job, place: Place, state: State, pool: ProcessPoolExecutor | None
) -> Iterator[tuple[str, Found, int]]:
    """Each stretch that is not in the state yet, searched; with the chain up to it and the bytes read."""
    chain, done = "", state.stretches
    waiting: deque[tuple[str, Future[Found], int]] = deque()
    for stretch, read_bytes in stretches(place, job.json_key, job.suffixes):
        chain = chained(chain, stretch)
        if done:
            done -= 1
            if not done and chain != state.chain:
                _refuse_changed(place)
            continue
        if pool is None:
            yield chain, search_stretch(stretch, job.spec), read_bytes
            continue
        waiting.append((chain, _submitted(pool, stretch, job.spec), read_bytes))
        if len(waiting) > 2 * job.workers:
            chain_of, future, read_to = waiting.popleft()
            yield chain_of, future.result(), read_to
    if done:
        _refuse_changed(place)
    while waiting:
        chain_of, future, read_to = waiting.popleft()
        yield chain_of, future.result(), read_to


def _refuse_changed(place: Place) -> None:
    raise UserError(
        f"--corpus={place.name}: is not what it was when this search began; begin anew with --overwrite"
    )


def _submitted(pool: ProcessPoolExecutor, stretch: Stretch, spec: Spec) -> Future[Found]:
    # Processes are started here and inherit the blocked signal: Ctrl-C is for this one alone.
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(search_stretch, stretch, spec)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)


@contextlib.contextmanager
def _searching(job: Job) -> Iterator[ProcessPoolExecutor | None]:
    """The processes that search; None where this one does it all."""
    if job.workers == 1:
        yield None
        return
    # spawn: a forked copy of a process with threads (Arrow has some) may stand still for ever
    pool = ProcessPoolExecutor(
        job.workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent
    )
    try:
        yield pool
    except BrokenProcessPool:
        raise UserError(
            f"--workers={job.workers}: a process was killed, most often for want of memory; the same command "
            "with fewer workers goes on from here"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """A process ends with the one that started it, however that ends."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes run beside each other, not threads
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _note_broken(job: Job, counts: Counts, found: Found) -> None:
    if found.broken and not job.skip_broken:
        shown = "\n  ".join(f"{line.where}: {line.reason}" for line in found.broken[:SHOWN_BROKEN])
        raise UserError(
            f"broken places in the corpus:\n  {shown}\n  repair them and begin anew with --overwrite, or "
            "count them and go on with --on-bad-line skip"
        )
    for line in found.broken[: max(0, SHOWN_BROKEN - counts.broken)]:
        print(f"not searched: {line.where}: {line.reason}", file=sys.stderr, flush=True)
    counts.broken += len(found.broken)


class _Log:
    """The hits on disk, and the state that counts them."""

    def __init__(self, work: Path, state: State) -> None:
        self._work, self.state = work, state
        self._committed = time.monotonic()

    def __enter__(self) -> _Log:
        path = self._work / HITS
        try:
            if self.state.hits_bytes and (not path.exists() or path.stat().st_size < self.state.hits_bytes):
                raise UserError(f"{path}: is shorter than its state says; begin anew with --overwrite")
            self._file = open(path, "ab")
            self._file.truncate(self.state.hits_bytes)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another folder") from None
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, place: Place, chain: str, found: Found, ids: Sequence[str | int]) -> None:
        """Takes the hits of the next stretch."""
        lines = [
            orjson.dumps(
                {
                    "corpus": place.name,
                    "where": found.wheres[hit.document],
                    "items": [ids[number] for number in hit.items],
                    "ngram": hit.gram.encode("utf-8", "replace").decode(),
                    "position": hit.unit,
                    "span": [hit.start, hit.end],
                    "occurrences": hit.occurrences,
                }
            )
            for hit in found.hits
        ]
        self._write(b"".join(line + b"\n" for line in lines))
        counts = self.state.counts[-1]
        counts.documents += found.documents
        counts.read += found.read
        counts.hits += len(found.hits)
        counts.hit_documents += len(found.wheres)
        self.state.stretches += 1
        self.state.chain = chain
        if time.monotonic() - self._committed > COMMIT_SECONDS:
            self.commit()

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise UserError(
                f"{self._work / HITS}: cannot be written ({error.strerror}); free space, and the same "
                "command goes on from here"
            ) from None
        self.state.hits_bytes += len(data)

    def commit(self, is_searched: bool = False) -> None:
        """Makes what was taken so far last."""
        self.state.is_searched = is_searched
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"{self._work / HITS}: cannot be written ({error.strerror}); free space, and the same "
                "command goes on from here"
            ) from None
        write_output(self._work / STATE, orjson.dumps(asdict(self.state)))
        self._committed = time.monotonic()


class _Progress:
    """A line every few seconds."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total = name, total
        self._started = self._shown = time.monotonic()

    def show(self, read_bytes: int, counts: Counts) -> None:
        now = time.monotonic()
        if now - self._shown < PROGRESS_SECONDS:
            return
        self._shown = now
        share = read_bytes / self._total if self._total else 1.0
        print(
            f"{self._name}: {share:6.1%} | {counts.documents:,} documents, {counts.hit_documents:,} with "
            f"hits | {read_bytes / 1e6 / (now - self._started):,.0f} MB/s",
            file=sys.stderr,
            flush=True,
        )


def read_hits(output: Path) -> Iterator[dict[str, Any]]:
    """The hits of a finished search, in the order of the corpus."""
    with open(output / HITS, "rb") as file:
        for line in file:
            yield orjson.loads(line)
