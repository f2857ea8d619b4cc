# SPDX-License-Identifier: Apache-2.0
"""A checkpoint at a URL becomes a folder here: file by file, each compared with the manifest as it comes.

It is written under a hidden name and renamed when all of it is there and right. Of a download that was cut
short, whole files are kept and the others gone on with where they ended.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from megatron.checkpointing import folders, manifest
from megatron.checkpointing.folders import step_name
from megatron.checkpointing.manifest import MANIFEST, Damaged, FileEntry
from megatron.checkpointing.remote import Backoff, Remote, in_words, open_remote, split_url, try_for
from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.urls import is_url
from megatron.neox_arguments.whole_files import sync

T = TypeVar("T")

# Asked for at once; a store gives 50 to 100 MB/s to one reader, and more to several.
_CHUNK_BYTES = 2**24
_THREADS = 8
# How long a store may be away before a download gives up, counted anew from each answer.
_PATIENCE_SECONDS = 300.0


def begin(remote: Remote, iteration: int, into: Path) -> Path:
    """Prepares a hidden folder below `into` with the manifest of a checkpoint, and returns it.

    Raises:
        Damaged: the manifest is missing, or not what was written.
        UserError: the store does not answer, or there is no room here.
    """
    partial = into / folders.download_name(iteration)
    text = _ask(remote, lambda: remote.manifest_of(iteration))
    if text is None:
        raise Damaged(f"the file {MANIFEST} is missing")
    try:
        if partial.exists() and (
            not (partial / MANIFEST).is_file() or (partial / MANIFEST).read_bytes() != text
        ):
            shutil.rmtree(partial)  # another checkpoint of this name
        partial.mkdir(parents=True, exist_ok=True)
        (partial / MANIFEST).write_bytes(text)
        entries = manifest.read(partial)
        assert entries is not None
        there = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
        needed = sum(entry.size_bytes for entry in entries.values()) - there
        free = shutil.disk_usage(partial).free
    except Damaged:
        shutil.rmtree(partial)
        raise
    except OSError as error:
        raise UserError(f"{into}: cannot be written ({error.strerror}); choose another folder") from None
    if free < needed:
        raise UserError(
            f"{into}: {free / 1e6:,.0f} MB are free, and {remote.url}/{step_name(iteration)} needs "
            f"{needed / 1e6:,.0f} MB more; free some, or choose another folder"
        )
    return partial


def fetch(remote: Remote, iteration: int, partial: Path, part: int = 0, parts: int = 1) -> None:
    """Downloads the files of number `part` of `parts` readers who share them, several at once.

    Raises:
        Damaged: a file of this part is missing, cut short or changed at the store; the first by name.
        UserError: the store does not answer, or the disk is full.
    """
    entries = manifest.read(partial)
    assert entries is not None
    by_size = sorted(entries, key=lambda name: (-entries[name].size_bytes, name))
    mine = by_size[part::parts]

    def fetch_one(name: str) -> str | None:
        try:
            _fetch_file(remote, f"{step_name(iteration)}/{name}", partial / name, name, entries[name])
        except Damaged as damage:
            return str(damage)
        except FileNotFoundError:
            return f"the file {name} is missing"
        except OSError as error:  # of this disk: those of the store are waited for
            raise UserError(
                f"{partial}: cannot be written ({error.strerror or error}); free some space and run the same "
                "command again"
            ) from None
        return None

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="download") as pool:
        found = dict(zip(mine, pool.map(fetch_one, mine), strict=True))
    for name in sorted(found):
        if (damage := found[name]) is not None:
            raise Damaged(damage)


def _fetch_file(remote: Remote, remote_name: str, target: Path, name: str, entry: FileEntry) -> None:
    if target.is_file() and manifest.describe(target) == entry:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    growing = target.with_name(f".{target.name}.part")
    size_bytes = _ask(remote, lambda: remote.size_bytes(remote_name))
    if size_bytes != entry.size_bytes:
        raise Damaged(f"the file {name} has {size_bytes:,} of its {entry.size_bytes:,} bytes")
    was_begun = growing.is_file()
    if not _grow(remote, remote_name, growing, entry):
        growing.unlink()
        # What was there from before may be at fault; what comes whole and is wrong is wrong at the store.
        if not (was_begun and _grow(remote, remote_name, growing, entry)):
            growing.unlink(missing_ok=True)
            raise Damaged(f"the file {name} is not what was written: its sha256 differs")
    os.replace(growing, target)


def _grow(remote: Remote, remote_name: str, growing: Path, entry: FileEntry) -> bool:
    """Appends what is missing; whether the whole is what the manifest says."""
    digest = hashlib.sha256()
    with open(growing, "a+b") as file:
        file.seek(0)
        there = 0
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            there += len(chunk)
        while there < entry.size_bytes:
            start, end = there, min(there + _CHUNK_BYTES, entry.size_bytes)
            chunk = _ask(remote, functools.partial(remote.read_range, remote_name, start, end))
            if not chunk:
                break
            digest.update(chunk)
            file.write(chunk)
            there += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(there, digest.hexdigest()) == entry


def _ask(remote: Remote, action: Callable[[], T]) -> T:
    """The store's answer; FileNotFoundError stays what it is.

    Raises:
        UserError: it does not come.
    """
    try:
        return try_for(_PATIENCE_SECONDS, action, Backoff())
    except (FileNotFoundError, UserError):
        raise
    except Exception as error:
        raise unreachable(remote, error) from error


def unreachable(remote: Remote, error: Exception) -> UserError:
    return UserError(
        f"{remote.url}: does not answer ({in_words(error)}); check the address and the credentials in the "
        "environment, or wait until it is back, and run the same command again"
    )


def complete(partial: Path, iteration: int) -> Path:
    """Gives a checkpoint that is all there its name, and moves `latest` beside it; returns its folder.

    Raises:
        UserError: the disk is full.
    """
    final = partial.with_name(step_name(iteration))
    try:
        for path in (partial, *partial.rglob("*")):
            if path.is_dir():
                sync(path)
        folders.put_in_place(partial, final)
    except OSError as error:
        raise UserError(f"{final}: cannot be written ({error.strerror}); choose another folder") from None
    return final


def is_same(remote: Remote, iteration: int, folder: Path) -> bool:
    """Whether a folder here was downloaded from there, or uploaded to it.

    Raises:
        UserError: the store does not answer.
    """
    path = folder / MANIFEST
    return path.is_file() and path.read_bytes() == _ask(remote, lambda: remote.manifest_of(iteration))


def find_remote(remote: Remote, iteration: int | None = None) -> int | None:
    """The iteration to take: the one asked for, else the one `latest` names; None where there is none yet.

    Raises:
        UserError: the store does not answer, or what was asked for is not there.
    """
    if iteration is None:
        return _ask(remote, remote.latest)
    there = _ask(remote, remote.iterations)
    if iteration not in there:
        raise UserError(
            f"iteration={iteration}: {remote.url} has no {step_name(iteration)}; it has "
            f"{', '.join(map(str, there)) or 'none'}"
        )
    return iteration


def whole_iterations(remote: Remote) -> list[int]:
    """Those with a manifest, ascending.

    Raises:
        UserError: the store does not answer.
    """
    there = _ask(remote, remote.iterations)
    return [step for step in there if _ask(remote, functools.partial(remote.manifest_of, step)) is not None]


@contextmanager
def local_copy(place: str, iteration: int | None = None) -> Iterator[Path]:
    """A path as it is; of a URL, a temporary folder with one checkpoint of it, removed in the end.

    Raises:
        UserError: there is no checkpoint, it is damaged, or it cannot be fetched.
    """
    if not is_url(place):
        yield Path(place)
        return
    url, named = split_url(place)
    remote = open_remote(url)
    chosen = find_remote(remote, named if iteration is None else iteration)
    if chosen is None:
        raise UserError(f"{url}: no checkpoint there; give the URL of a run or of one global_stepN folder")
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as name:
        try:
            partial = begin(remote, chosen, Path(name))
            fetch(remote, chosen, partial)
        except Damaged as damage:
            raise damaged(remote, chosen, str(damage)) from None
        yield complete(partial, chosen).parent


def damaged(remote: Remote, iteration: int, why: str) -> UserError:
    """What to say of a checkpoint at a URL that cannot be used."""
    others = [step for step in whole_iterations(remote) if step != iteration]
    return UserError(
        f"load={remote.url}/{step_name(iteration)}: cannot be read ({why}); "
        f"{folders.choose_from(remote.url, others)}"
    )
