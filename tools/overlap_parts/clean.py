# SPDX-License-Identifier: Apache-2.0
"""The corpora without what was hit: whole documents left out, or the n-grams in them masked.

The files are read a second time beside the hits, which stand in the same order. Each is written under a
hidden name and then given its own, so that a killed start leaves only whole files, and the next one goes on
with the first that is missing. A line that could not be searched is left out: nobody knows what it holds."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson

from megatron.data.readers import (
    Broken,
    BrokenFile,
    Document,
    JsonLines,
    ParquetRows,
    TextFiles,
)
from megatron.data.token_file import Provenance, SourceRecord, TokenFile, TokenFileWriter
from megatron.neox_arguments.errors import UserError
from tools.overlap_parts.corpus import Place, TokenRange, ids_of, stretches
from tools.overlap_parts.scan import WORK, Job, read_hits, write_output
from tools.overlap_parts.search import WordSearch, build_search

RECORD = "clean.json"


@dataclass(frozen=True)
class Wanted:
    """Where clean corpora go, and what becomes of hits: `mask` replaces them, None drops the document."""

    folder: Path
    mask: str | None


@dataclass
class Cleaned:
    """What became of the documents."""

    kept: int = 0
    masked: int = 0
    dropped: int = 0
    unsearched: int = 0


class _HitPlaces:
    """The places of hits, which come in the order in which documents are asked for."""

    def __init__(self, output: Path) -> None:
        self._places = (hit["where"] for hit in read_hits(output))
        self._next = next(self._places, None)

    def has(self, where: str) -> bool:
        """Whether the document at `where` is hit; the hits up to it are done with."""
        found = False
        while self._next == where:
            found, self._next = True, next(self._places, None)
        return found

    @property
    def are_done(self) -> bool:
        """Whether every hit was met."""
        return self._next is None


def _name_of(place: Place) -> str:
    """What the clean corpus is called; of `.` and `..` the folder's own name."""
    return place.path.name if place.path.name not in ("", "..") else place.path.resolve().name


def write_clean(job: Job, wanted: Wanted) -> Cleaned:
    """Writes all corpora of a finished search to `wanted.folder`, each under its own name.

    Raises:
        UserError: the folder holds something else, two corpora have one name, or tokens are to be masked.
    """
    _claim(job, wanted)
    cleaned, hits = Cleaned(), _HitPlaces(job.output)
    for place in job.places:
        target = wanted.folder / _name_of(place)
        if place.is_tokens:
            _clean_tokens(place, target, hits, cleaned)
        else:
            _clean_text(job, place, target, wanted.mask, hits, cleaned)
    if not hits.are_done:
        raise UserError(
            f"--write-clean={wanted.folder}: the corpora are not what was searched, so what was written may "
            "hold hits; remove it, and begin anew with --overwrite"
        )
    return cleaned


def check_wanted(job: Job, wanted: Wanted) -> None:
    """What can be said before the search.

    Raises:
        UserError: see `write_clean`.
    """
    names = [_name_of(place) for place in job.places]
    if "" in names or len(set(names)) < len(names):
        raise UserError(
            f"--write-clean={wanted.folder}: two corpora have one name, or none; clean them one by one"
        )
    if wanted.mask is not None and job.spec.unit == "tokens":
        raise UserError("--clean=mask: masks words; with --unit tokens use --clean drop")
    folder = wanted.folder.resolve()
    for place in job.places:
        source = place.path.resolve()
        if folder == source.parent or source in (folder, *folder.parents):
            raise UserError(f"--write-clean={wanted.folder}: is where {place.name} lies; give a new folder")
        if place.is_tokens and TokenFile.open(place.path).sidecar is None:
            raise UserError(
                f"--write-clean: {place.name} has no .json of its tokenizer beside it; clean the text, and "
                "tokenise that"
            )
    if wanted.folder.exists() and any(wanted.folder.iterdir()) and _record(job) != _as_record(wanted):
        raise UserError(f"--write-clean={wanted.folder}: is not empty; give a new folder")


def _as_record(wanted: Wanted) -> dict[str, Any]:
    return {"folder": str(wanted.folder.resolve()), "mask": wanted.mask}


def _record(job: Job) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = orjson.loads((job.output / WORK / RECORD).read_bytes())
        return found
    except (OSError, ValueError):
        return None


def _claim(job: Job, wanted: Wanted) -> None:
    check_wanted(job, wanted)
    write_output(job.output / WORK / RECORD, orjson.dumps(_as_record(wanted)))
    try:
        wanted.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--write-clean={wanted.folder}: {error.strerror}; give another folder") from None


def _clean_text(
    job: Job, place: Place, target: Path, mask: str | None, hits: _HitPlaces, cleaned: Cleaned
) -> None:
    """One file or folder; JSON lines keep their bytes, unless they are masked."""
    search = build_search(job.spec).by
    editor = _Editor(mask, search if isinstance(search, WordSearch) else None, hits, cleaned)
    writer = _Writer(place, target)
    try:
        for stretch, _ in stretches(place, job.json_key, job.suffixes):
            if isinstance(stretch, JsonLines):
                writer.lines(stretch.file, list(editor.lines(stretch)))
            elif isinstance(stretch, ParquetRows):
                writer.rows(stretch, list(editor.rows(stretch)))
            elif isinstance(stretch, TextFiles):
                for file, data in stretch.files:
                    writer.text(file, editor.text(file, data))
            else:
                assert isinstance(stretch, BrokenFile)
                cleaned.unsearched += 1
        writer.finish()
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror or error}); free space, and the same command goes "
            "on from here"
        ) from None
    finally:
        writer.close()


class _Editor:
    """Decides what becomes of each document."""

    def __init__(
        self, mask: str | None, search: WordSearch | None, hits: _HitPlaces, cleaned: Cleaned
    ) -> None:
        self._mask, self._search, self._hits, self._cleaned = mask, search, hits, cleaned

    def _text_of(self, record: Document | Broken) -> str | None:
        """The text to keep; None where the document is left out."""
        if isinstance(record, Broken):
            self._cleaned.unsearched += 1
            return None
        if not self._hits.has(record.where):
            self._cleaned.kept += 1
            return record.text
        if self._mask is None:
            self._cleaned.dropped += 1
            return None
        assert self._search is not None
        self._cleaned.masked += 1
        return masked(record.text, self._mask, self._search)

    def lines(self, stretch: JsonLines) -> Iterator[bytes]:
        """The lines to keep."""
        lines = [line for line in stretch.data.split(b"\n") if line and not line.isspace()]
        for line, record in zip(lines, stretch.records(), strict=True):
            text = self._text_of(record)
            if text is None:
                continue
            if isinstance(record, Document) and text is not record.text:
                fields = {**json.loads(line), stretch.key: text}  # json keeps whole numbers of any size
                line = json.dumps(fields, ensure_ascii=False).encode("utf-8")
            yield line + b"\n"

    def rows(self, stretch: ParquetRows) -> Iterator[str | None]:
        """The texts of rows, None for those that are left out."""
        for record in stretch.records():
            yield self._text_of(record)

    def text(self, file: str, data: bytes) -> bytes | None:
        """A file's content."""
        record = next(iter(TextFiles([(file, data)]).records()))
        text = self._text_of(record)
        if text is None or (isinstance(record, Document) and text is record.text):
            return None if text is None else data
        return text.encode("utf-8")


def masked(text: str, mask: str, search: WordSearch) -> str:
    """The text with each stretch of n-grams replaced, those that overlap or touch as one."""
    parts: list[str] = []
    end = 0
    for found in sorted(search.occurrences([text]), key=lambda found: found.start):
        if found.start >= end:
            parts += [text[end : found.start], mask]
        end = max(end, found.end)
    return "".join([*parts, text[end:]])


class _Writer:
    """The clean files of one place; one is open at a time, those that are there already are passed over."""

    def __init__(self, place: Place, target: Path) -> None:
        self._root, self._target = place.path, target
        self._file: str | None = None
        self._out: Any = None
        self._batches: Iterator[Any] = iter(())
        self._pending: list[Any] = []
        self._hidden = self._final = target

    def _path_of(self, file: str) -> Path:
        path = Path(file)
        return self._target if path == self._root else self._target / path.relative_to(self._root)

    def _begin(self, file: str) -> bool:
        """Opens the clean file of `file`; returns whether it has to be written."""
        if file != self._file:
            self.finish()
            self._file, self._final = file, self._path_of(file)
            self._hidden = self._final.with_name(f".{self._final.name}.partial")
            if not self._final.exists():
                self._final.parent.mkdir(parents=True, exist_ok=True)
                self._out = _opened(self._hidden, self._final.name)
        return self._out is not None

    def lines(self, file: str, lines: list[bytes]) -> None:
        """Adds lines of a JSONL file."""
        if self._begin(file):
            self._out.write(b"".join(lines))

    def text(self, file: str, data: bytes | None) -> None:
        """Writes a text file, unless it is left out."""
        if data is not None and self._begin(file):
            self._out.write(data)
            self.finish()

    def rows(self, stretch: ParquetRows, texts: list[str | None]) -> None:
        """Adds rows of a Parquet file, with all their columns."""
        import pyarrow
        import pyarrow.parquet

        if not self._begin(stretch.file):
            return
        if stretch.first_row == 1:
            self._out.close()
            source = pyarrow.parquet.ParquetFile(stretch.file)
            self._batches, self._pending = source.iter_batches(batch_size=len(texts)), []
            self._out = pyarrow.parquet.ParquetWriter(self._hidden, source.schema_arrow, compression="zstd")
        table = self._next_rows(len(texts))
        column = table.column_names.index(stretch.key)
        new = pyarrow.array(texts, table.schema.field(column).type)
        table = table.set_column(column, table.schema.field(column), new)
        self._out.write_table(table.filter(pyarrow.array([text is not None for text in texts])))

    def _next_rows(self, count: int) -> Any:
        """The next rows with all columns; the reader, which reads one column, may cut them elsewhere."""
        import pyarrow

        while sum(batch.num_rows for batch in self._pending) < count:
            self._pending.append(next(self._batches))
        table = pyarrow.Table.from_batches(self._pending)
        self._pending = table.slice(count).to_batches()
        return table.slice(0, count)

    def finish(self) -> None:
        """Gives the open file its name."""
        if self._out is not None:
            self._out.close()
            self._out = None
            os.replace(self._hidden, self._final)
        self._file = None

    def close(self) -> None:
        """Leaves an unfinished file hidden."""
        if self._out is not None:
            self._out.close()


class _Gzip:
    """A gzip file without name and time, so that the same lines are the same bytes."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by `close`
        self._gzip = gzip.GzipFile(filename="", fileobj=self._file, mode="wb", mtime=0)

    def write(self, data: bytes) -> None:
        self._gzip.write(data)

    def close(self) -> None:
        self._gzip.close()
        self._file.close()


def _opened(path: Path, name: str) -> IO[bytes] | Any:
    """A file that compresses as its name says."""
    if name.lower().endswith(".jsonl.gz"):
        return _Gzip(path)
    if name.lower().endswith(".jsonl.zst"):
        import zstandard

        return zstandard.ZstdCompressor(level=3).stream_writer(open(path, "wb"))
    return open(path, "wb")


def _clean_tokens(place: Place, target: Path, hits: _HitPlaces, cleaned: Cleaned) -> None:
    """A token file without the documents that are hit."""
    file = TokenFile.open(place.path)
    assert file.sidecar is not None
    is_there = target.with_name(f"{target.name}.idx").exists()
    with contextlib.ExitStack() as stack:
        writer = None
        if not is_there:
            writer = stack.enter_context(TokenFileWriter(target, file.sidecar.tokenizer.vocab_size))
        kept = 0
        for stretch, _ in stretches(place, "text", None):
            assert isinstance(stretch, TokenRange)
            ids_T, bounds_D = ids_of(stretch)
            for number in range(stretch.end - stretch.first):
                if hits.has(f"{stretch.prefix}:{stretch.first + number}"):
                    continue
                kept += 1
                if writer is not None:
                    writer.add_document(np.asarray(ids_T[bounds_D[number] : bounds_D[number + 1]]))
        cleaned.kept += kept
        cleaned.dropped += file.documents - kept
        if not kept:
            raise UserError(f"--write-clean: every document of {place.name} is hit; nothing is left to write")
        if writer is not None:
            writer.finalize(_provenance(file))


def _provenance(file: TokenFile) -> Provenance:
    """Of the clean token file: its source is the one it was cut from."""
    assert file.sidecar is not None
    source = SourceRecord(
        path=str(file.prefix),
        files=1,
        bytes=file.sidecar.bin_bytes,
        sha256="not hashed: cut from a token file",
    )
    return Provenance(
        tokenizer=file.sidecar.tokenizer,
        text_bytes=0,
        empty_documents=0,
        broken_lines=0,
        sources=[source],
    )


def as_json(cleaned: Cleaned, wanted: Wanted) -> dict[str, Any]:
    """For the report."""
    return {**_as_record(wanted), **asdict(cleaned)}
