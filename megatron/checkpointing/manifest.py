# SPDX-License-Identifier: Apache-2.0
"""`manifest.json`: size and sha256 of every file of a checkpoint, written last, looked at before training.

It holds a digest of itself and is compared byte for byte with what would be written, so that a change
anywhere in it shows too; `checkpoint.json` says that it must be there, so that its loss shows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from megatron.checkpointing.record import RECORD
from megatron.neox_arguments.whole_files import sync, write_whole

MANIFEST = "manifest.json"
# Read at once. hashlib lets other threads run while it digests more than 2047 bytes (its documentation).
_CHUNK_BYTES = 2**22
# Threads of a rank that verify; one reads and digests 0.3 to 2 GB/s.
_THREADS = 8


class Damaged(Exception):
    """A checkpoint is not what was written; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class FileEntry:
    """One file as it was written."""

    size_bytes: int
    sha256: str


def describe(path: Path, *, sync: bool = False) -> FileEntry:
    """Reads a file through; with `sync` its bytes are on the disk, not only in memory, when this returns."""
    digest, size_bytes = hashlib.sha256(), 0
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size_bytes += count
        if sync:
            os.fsync(file.fileno())
    return FileEntry(size_bytes, digest.hexdigest())


def seal(folder: Path, known: Mapping[str, FileEntry] | None = None) -> None:
    """Writes the manifest of a checkpoint whose other files are all there; all of it is then on the disk.

    `known` are files described, and brought to the disk, before.

    Raises:
        OSError: a file cannot be read or written.
    """
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    record["has_manifest"] = True
    write_whole(folder / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
    entries = dict(known or {})
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST and name not in entries:
            entries[name] = describe(path, sync=True)
    write_whole(folder / MANIFEST, _render(entries))
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            sync(path)


def _render(entries: Mapping[str, FileEntry]) -> str:
    files = {name: asdict(entries[name]) for name in sorted(entries)}
    own = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "sha256_of_files": own}, indent=1) + "\n"


def read(folder: Path) -> dict[str, FileEntry] | None:
    """The manifest of a checkpoint; None for one from before there were manifests.

    Raises:
        Damaged: it is missing though it was written, or it is not what was written.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if _must_have_one(folder):
            raise Damaged(f"the file {MANIFEST} is missing")
        return None
    try:
        text = path.read_text(encoding="utf-8")
        entries = {name: FileEntry(**entry) for name, entry in json.loads(text)["files"].items()}
        is_as_written = text == _render(entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        is_as_written = False
    if not is_as_written:
        raise Damaged(f"the file {MANIFEST} is not what was written")
    for name in entries:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise Damaged(f"the file {MANIFEST} names {name}, which lies outside the checkpoint")
    return entries


def _must_have_one(folder: Path) -> bool:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # whoever reads it next says what is wrong
    return isinstance(record, dict) and record.get("has_manifest") is True


@dataclass(frozen=True)
class Verified:
    """What a look at a checkpoint's files covered on this rank."""

    has_manifest: bool
    files: int = 0
    size_bytes: int = 0


def verify(folder: Path, *, contents: bool, part: int = 0, parts: int = 1) -> Verified:
    """Compares a checkpoint's files with its manifest: sizes, and with `contents` every byte.

    The files are dealt out to `parts` readers, of which this is number `part`; each digests several at once.

    Raises:
        Damaged: a file of this part is missing, cut short, or changed; the first by name.
    """
    entries = read(folder)
    if entries is None:
        return Verified(has_manifest=False)
    by_size = sorted(entries, key=lambda name: (-entries[name].size_bytes, name))
    mine = by_size[part::parts]

    def look(name: str) -> str | None:
        return _damage(folder / name, name, entries[name], contents=contents)

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="verify") as pool:
        found = dict(zip(mine, pool.map(look, mine), strict=True))
    for name in sorted(found):
        if (damage := found[name]) is not None:
            raise Damaged(damage)
    return Verified(True, len(mine), sum(entries[name].size_bytes for name in mine))


def _damage(path: Path, name: str, entry: FileEntry, *, contents: bool) -> str | None:
    try:
        size_bytes = path.stat().st_size
        if size_bytes != entry.size_bytes:
            return f"the file {name} has {size_bytes:,} of its {entry.size_bytes:,} bytes"
        if contents and describe(path) != entry:
            return f"the file {name} is not what was written: its sha256 differs"
    except FileNotFoundError:
        return f"the file {name} is missing"
    except OSError as error:
        return f"the file {name} cannot be read: {error.strerror or error}"
    return None
