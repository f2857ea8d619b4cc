# SPDX-License-Identifier: Apache-2.0
"""Input shards: stretches of a corpus that one process reads from front to back.

`plan_shards` cuts files and folders into shards, always alike for the same input, and opens nothing but
Parquet footers. A shard yields its documents and, in their places, what is broken: nothing that a file
holds raises, and nothing it holds makes a process use more memory than `Limits` allows."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import orjson

from megatron.data.decompress import DECOMPRESS, BrokenArchive
from megatron.neox_arguments.errors import UserError
from tools.proof_pile_2.documents import Broken, Document, decoded_meta, version_of
from tools.proof_pile_2.places import Place, identity_of, listing, open_place, shown_path

_UTF8_BOM = b"\xef\xbb\xbf"
# What is handed to a decompressor at once. A zstd block of 4 bytes can stand for 128 KiB, so that this is
# what bounds the memory of one call: 4 KiB become 128 MiB at most.
_COMPRESSED_BLOCK_BYTES = 4096
_BLOCK_BYTES = 1 << 18


@dataclass(frozen=True)
class Limits:
    """Beyond these, a record, a file or the rest of an archive is counted as broken and passed over."""

    max_record_bytes: int = 64 << 20
    """One line, row or file. The largest notebooks of the Stack have some tens of megabytes."""
    max_expansion: int = 300
    """Decompressed bytes for each compressed one, from `expansion_free_bytes` on. Text has 3 to 30."""
    expansion_free_bytes: int = 32 << 20


@dataclass(frozen=True)
class ReadOptions:
    """How inputs are read. `suffixes` chooses among the text files of folders; with `as_files`, every file
    in a folder is a document of its own, whatever its name."""

    text_key: str = "text"
    suffixes: tuple[str, ...] | None = None
    as_files: bool = False
    meta: tuple[tuple[str, str], ...] = ()
    """Entries added to `meta` of every document, such as ("lang", "coq")."""
    raw_lines: bool = False
    """The text of a JSON line is the line itself, for steps that read it."""
    cut_bytes: int = 128 << 20
    """A shard of plain JSON lines or Parquet rows has about so many bytes of input."""
    files_bytes: int = 32 << 20
    files_count: int = 4096
    """A shard of source files ends at either."""
    limits: Limits = field(default_factory=Limits)


class Shard(Protocol):
    """A stretch of input. Picklable."""

    @property
    def name(self) -> str:
        """Unique among the shards of a run; the output is called so. Digits and letters, `-`, `_` and `.`."""

    @property
    def size_bytes(self) -> int:
        """Bytes of input as they lie on the disk, for the progress."""

    def identity(self) -> object:
        """What JSON can hold, and what changes when the input does."""

    def read(self) -> Iterator[Document | Broken]:
        """The documents in their order. Errors: `UserError` where a file can no longer be read."""


@dataclass(frozen=True)
class JsonLinesShard:
    """The lines of a `.jsonl`, `.jsonl.gz` or `.jsonl.zst` file that begin in bytes `start` to `end` (all,
    where `end` is None; compressed files are never cut)."""

    name: str
    file: Place
    format: str
    options: ReadOptions
    size_bytes: int
    start: int = 0
    end: int | None = None

    def identity(self) -> object:
        """The file's name, size and time, the stretch of it, and how it is read."""
        return ["lines", *identity_of(self.file), self.start, self.end, version_of(1, self.options)]

    def read(self) -> Iterator[Document | Broken]:
        """One document a line; blank lines are none."""
        place, where = self.start, shown_path(self.file)
        try:
            for number, (line, length) in enumerate(self._lines(), 1):
                here = f"{where}:{number}" if self.start == 0 else f"{where}@{place}"
                place += length
                if line is None:
                    limit = self.options.limits.max_record_bytes
                    yield Broken(here, f"is a line of more than {limit} bytes")
                elif line and not line.isspace():
                    yield document_of_line(line, here, self.options)
        except BrokenArchive as error:
            yield Broken(where, str(error))
        except OSError as error:
            raise UserError(f"{where}: cannot be read ({error.strerror or error}); check the disk") from None

    def _lines(self) -> Iterator[tuple[bytes | None, int]]:
        """Each line without its end, None for one that is too long, and its length on the disk."""
        blocks = self._blocks()
        if self.format != ".jsonl":
            return cut_lines(
                bounded(DECOMPRESS[self.format](blocks), self.size_bytes, self.options.limits),
                self.options.limits.max_record_bytes,
            )
        return self._own_lines(cut_lines(blocks, self.options.limits.max_record_bytes))

    def _own_lines(self, lines: Iterator[tuple[bytes | None, int]]) -> Iterator[tuple[bytes | None, int]]:
        """Those that begin in this stretch; a line that begins before it is another shard's."""
        place = self.start
        if self.start:
            _, length = next(lines, (b"", 0))  # from the byte before, so that a line's end may stand there
            place += length - 1
            yield b"", length - 1
        for line, length in lines:
            if self.end is not None and place >= self.end:
                return
            place += length
            yield line, length

    def _blocks(self) -> Iterator[bytes]:
        size = _BLOCK_BYTES if self.format == ".jsonl" else _COMPRESSED_BLOCK_BYTES
        first = self.start == 0
        with open_place(self.file) as file:
            file.seek(max(0, self.start - 1))
            while block := file.read(size):
                yield block.removeprefix(_UTF8_BOM) if first and self.format == ".jsonl" else block
                first = False


def bounded(pieces: Iterable[bytes], compressed_bytes: int, limits: Limits) -> Iterator[bytes]:
    """The pieces, as long as they are not far more than what was compressed could honestly hold."""
    allowed = max(limits.expansion_free_bytes, limits.max_expansion * compressed_bytes)
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > allowed:
            raise BrokenArchive(f"expands beyond {allowed} bytes; the rest is not read")
        yield piece


def cut_lines(blocks: Iterable[bytes], limit_bytes: int) -> Iterator[tuple[bytes | None, int]]:
    """(line without its end, length with its end); the line is None where it is longer than the limit. A
    last line without an end counts as one, unless `blocks` raises."""
    pending: list[bytes] = []
    length = 0
    for block in blocks:
        start = 0
        while (cut := block.find(b"\n", start)) >= 0:
            pending.append(block[start:cut])
            line = b"".join(pending) if length + cut - start <= limit_bytes else None
            yield line, length + cut - start + 1
            pending, length, start = [], 0, cut + 1
        length += len(block) - start
        if length <= limit_bytes:
            pending.append(block[start:])
        else:
            pending = []
    if length:
        yield (b"".join(pending) if length <= limit_bytes else None), length


def document_of_line(line: bytes, where: str, options: ReadOptions) -> Document | Broken:
    """The document of one JSON line: its text, and all other keys as `meta`, that of "meta" spread out."""
    if options.raw_lines:
        try:
            return Document(line.decode("utf-8-sig"), dict(options.meta))
        except UnicodeDecodeError:
            return Broken(where, "is not UTF-8 text")
    try:
        value = orjson.loads(line.removeprefix(_UTF8_BOM))
    except (orjson.JSONDecodeError, RecursionError) as error:
        return Broken(where, f"is not JSON ({str(error).split(': line')[0]})")
    if not isinstance(value, dict):
        return Broken(where, f"is not a JSON object but a {type(value).__name__}")
    return document_of_record(value, where, options)


def document_of_record(record: dict[str, Any], where: str, options: ReadOptions) -> Document | Broken:
    """The document of one JSON object or Parquet row."""
    key = options.text_key
    if key not in record:
        return Broken(where, f"has no {key!r}")
    text = record.pop(key)
    if not isinstance(text, str):
        return Broken(where, f"{key!r} is not text but {'null' if text is None else type(text).__name__}")
    if len(text) > options.limits.max_record_bytes:
        return Broken(where, f"is a text of more than {options.limits.max_record_bytes} characters")
    meta = decoded_meta(record.pop("meta", None))
    return Document(text, {**meta, **record, **dict(options.meta)})


@dataclass(frozen=True)
class ParquetShard:
    """Row groups `first` to `last` (the last not included) of a Parquet file."""

    name: str
    file: Place
    first: int
    last: int
    options: ReadOptions
    size_bytes: int

    def identity(self) -> object:
        """The file's name, size and time, and the row groups."""
        return ["parquet", *identity_of(self.file), self.first, self.last, version_of(1, self.options)]

    def read(self) -> Iterator[Document | Broken]:
        """One document a row; the other columns are its `meta`."""
        import pyarrow
        import pyarrow.parquet

        where, row = shown_path(self.file), 0
        try:
            with open_place(self.file) as file, pyarrow.parquet.ParquetFile(file) as table:
                groups = list(range(self.first, self.last))
                row = sum(table.metadata.row_group(group).num_rows for group in range(self.first))
                # Few rows at once: a page of some bytes may stand for many copies of a large text.
                for batch in table.iter_batches(batch_size=16, row_groups=groups, use_threads=False):
                    for record in _records_of(batch):
                        row += 1
                        if record is None:
                            yield Broken(f"{where}:{row}", "is not UTF-8 text")
                        else:
                            yield document_of_record(record, f"{where}:{row}", self.options)
        except (pyarrow.ArrowException, UnicodeDecodeError, OverflowError) as error:
            yield Broken(f"{where}:{row + 1}", f"is damaged Parquet data ({_first_line(error)})")
        except OSError as error:
            if error.errno is not None:
                raise UserError(f"{where}: cannot be read ({error.strerror}); check the disk") from None
            yield Broken(f"{where}:{row + 1}", f"is damaged Parquet data ({_first_line(error)})")


def _records_of(batch: Any) -> Iterator[dict[str, Any] | None]:
    """The rows of a batch; None for one that is not UTF-8."""
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass
    for number in range(batch.num_rows):
        try:
            [record] = batch.slice(number, 1).to_pylist()
        except UnicodeDecodeError:
            record = None
        yield record


@dataclass(frozen=True)
class BrokenShard:
    """A file that cannot even be planned: one broken record."""

    name: str
    file: Place
    reason: str
    size_bytes: int

    def identity(self) -> object:
        """The file's name, size and time."""
        return ["broken", *identity_of(self.file), self.reason]

    def read(self) -> Iterator[Document | Broken]:
        """The one record."""
        yield Broken(shown_path(self.file), self.reason)


@dataclass(frozen=True)
class FilesShard:
    """Source files below `root`, each a document with its relative path in `meta["path"]`."""

    name: str
    root: Path
    files: tuple[str, ...]
    options: ReadOptions
    size_bytes: int

    def identity(self) -> object:
        """A hash over names, sizes and times."""
        digest = hashlib.sha256()
        for file in self.files:
            try:
                status = os.lstat(self.root / file)
                line = f"{shown_path(file)}\0{status.st_size}\0{status.st_mtime_ns}\n"
            except OSError:
                line = f"{shown_path(file)}\0\n"
            digest.update(line.encode())
        return ["files", shown_path(self.root), digest.hexdigest(), version_of(1, self.options)]

    def read(self) -> Iterator[Document | Broken]:
        """One document a file. Symbolic links, and what is no file, are not followed but counted."""
        for file in self.files:
            path = self.root / file
            try:
                data = read_regular(path, self.options.limits.max_record_bytes)
            except OSError as error:
                yield Broken(shown_path(path), f"cannot be read ({error.strerror or error})")
                continue
            if isinstance(data, str):
                yield Broken(shown_path(path), data)
                continue
            try:
                text = data.removeprefix(_UTF8_BOM).decode("utf-8")
            except UnicodeDecodeError:
                yield Broken(shown_path(path), "is not UTF-8 text")
                continue
            yield Document(text, {"path": shown_path(file), **dict(self.options.meta)})


def read_regular(path: Path, limit_bytes: int) -> bytes | str:
    """The bytes of a plain file, or why they are not taken: it is a link, a device, empty, or too large."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "is a symbolic link, which is not followed"
        raise
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return "is not a plain file"
        data = file.read(limit_bytes + 1)
    if not data:
        return "holds no bytes"
    return data if len(data) <= limit_bytes else f"has more than {limit_bytes} bytes"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def plan_shards(inputs: Sequence[Place], options: ReadOptions, prefix: str = "") -> Iterator[Shard]:
    """The shards of the inputs, in their order, folders in the order of their sorted paths, named `prefix`
    and a number of five digits. URLs may hold JSON lines and Parquet.

    Errors: `UserError` for an input that is missing or holds nothing to read."""
    number = 0
    for place in inputs:
        before = number
        shards = _shards_of if isinstance(place, Path) else _shards_of_url
        for shard in shards(place, options, prefix, number):  # type: ignore[arg-type]
            number += 1
            yield shard
        if number == before:
            wanted = f" that ends in {', '.join(options.suffixes)}" if options.suffixes else ""
            raise UserError(f"{place}: holds no file{wanted} to read; give a folder with documents")


def _shards_of_url(url: str, options: ReadOptions, prefix: str, number: int) -> Iterator[Shard]:
    for file, size in listing(url):
        if (kind := _kind(file, in_folder=False)) != "text":
            for shard in _record_shards(file, size, kind, options, prefix, number):
                yield shard
                number += 1


def _shards_of(path: Path, options: ReadOptions, prefix: str, number: int) -> Iterator[Shard]:
    if path.is_file():
        kind = _kind(path.name, in_folder=False)
        if kind == "text":
            yield FilesShard(f"{prefix}{number:05}", path.resolve().parent, (path.resolve().name,), options,
                             path.stat().st_size)  # fmt: skip
        else:
            yield from _record_shards(path, path.stat().st_size, kind, options, prefix, number)
        return
    if not path.is_dir():
        raise UserError(f"{path}: does not exist; give a file or a folder")
    group: list[str] = []
    group_bytes = 0
    for file in walk(path, options):
        kind = "text" if options.as_files else _kind(file, in_folder=True)
        size = os.lstat(path / file).st_size
        if kind == "text" or (path / file).is_symlink():
            group.append(file)
            group_bytes += size
        else:
            for shard in _record_shards(path / file, size, kind, options, prefix, number):
                yield shard
                number += 1
        if len(group) >= options.files_count or group_bytes >= options.files_bytes:
            yield FilesShard(f"{prefix}{number:05}", path, tuple(group), options, group_bytes)
            group, group_bytes, number = [], 0, number + 1
    if group:
        yield FilesShard(f"{prefix}{number:05}", path, tuple(group), options, group_bytes)


def walk(root: Path, options: ReadOptions) -> Iterator[str]:
    """Paths below `root` of the files to read and of symbolic links in their places, sorted by folder. Hidden
    files and folders are left out."""
    suffixes = options.suffixes
    for folder, names, files in os.walk(root):
        links = [name for name in names if os.path.islink(os.path.join(folder, name))]
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in links)
        for name in sorted([*files, *links]):
            if name.startswith("."):
                continue
            wanted = (
                suffixes is None
                or name in links
                or name.lower().endswith(suffixes)
                or (not options.as_files and _kind(name, in_folder=True) != "text")
            )
            if wanted:
                yield os.path.relpath(os.path.join(folder, name), root)


def _kind(name: str, in_folder: bool) -> str:
    """A key of `DECOMPRESS`, ".parquet" or "text", by the name."""
    lower = name.lower()
    for suffix in (*DECOMPRESS, ".parquet"):
        if lower.endswith(suffix):
            return suffix
    if lower.endswith((".json.gz", ".json.zst")):
        return f".jsonl{lower[lower.rindex('.') :]}"
    return ".jsonl" if lower.endswith(".json") and not in_folder else "text"


def _record_shards(
    path: Place, size: int, kind: str, options: ReadOptions, prefix: str, number: int
) -> Iterator[Shard]:
    if kind == ".parquet":
        yield from _parquet_shards(path, size, options, prefix, number)
    elif kind != ".jsonl" or size <= options.cut_bytes:
        yield JsonLinesShard(f"{prefix}{number:05}", path, kind, options, size)
    else:
        for start in range(0, size, options.cut_bytes):
            end = min(size, start + options.cut_bytes)
            yield JsonLinesShard(f"{prefix}{number:05}", path, kind, options, end - start, start, end)
            number += 1


def _parquet_shards(
    path: Place, size: int, options: ReadOptions, prefix: str, number: int
) -> Iterator[Shard]:
    import pyarrow
    import pyarrow.parquet

    try:
        with open_place(path) as file, pyarrow.parquet.ParquetFile(file) as table:
            metadata = table.metadata
            group_bytes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check it") from None
        yield BrokenShard(
            f"{prefix}{number:05}", path, f"is damaged Parquet data ({_first_line(error)})", size
        )
        return
    total, first, pending = max(1, sum(group_bytes)), 0, 0
    for index, nbytes in enumerate(group_bytes):
        pending += nbytes
        if pending >= options.cut_bytes or index == len(group_bytes) - 1:
            share = size * pending // total
            yield ParquetShard(f"{prefix}{number:05}", path, first, index + 1, options, share)
            first, pending, number = index + 1, 0, number + 1
    if not group_bytes:
        yield ParquetShard(f"{prefix}{number:05}", path, 0, 0, options, size)


@dataclass(frozen=True)
class StageShard:
    """What a stage wrote into one route of one shard: the input of the next stage, known by its hash."""

    name: str
    file: Path
    sha256: str
    size_bytes: int

    def identity(self) -> object:
        """The hash of the file."""
        return ["stage", self.sha256]

    def read(self) -> Iterator[Document | Broken]:
        """The documents. Limits are for what others wrote: what passed a stage is not lost at the next.

        Errors: `UserError` for a file that is not what the stage wrote."""
        options = ReadOptions(limits=Limits(sys.maxsize, sys.maxsize, sys.maxsize))
        shard = JsonLinesShard(self.name, self.file, ".jsonl.zst", options, self.size_bytes)
        for record in shard.read():
            if isinstance(record, Broken):
                raise UserError(
                    f"{record.where}: {record.reason}, but a stage wrote it whole; remove its folder, and "
                    "the same command makes it again"
                )
            yield record
