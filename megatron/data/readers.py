# SPDX-License-Identifier: Apache-2.0
"""Documents out of files: `.jsonl`, `.jsonl.zst`, `.jsonl.gz`, `.parquet`, text files and folders of any of
them.

Reading is cut in two, so that many processes can share it: `Corpus.chunks` reads and decompresses bytes in
order, and `Chunk.records` finds the documents in them, anywhere. What is broken becomes a `Broken` with file
and line; nothing a file contains raises anything else."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import orjson

from megatron.data.decompress import DECOMPRESS, BrokenArchive
from megatron.data.token_file import SourceRecord
from megatron.neox_arguments.errors import UserError

_CHUNK_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 16
# No document is that long; a file without line ends, or a bomb, is.
_LONGEST_LINE_BYTES = 256 << 20
_LINE_END = b"\n"
_UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Document:
    """The text of one document and where it stands (`file:line`, `file:row` or the file)."""

    text: str
    where: str


@dataclass(frozen=True)
class Broken:
    """A place that should hold a document and does not."""

    where: str
    reason: str


@dataclass(frozen=True)
class Fields:
    """A JSON object and the line it stands on."""

    values: dict[str, Any]
    where: str

    def text(self, key: str) -> Document | Broken:
        """The string at `key`."""
        if key not in self.values:
            has = ", ".join(sorted(self.values)[:8]) or "no keys"
            return Broken(self.where, f"has no {key!r}; it has {has}")
        text = self.values[key]
        if not isinstance(text, str):
            return Broken(self.where, f"{key!r} is not a string but a {type(text).__name__}")
        return Document(text, self.where)


def _parse(line: bytes, where: str) -> Fields | Broken:
    if len(line) > _LONGEST_LINE_BYTES:
        return Broken(where, _too_long())
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Broken(where, f"is not JSON: {error.msg} at column {error.colno}")
    if not isinstance(value, dict):
        return Broken(where, f"is not a JSON object but a {type(value).__name__}")
    return Fields(value, where)


class Chunk(Protocol):
    """A stretch of the corpus, small enough to hand to a process. Picklable."""

    def records(self) -> Iterator[Document | Broken]:
        """The documents in it, in order."""


@dataclass(frozen=True)
class JsonLines:
    """Whole lines of a JSONL file, of which the first is line `first_line`; blank lines are no records.

    Lines are counted from the byte `start_byte` of the file on. Where that is not its beginning, a `Broken`
    still tells the line of the file (what is before is read for it), and a `Document` the byte."""

    file: str
    first_line: int
    key: str
    data: bytes
    start_byte: int = 0

    def records(self) -> Iterator[Document | Broken]:
        """One record a line."""
        for number, line in enumerate(self.data.split(b"\n"), self.first_line):
            if line and not line.isspace():
                record = self._record(line, f"{self.file}:{number}")
                yield record if self.start_byte == 0 else self._placed(record, number)

    def _placed(self, record: Document | Broken, number: int) -> Document | Broken:
        if isinstance(record, Broken):
            return Broken(f"{self.file}:{number + _lines_before(self.file, self.start_byte)}", record.reason)
        return Document(record.text, f"{self.file}: line {number} from byte {self.start_byte} on")

    def objects(self) -> Iterator[Fields | Broken]:
        """The whole JSON object of each line."""
        for number, line in enumerate(self.data.split(b"\n"), self.first_line):
            if line and not line.isspace():
                yield _parse(line, f"{self.file}:{number}")

    def _record(self, line: bytes, where: str) -> Document | Broken:
        found = _parse(line, where)
        return found if isinstance(found, Broken) else found.text(self.key)


@functools.lru_cache(maxsize=1)
def _lines_before(file: str, end: int) -> int:
    """Line ends in the first `end` bytes of a file."""
    lines = done = 0
    with open(file, "rb", buffering=0) as opened:
        while done < end and (block := opened.read(min(_CHUNK_BYTES, end - done))):
            lines += block.count(b"\n")
            done += len(block)
    return lines


@dataclass(frozen=True)
class ParquetRows:
    """Texts of consecutive rows, of which the first is row `first_row` (from 1); bytes where a text is not
    UTF-8."""

    file: str
    first_row: int
    key: str
    texts: list[str | bytes | None]

    def records(self) -> Iterator[Document | Broken]:
        """One record a row."""
        for number, text in enumerate(self.texts, self.first_row):
            where = f"{self.file}:{number}"
            if isinstance(text, str):
                yield Document(text, where)
            else:
                yield Broken(where, f"{self.key!r} is {'null' if text is None else 'not UTF-8 text'}")


@dataclass(frozen=True)
class TextFiles:
    """Whole files, each one document."""

    files: list[tuple[str, bytes]]

    def records(self) -> Iterator[Document | Broken]:
        """One record a file."""
        for file, data in self.files:
            try:
                yield Document(data.removeprefix(_UTF8_BOM).decode("utf-8"), file)
            except UnicodeDecodeError as error:
                line = data.count(b"\n", 0, error.start) + 1
                yield Broken(f"{file}:{line}", f"is not UTF-8 text (byte {error.start}: {error.reason})")


@dataclass(frozen=True)
class BrokenFile:
    """The place at which a file could not be read on."""

    where: str
    reason: str

    def records(self) -> Iterator[Document | Broken]:
        """The one broken record that stands for what is lost from here on."""
        yield Broken(self.where, self.reason)


def _format_of(path: Path, in_folder: bool) -> str:
    """The format by the name: a key of `DECOMPRESS`, ".parquet" or "text"."""
    name = path.name.lower()
    for suffix in (*DECOMPRESS, ".parquet"):
        if name.endswith(suffix):
            return suffix
    # Megatron-LM's habit is to call JSON lines .json; in a folder of code a .json is a file like the others.
    return ".jsonl" if name.endswith(".json") and not in_folder else "text"


def _is_entered(folder: str) -> bool:
    """Whether a folder of this name within another is read."""
    return not folder.startswith(".") and folder != "__pycache__"


@dataclass(frozen=True)
class Input:
    """One file of the corpus; `folder` is the --input folder a text file was found in."""

    path: Path
    format: str
    size: int
    folder: Path | None
    modified_ns: int = 0

    @classmethod
    def at(cls, path: Path, format: str, folder: Path | None) -> Input:
        """A file that is there, with its size and the time of its last change."""
        status = path.stat()
        return cls(path, format, status.st_size, folder, status.st_mtime_ns)

    def check_unchanged(self) -> None:
        """Raises:
        UserError: the file is another one than when it was first looked at.
        """
        now = self.at(self.path, self.format, self.folder)
        if now != self:
            raise UserError(f"{self.path}: has changed while it was read; start again when nobody writes it")

    def sha256(self) -> str:
        """Of its bytes, hexadecimal."""
        digest = hashlib.sha256()
        with open(self.path, "rb", buffering=0) as file:
            while block := file.read(_CHUNK_BYTES):
                digest.update(block)
        return digest.hexdigest()


def source_records(hashes: Sequence[tuple[Input, str]]) -> list[SourceRecord]:
    """What a token file was made of, from the SHA-256 of every input; the text files of a folder are one
    record.
    """
    records: list[SourceRecord] = []
    folders: dict[Path, list[tuple[Input, str]]] = {}
    for found, digest in hashes:
        if found.folder is None:
            records.append(SourceRecord(path=_shown(found.path), files=1, bytes=found.size, sha256=digest))
        else:
            folders.setdefault(found.folder, []).append((found, digest))
    for folder, members in folders.items():
        lines = "".join(
            f"{digest}  {found.path.relative_to(folder).as_posix()}\n" for found, digest in members
        )
        size = sum(found.size for found, _ in members)
        digest = hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
        records.append(SourceRecord(path=_shown(folder), files=len(members), bytes=size, sha256=digest))
    return records


def _shown(path: Path) -> str:
    """A path as JSON can hold it: bytes of a name that are not UTF-8 as `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class Corpus:
    """All documents of the inputs, in the order of the inputs; of a folder its files sorted by name, then its
    sub-folders in the same way.

    Hidden folders, `__pycache__` and links to folders are left out, links to files are followed;
    `text_suffixes` (such as [".py"]) restricts which of its text files are read. Errors: `UserError` for an
    input that is missing, holds nothing or may not be read, and for a Parquet file without the column
    `key`."""

    def __init__(
        self, inputs: Sequence[Path], key: str = "text", text_suffixes: Sequence[str] | None = None
    ) -> None:
        self.key = key
        self._suffixes = None if text_suffixes is None else tuple(s.lower() for s in text_suffixes)
        self._folders = [path for path in map(Path, inputs) if path.is_dir()]
        self._inputs = [found for path in inputs for found in self._expand(Path(path))]
        self._hashes: list[tuple[Input, str]] = []
        self.read_bytes = 0
        """Bytes of input read so far, as they lie on the disk."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all inputs, as they lie on the disk."""
        return sum(found.size for found in self._inputs)

    @property
    def inputs(self) -> Sequence[Input]:
        """The input files, in the order in which they are read."""
        return tuple(self._inputs)

    @property
    def files(self) -> int:
        """Number of input files."""
        return len(self._inputs)

    def folder_that_reads(self, path: Path) -> Path | None:
        """The --input folder of whose documents a file at `path` would be one, if any."""
        target = path.parent.resolve() / path.name
        for folder in self._folders:
            if folder.resolve() in target.parents:
                *parents, name = target.relative_to(folder.resolve()).parts
                if all(map(_is_entered, parents)) and self._is_read(name):
                    return folder
        return None

    def _is_read(self, name: str) -> bool:
        """Whether a file of this name in a folder is read."""
        if name.startswith("."):
            return False
        is_text = _format_of(Path(name), in_folder=True) == "text"
        return not is_text or self._suffixes is None or name.lower().endswith(self._suffixes)

    def chunks(self) -> Iterator[Chunk]:
        """The corpus in stretches of about 1 MB of text; call it once."""
        texts: list[tuple[str, bytes]] = []
        for found in self._inputs:
            if texts and (found.format != "text" or sum(len(data) for _, data in texts) >= _CHUNK_BYTES):
                yield TextFiles(texts)
                texts = []
            try:
                if found.format == "text":
                    texts.append((str(found.path), b"".join(self._blocks(found))))
                elif found.format == ".parquet":
                    yield from self._parquet(found)
                else:
                    yield from json_line_chunks(found, self.key, self._blocks(found))
            except OSError as error:
                raise UserError(
                    f"{found.path}: cannot be read ({error.strerror or error}); check it, or leave it out of "
                    "--input"
                ) from None
        if texts:
            yield TextFiles(texts)

    def sources(self) -> list[SourceRecord]:
        """What was read, with hashes; complete when `chunks` has come to its end."""
        return source_records(self._hashes)

    def _expand(self, path: Path) -> Iterator[Input]:
        if path.is_file():
            yield Input.at(path, _format_of(path, in_folder=False), None)
            return
        if not path.is_dir():
            what = "is not a file or folder but a pipe or device" if path.exists() else "does not exist"
            raise UserError(f"--input {path}: {what}; give a file or a folder")
        found_any = False
        for folder, names, files in os.walk(path):
            names[:] = sorted(filter(_is_entered, names))
            for name in sorted(files):
                file = Path(folder, name)
                if not self._is_read(name) or not file.is_file():
                    continue
                kind = _format_of(file, in_folder=True)
                found_any = True
                yield Input.at(file, kind, path if kind == "text" else None)
        if not found_any:
            wanted = "" if self._suffixes is None else f" that ends in {', '.join(self._suffixes)}"
            raise UserError(f"--input {path}: the folder holds no file{wanted}; give a folder with documents")

    def _blocks(self, found: Input) -> Generator[bytes, None, None]:
        """The bytes of a file; counts them, and hashes all of them even when the reader stops early."""
        digest = hashlib.sha256()
        with open(found.path, "rb", buffering=0) as file:
            try:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
                    self.read_bytes += len(block)
                    yield block
            finally:
                while block := file.read(_CHUNK_BYTES):
                    digest.update(block)
                    self.read_bytes += len(block)
                self._hashes.append((found, digest.hexdigest()))

    def _parquet(self, found: Input) -> Iterator[Chunk]:
        before = self.read_bytes
        for _ in self._blocks(found):  # the file is read twice: front to back for its hash, and by column
            pass
        self.read_bytes = before
        for chunk, read_bytes in parquet_chunks(found, self.key):
            self.read_bytes += read_bytes
            yield chunk
        self.read_bytes = before + found.size


def json_line_chunks(found: Input, key: str, raw: Generator[bytes, None, None]) -> Iterator[Chunk]:
    """The lines of a whole file, whose bytes on the disk are `raw`, cut into chunks at line ends."""
    file, line = str(found.path), 1
    pending: list[bytes] = []
    pending_bytes = line_bytes = 0  # of all that waits, and of the line that has not ended
    is_too_long = False
    broken: str | None = None

    def lines(data: bytes) -> JsonLines:
        return JsonLines(file, line, key, data.removeprefix(_UTF8_BOM) if line == 1 else data)

    try:
        for whole in DECOMPRESS[found.format](raw):
            block = whole
            if is_too_long:
                end = block.find(b"\n") + 1
                if not end:
                    continue
                yield BrokenFile(f"{file}:{line}", _too_long())
                line, is_too_long, block = line + 1, False, block[end:]
            cut = block.rfind(b"\n") + 1
            line_bytes = len(block) - cut if cut else line_bytes + len(block)
            if cut and pending_bytes + cut >= _CHUNK_BYTES:
                data = b"".join([*pending, block[:cut]])
                yield lines(data)
                line += data.count(b"\n")
                pending, pending_bytes = [block[cut:]], len(block) - cut
            else:
                pending.append(block)
                pending_bytes += len(block)
            if line_bytes > _LONGEST_LINE_BYTES:
                data = b"".join(pending)[: pending_bytes - line_bytes]
                if data:
                    yield lines(data)
                line += data.count(b"\n")
                pending, pending_bytes, line_bytes, is_too_long = [], 0, 0, True
    except BrokenArchive as error:
        broken = str(error)
    finally:
        raw.close()
    data = b"".join(pending)
    if broken is not None:  # the last line is cut off with the archive
        data = data[: data.rfind(b"\n") + 1]
    if data:
        yield lines(data)
    if is_too_long:
        yield BrokenFile(f"{file}:{line}", _too_long())
    if broken is not None:
        yield BrokenFile(f"{file}:{line + data.count(_LINE_END)}", broken)


def _too_long() -> str:
    return f"is a line of more than {_LONGEST_LINE_BYTES >> 20} MiB"


def line_range_chunks(found: Input, key: str, begin: int, end: int) -> Iterator[tuple[Chunk, int]]:
    """The lines of a plain file that begin in its bytes `begin` to `end`, each chunk with its bytes."""
    name = str(found.path)
    with open(found.path, "rb", buffering=_BLOCK_BYTES) as file:
        if begin:  # the line that is under way here began before
            file.seek(begin - 1)
            _skip_line(file)
        position = start = file.tell()
        line = 1
        while position < end:
            data, lines = _some_lines(file, min(_CHUNK_BYTES, end - position))
            if not data:
                return
            position += len(data)
            if lines == 1 and len(data) > _LONGEST_LINE_BYTES and not data.endswith(b"\n"):
                skipped = _skip_line(file)
                position += skipped
                before = _lines_before(name, start) if start else 0
                yield BrokenFile(f"{name}:{line + before}", _too_long()), len(data) + skipped
            else:
                text = data.removeprefix(_UTF8_BOM) if start == 0 and line == 1 else data
                yield JsonLines(name, line, key, text, start), len(data)
            line += lines


def _some_lines(file: BinaryIO, size: int) -> tuple[bytes, int]:
    """Whole lines of at least `size` bytes together, and how many. A line that is too long comes by itself,
    cut off.
    """
    lines: list[bytes] = []
    while size > 0 and (line := file.readline(_LONGEST_LINE_BYTES + 1)):
        if lines and len(line) > _LONGEST_LINE_BYTES and not line.endswith(b"\n"):
            file.seek(-len(line), os.SEEK_CUR)
            break
        lines.append(line)
        size -= len(line)
    return b"".join(lines), len(lines)


def _skip_line(file: BinaryIO) -> int:
    """Read to the end of the line; returns its bytes."""
    skipped = 0
    while piece := file.readline(_CHUNK_BYTES):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


def parquet_chunks(
    found: Input, key: str, row_groups: Sequence[int] | None = None, first_row: int = 1
) -> Iterator[tuple[Chunk, int]]:
    """Rows in batches, each with its share of the file's bytes; all rows, or those of some row groups, of
    which the first is row `first_row`. Memory is one batch and what the file's own row groups need.

    Raises:
        UserError: the column `key` is missing or holds no text.
    """
    import pyarrow
    import pyarrow.parquet

    file, row = str(found.path), first_row
    try:
        table = pyarrow.parquet.ParquetFile(found.path)
        _check_column(found.path, key, table.schema_arrow)
        rows = max(1, table.metadata.num_rows)
        for group in range(table.metadata.num_row_groups) if row_groups is None else row_groups:
            end = row + table.metadata.row_group(group).num_rows
            try:
                for batch in table.iter_batches(batch_size=256, columns=[key], row_groups=[group]):
                    texts = _texts_of(batch.column(0))
                    yield ParquetRows(file, row, key, texts), found.size * len(texts) // rows
                    row += len(texts)
            except (pyarrow.ArrowException, OSError) as error:
                # The other row groups can be read.
                yield _damaged_parquet(file, row, error, f"; {end - row} rows from here on are lost"), 0
            row = end
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        yield _damaged_parquet(file, row, error), 0


def _texts_of(column: Any) -> list[str | bytes | None]:
    """The values of a column of text; bytes in place of what is not UTF-8."""
    import pyarrow

    try:
        texts: list[str | bytes | None] = column.to_pylist()
        return texts
    except UnicodeDecodeError:
        is_large = pyarrow.types.is_large_string(column.type)
        values = column.view(pyarrow.large_binary() if is_large else pyarrow.binary()).to_pylist()
        return [None if value is None else _decoded(value) for value in values]


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def _damaged_parquet(file: str, row: int, error: Exception, more: str = "") -> BrokenFile:
    """Raises:
    OSError: it is one of the system, and not of the data.
    """
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return BrokenFile(f"{file}:{row}", f"is damaged Parquet data ({str(error).splitlines()[0]}){more}")


def _check_column(path: Path, key: str, schema: object) -> None:
    import pyarrow

    assert isinstance(schema, pyarrow.Schema)
    names = list(schema.names)
    if names.count(key) != 1:
        raise UserError(
            f"{path}: has no column {key!r}; its columns are {', '.join(names)}: choose one with --json-key"
        )
    kind = schema.field(key).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise UserError(f"{path}: column {key!r} is {kind}, not text; choose another with --json-key")


def read_documents(inputs: Sequence[Path], key: str = "text") -> Iterator[Document | Broken]:
    """All records of the inputs, one after another, in this process."""
    for chunk in Corpus(inputs, key).chunks():
        yield from chunk.records()
