# SPDX-License-Identifier: Apache-2.0
"""The corpus cut into parts that processes read by themselves, in any order, and whose results can be kept.

A part is known by a key: a hash over the file, its size and the time of its last change, and the stretch of
it. The cut depends on the inputs alone, not on the number of processes:

    plain JSON lines      byte ranges; a line belongs to the range in which it begins
    compressed JSON lines stretches of the text inside. How many there are is known at the end of the file
    Parquet               row groups in a row
    text files            files in a row

A `Task` is what a process takes at a time. It is one part; or, of a compressed file, every m-th: each of m
processes decompresses the file and passes over the parts of the others, which for zstd is fifty times faster
than tokenising.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from megatron.data.readers import (
    Chunk,
    Corpus,
    Input,
    JsonLines,
    TextFiles,
    json_line_chunks,
    line_range_chunks,
    parquet_chunks,
)
from megatron.neox_arguments.errors import UserError

# Parts are 1/64 of their file within these bounds: small enough to be shared out and lost, large enough that
# a terabyte is some thousand files.
_SMALLEST_PART_BYTES, _LARGEST_PART_BYTES = 16 << 20, 256 << 20
_PARTS_OF_A_FILE = 64
_TEXT_TO_COMPRESSED = 4  # about, for zstd and gzip
_CHUNK_BYTES = 1 << 20

ReadChunk: TypeAlias = tuple[Chunk, int]
"""A chunk, and how many bytes of input (as they lie on the disk) have been read for it."""


def part_bytes_of(size: int) -> int:
    """Bytes of text in a part of a file of `size` bytes: a power of two."""
    wanted = max(1, size // _PARTS_OF_A_FILE)
    return min(max(1 << (wanted - 1).bit_length(), _SMALLEST_PART_BYTES), _LARGEST_PART_BYTES)


def key_of(inputs: Sequence[Input], *stretch: object) -> str:
    """The key of a part: 40 hexadecimal digits."""
    files = [[str(found.path.absolute()), found.size, found.modified_ns, found.format] for found in inputs]
    return hashlib.sha256(json.dumps([files, stretch]).encode()).hexdigest()[:40]


@dataclass(frozen=True)
class LineRange:
    """Lines of a plain JSONL file that begin in bytes `begin` to `end`."""

    found: Input
    json_key: str
    begin: int
    end: int

    @property
    def key(self) -> str:
        """Of the one part."""
        return key_of([self.found], self.json_key, self.begin, self.end)

    @property
    def inputs(self) -> Sequence[Input]:
        """The file."""
        return (self.found,)

    @property
    def input_bytes(self) -> int:
        """Of the one part."""
        return self.end - self.begin

    def chunks(self) -> Iterator[ReadChunk]:
        """Its text."""
        return line_range_chunks(self.found, self.json_key, self.begin, self.end)


@dataclass(frozen=True)
class RowGroups:
    """Row groups of a Parquet file, all of them where `groups` is None."""

    found: Input
    json_key: str
    groups: tuple[int, ...] | None
    first_row: int
    input_bytes: int

    @property
    def key(self) -> str:
        """Of the one part."""
        return key_of([self.found], self.json_key, self.groups)

    @property
    def inputs(self) -> Sequence[Input]:
        """The file."""
        return (self.found,)

    def chunks(self) -> Iterator[ReadChunk]:
        """Its text."""
        return parquet_chunks(self.found, self.json_key, self.groups, self.first_row)


@dataclass(frozen=True)
class WholeFiles:
    """Text files in a row, each one document."""

    files: tuple[Input, ...]

    @property
    def key(self) -> str:
        """Of the one part."""
        return key_of(self.files)

    @property
    def inputs(self) -> Sequence[Input]:
        """The files."""
        return self.files

    @property
    def input_bytes(self) -> int:
        """Of the one part."""
        return sum(found.size for found in self.files)

    def chunks(self) -> Iterator[ReadChunk]:
        """Its text."""
        texts: list[tuple[str, bytes]] = []
        size = 0
        for found in self.files:
            data = found.path.read_bytes()
            texts.append((str(found.path), data))
            size += len(data)
            if size >= _CHUNK_BYTES:
                yield TextFiles(texts), size
                texts, size = [], 0
        if texts:
            yield TextFiles(texts), size


@dataclass(frozen=True)
class Stretches:
    """Of the stretches of a compressed file those whose number is `residue` modulo `modulus`.

    A stretch is the lines that begin in a range of `part_bytes` bytes of the text inside."""

    found: Input
    json_key: str
    residue: int
    modulus: int

    @property
    def part_bytes(self) -> int:
        """Bytes of text in a stretch."""
        return part_bytes_of(self.found.size * _TEXT_TO_COMPRESSED)

    @property
    def inputs(self) -> Sequence[Input]:
        """The file."""
        return (self.found,)

    @property
    def file_key(self) -> str:
        """The key under which the numbers of its stretches are kept."""
        return key_of([self.found], self.json_key, self.part_bytes)

    def key(self, number: int) -> str:
        """The key of a stretch."""
        return key_of([self.found], self.json_key, self.part_bytes, number)

    def stretches(self) -> Iterator[tuple[int, Iterator[ReadChunk]]]:
        """All stretches of the file, with their numbers; those in which no line begins are left out."""
        for number, group in itertools.groupby(self._numbered(), key=lambda chunk: chunk[0]):
            yield number, (chunk for _, chunk in group)

    def _numbered(self) -> Iterator[tuple[int, ReadChunk]]:
        """Chunks with the numbers of their stretches; a chunk that two stretches share is cut in two."""
        read = _CountedBlocks(self.found)
        begin = 0  # byte of the text at which the chunk begins
        for chunk in json_line_chunks(self.found, self.json_key, read.blocks()):
            if not isinstance(chunk, JsonLines):
                yield begin // self.part_bytes, (chunk, 0)
                continue
            for piece in self._cut(chunk, begin):
                yield begin // self.part_bytes, (piece, read.take() // self.modulus)
                begin += len(piece.data)

    def _cut(self, chunk: JsonLines, begin: int) -> Iterator[JsonLines]:
        while chunk.data:
            border = (begin // self.part_bytes + 1) * self.part_bytes
            # The first line that begins at the border or after it; a line break just before it will do.
            cut = chunk.data.find(b"\n", max(0, border - begin - 1)) + 1 or len(chunk.data)
            head = chunk.data[:cut]
            yield JsonLines(chunk.file, chunk.first_line, chunk.key, head)
            line = chunk.first_line + head.count(b"\n")
            chunk = JsonLines(chunk.file, line, chunk.key, chunk.data[cut:])
            begin += cut


class _CountedBlocks:
    """The bytes of a file, counted."""

    def __init__(self, found: Input) -> None:
        self._found, self._read_bytes = found, 0

    def blocks(self) -> Any:
        """The bytes, in order."""
        with open(self._found.path, "rb", buffering=0) as file:
            while block := file.read(1 << 16):
                self._read_bytes += len(block)
                yield block

    def take(self) -> int:
        """How many have been read since the last call."""
        taken, self._read_bytes = self._read_bytes, 0
        return taken


Part: TypeAlias = LineRange | RowGroups | WholeFiles
Task: TypeAlias = Part | Stretches


@dataclass(frozen=True)
class Plan:
    """The corpus in the order of its documents: single parts, and compressed files of unknown parts."""

    corpus: Corpus
    entries: tuple[Task, ...]

    @classmethod
    def of(cls, corpus: Corpus) -> Plan:
        """Cut a corpus. Parquet files are opened for the sizes of their row groups."""
        entries: list[Task] = []
        for is_text, group in itertools.groupby(corpus.inputs, key=lambda found: found.format == "text"):
            if is_text:
                entries.extend(_text_groups(list(group)))
                continue
            for found in group:
                try:
                    entries.extend(_entries_of(found, corpus.key))
                except OSError as error:
                    raise unreadable(found.path, error) from None
        return cls(corpus, tuple(entries))

    def tasks(self, processes: int) -> list[Task]:
        """What there is to do for so many processes, in the order of the documents."""
        compressed = sum(isinstance(entry, Stretches) for entry in self.entries)
        modulus = max(1, min(_PARTS_OF_A_FILE, -(-processes // max(1, compressed))))
        tasks: list[Task] = []
        for entry in self.entries:
            if isinstance(entry, Stretches):
                tasks += [
                    Stretches(entry.found, entry.json_key, residue, modulus) for residue in range(modulus)
                ]
            else:
                tasks.append(entry)
        return tasks


def unreadable(path: Path | str, error: OSError) -> UserError:
    """An input that the system refuses to read."""
    return UserError(
        f"{path}: cannot be read ({error.strerror or error}); check it, or leave it out of --input"
    )


def _entries_of(found: Input, json_key: str) -> Iterator[LineRange | RowGroups | Stretches]:
    if found.format == ".parquet":
        yield from _row_groups(found, json_key)
    elif found.format == ".jsonl":
        step = part_bytes_of(found.size)
        for begin in range(0, found.size, step):
            yield LineRange(found, json_key, begin, min(begin + step, found.size))
    else:
        yield Stretches(found, json_key, 0, 1)


def _text_groups(files: list[Input]) -> Iterator[WholeFiles]:
    size, group = 0, list[Input]()
    for found in files:
        group.append(found)
        size += found.size
        if size >= _SMALLEST_PART_BYTES:
            yield WholeFiles(tuple(group))
            size, group = 0, []
    if group:
        yield WholeFiles(tuple(group))


def _row_groups(found: Input, json_key: str) -> Iterator[RowGroups]:
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(found.path)
        sizes = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
        rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        sizes = []
    if not sizes:  # damaged, or without rows: the reader says which
        yield RowGroups(found, json_key, None, 1, found.size)
    first_row, begin = 1, 0
    for end in range(1, len(sizes) + 1):
        if end == len(sizes) or sum(sizes[begin:end]) >= part_bytes_of(found.size):
            share = found.size * (end - begin) // len(sizes)
            yield RowGroups(found, json_key, tuple(range(begin, end)), first_row, share)
            first_row += sum(rows[begin:end])
            begin = end
