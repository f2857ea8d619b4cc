# SPDX-License-Identifier: Apache-2.0
"""Pages out of WARC files, HTML files and JSON lines or Parquet that hold HTML: shards of input whose
documents have HTML as their text.

WARC files are decompressed here, so that one that is cut off or expands without end is noticed; warcio reads
the records in them."""

from __future__ import annotations

import io
import itertools
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from megatron.data.decompress import DECOMPRESS, BrokenArchive
from megatron.neox_arguments.errors import UserError
from tools.proof_pile_2.documents import Broken, Document, version_of
from tools.proof_pile_2.open_web_math.packages import needed
from tools.proof_pile_2.open_web_math.page_bytes import decode_page
from tools.proof_pile_2.places import Place, identity_of, listing, open_place, shown_path
from tools.proof_pile_2.shards import (
    FilesShard,
    Limits,
    ReadOptions,
    Shard,
    bounded,
    plan_shards,
    read_regular,
    walk,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

HTML_SUFFIXES = (".html", ".htm", ".xhtml", ".xht")
WARC_SUFFIXES = {".warc": ".jsonl", ".warc.gz": ".jsonl.gz", ".warc.zst": ".jsonl.zst"}
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_BLOCK_BYTES = 1 << 16
_COMPRESSED_BLOCK_BYTES = 1 << 14


@dataclass(frozen=True)
class PageOptions:
    """How pages are read. A page of more bytes than `max_page_bytes`, decompressed, is counted as broken."""

    max_page_bytes: int = 8 << 20
    html_key: str = "html"
    files_bytes: int = 32 << 20
    files_count: int = 4096
    limits: Limits = field(default_factory=Limits)


def page_document(data: bytes, header_encoding: str | None, meta: dict[str, Any]) -> Document:
    """A page's HTML as a document; `meta["broken_characters"]` counts those that could not be decoded."""
    page = decode_page(data, header_encoding)
    meta["encoding"] = page.encoding
    if page.replaced:
        meta["broken_characters"] = page.replaced
    return Document(page.html, meta)


@dataclass(frozen=True)
class PageFilesShard:
    """HTML files below `root`, each a page with its relative path in `meta["path"]`."""

    name: str
    root: Path
    files: tuple[str, ...]
    options: PageOptions
    size_bytes: int

    def identity(self) -> object:
        """That of the same files read as text, and how pages are read."""
        same = FilesShard(self.name, self.root, self.files, ReadOptions(), self.size_bytes)
        return ["pages", same.identity(), version_of(1, self.options)]

    def read(self) -> Iterator[Document | Broken]:
        """One document a file."""
        for file in self.files:
            path = self.root / file
            try:
                data = read_regular(path, self.options.max_page_bytes)
            except OSError as error:
                data = f"cannot be read ({error.strerror or error})"
            if isinstance(data, str):
                yield Broken(shown_path(path), data)
            else:
                yield page_document(data, None, {"path": shown_path(file)})


class _Pieces(io.RawIOBase):
    """A stream over pieces of bytes. What is wrong with them ends the stream and is kept in `reason`."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self.reason: str | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        target = memoryview(buffer)
        while not self._rest:
            try:
                self._rest = memoryview(next(self._pieces))
            except StopIteration:
                return 0
            except BrokenArchive as error:
                self.reason = str(error)
                return 0
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


@dataclass(frozen=True)
class WarcShard:
    """One WARC file, plain, gzip or zstd. Its pages are the `response` and `resource` records whose content
    is HTML and whose HTTP status, if there is one, is 200; `meta` has their URL and date."""

    name: str
    file: Place
    format: str
    options: PageOptions
    size_bytes: int

    def identity(self) -> object:
        """The file's name, size and time, and how pages are read."""
        return ["warc", *identity_of(self.file), version_of(1, self.options)]

    def read(self) -> Iterator[Document | Broken]:
        """One document a page."""
        with needed("warcio"):
            from warcio.archiveiterator import ArchiveIterator
            from warcio.exceptions import ArchiveLoadFailed
        where = shown_path(self.file)
        if self.size_bytes == 0:
            yield Broken(where, "holds no bytes")
            return
        try:
            with open_place(self.file) as file:
                stream = _Pieces(self._pieces(file))
                try:
                    for record in ArchiveIterator(io.BufferedReader(stream, 1 << 20)):
                        page = self._page(record, where)
                        if page is not None:
                            yield page
                except (ArchiveLoadFailed, ValueError, AttributeError, UnicodeError, EOFError) as error:
                    # A header that is no header; AttributeError and ValueError are warcio's on odd ones.
                    words = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
                    yield Broken(where, f"is damaged WARC data ({words}); the rest is not read")
                if stream.reason is not None:
                    yield Broken(where, stream.reason)
        except OSError as error:
            raise UserError(f"{where}: cannot be read ({error.strerror or error}); check the disk") from None

    def _pieces(self, file: IO[bytes]) -> Iterator[bytes]:
        size = _BLOCK_BYTES if self.format == ".jsonl" else _COMPRESSED_BLOCK_BYTES
        blocks = iter(lambda: file.read(size), b"")
        pieces = DECOMPRESS[self.format](blocks)
        return pieces if self.format == ".jsonl" else bounded(pieces, self.size_bytes, self.options.limits)

    def _page(self, record: Any, where: str) -> Document | Broken | None:
        """The page of a record; None if it is none."""
        if record.rec_type not in ("response", "resource"):
            return None
        headers = record.http_headers
        if headers is not None and (headers.get_statuscode() or "200") != "200":
            return None
        stated = (headers.get_header("Content-Type") if headers else None) or record.rec_headers.get_header(
            "Content-Type"
        )
        kind, _, parameters = (stated or "").partition(";")
        if kind.strip().lower() not in _HTML_TYPES:
            return None
        url = record.rec_headers.get_header("WARC-Target-URI") or ""
        here = f"{where} {url}"[:400]
        data = _content(record, self.options.max_page_bytes)
        if isinstance(data, str):
            return Broken(here, data)
        charset = parameters.lower().partition("charset=")[2].split(";")[0].strip(" \"'") or None
        date = record.rec_headers.get_header("WARC-Date") or ""
        return page_document(data, charset, {"url": url, "date": date})


def _content(record: Any, limit_bytes: int) -> bytes | str:
    """A record's content without transfer and content encodings, or what is wrong with it."""
    try:
        stream = record.content_stream()
        pieces, total = [], 0
        while total <= limit_bytes and (piece := stream.read(min(_BLOCK_BYTES, limit_bytes + 1 - total))):
            pieces.append(piece)
            total += len(piece)
    except (OSError, EOFError, ValueError, zlib.error, AttributeError) as error:
        return f"is a page with a damaged encoding ({type(error).__name__})"
    if total > limit_bytes:
        return f"is a page of more than {limit_bytes} bytes"
    if getattr(record.raw_stream, "limit", 0) > 0:
        return "is a record that is cut off"
    return b"".join(pieces) if total else "holds no bytes"


def plan_pages(inputs: Sequence[Place], options: PageOptions) -> Iterator[Shard]:
    """The shards of the inputs: `.warc`, `.warc.gz` and `.warc.zst` files, also below URLs; HTML files;
    folders of both in the order of their sorted paths; JSON lines or Parquet with HTML under `html_key`.

    Errors: `UserError` for an input that is missing or holds no page."""
    number = itertools.count()
    for path in inputs:
        empty = True
        for shard in _shards_of(path, options, number):
            empty = False
            yield shard
        if empty:
            suffixes = ", ".join((*WARC_SUFFIXES, *HTML_SUFFIXES))
            raise UserError(
                f"--input {path}: holds no file that ends in {suffixes}; give a folder with pages"
            )


def _shards_of(path: Place, options: PageOptions, number: Iterator[int]) -> Iterator[Shard]:
    if isinstance(path, str):
        for url, size in listing(path):
            if warc := _warc_format(url):
                yield WarcShard(f"{next(number):05}", url, warc, options, size)
        return
    if path.is_dir():
        yield from _shards_of_folder(path, options, number)
        return
    if not path.is_file():
        raise UserError(f"--input {path}: does not exist; give a file or a folder")
    if warc := _warc_format(path.name):
        yield WarcShard(f"{next(number):05}", path, warc, options, path.stat().st_size)
    elif path.name.lower().endswith(HTML_SUFFIXES):
        folder, name = path.resolve().parent, path.resolve().name
        yield PageFilesShard(f"{next(number):05}", folder, (name,), options, path.stat().st_size)
    else:
        read = ReadOptions(text_key=options.html_key, limits=Limits(max_record_bytes=options.max_page_bytes))
        for shard in plan_shards([path], read, f"{next(number):05}-"):
            if isinstance(shard, FilesShard):
                raise UserError(
                    f"--input {path}: is neither WARC, HTML, JSON lines nor Parquet by its name; give such "
                    f"a file"
                )
            yield shard


def _shards_of_folder(path: Path, options: PageOptions, number: Iterator[int]) -> Iterator[Shard]:
    group: list[str] = []
    group_bytes = 0
    for file in walk(path, ReadOptions(suffixes=(*HTML_SUFFIXES, *WARC_SUFFIXES), as_files=True)):
        size = os.lstat(path / file).st_size
        warc = _warc_format(file)
        if warc and not (path / file).is_symlink():
            yield WarcShard(f"{next(number):05}", path / file, warc, options, size)
            continue
        group.append(file)
        group_bytes += size
        if len(group) >= options.files_count or group_bytes >= options.files_bytes:
            yield PageFilesShard(f"{next(number):05}", path, tuple(group), options, group_bytes)
            group, group_bytes = [], 0
    if group:
        yield PageFilesShard(f"{next(number):05}", path, tuple(group), options, group_bytes)


def _warc_format(name: str) -> str | None:
    return next((kind for suffix, kind in WARC_SUFFIXES.items() if name.lower().endswith(suffix)), None)
