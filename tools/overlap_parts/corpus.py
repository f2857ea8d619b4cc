# SPDX-License-Identifier: Apache-2.0
"""The corpora to search, cut into stretches that any process can search: text of every form that
preprocess_data.py reads, and token files."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron.data.readers import Broken, BrokenFile, Chunk, Corpus, JsonLines, ParquetRows, TextFiles
from megatron.data.sources import check_tokenizer
from megatron.data.token_file import TokenFile
from megatron.neox_arguments.errors import UserError
from tools.overlap_parts.items import Spec
from tools.overlap_parts.search import Hit, TokenSearch, build_search, hits_of

RANGE_TOKENS = 1 << 20


@dataclass(frozen=True)
class Place:
    """One `--corpus` argument: files and folders of text, or the prefix of a token file."""

    path: Path
    is_tokens: bool

    @property
    def name(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class TokenRange:
    """Consecutive documents of a token file."""

    prefix: Path
    first: int
    end: int


Stretch = Chunk | TokenRange


@dataclass(frozen=True)
class Found:
    """What the search of a stretch found; the hits carry their document's place in `wheres`."""

    documents: int
    read: int
    """Bytes of text, or tokens."""
    hits: list[Hit]
    wheres: dict[int, str]
    broken: list[Broken]


def places_of(arguments: Sequence[Path], unit: str) -> list[Place]:
    """What the `--corpus` arguments name.

    Raises:
        UserError: one does not exist, stands twice, or is a token file where words are searched.
    """
    places = []
    for path in arguments:
        prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
        is_tokens = not path.is_dir() and prefix.with_name(f"{prefix.name}.idx").is_file() and (
            prefix != path or not path.is_file()
        )  # fmt: skip
        if is_tokens and unit != "tokens":
            raise UserError(
                f"--corpus={path}: is a token file, which has no words; add --unit tokens with the tokenizer "
                "it was written with, or give the text"
            )
        if not is_tokens and not path.exists():
            raise UserError(f"--corpus={path}: does not exist; give files, folders or token file prefixes")
        places.append(Place(prefix if is_tokens else path, is_tokens))
    for place in places:
        for other in places:
            inner, outer = place.path.resolve(), other.path.resolve()
            if place is not other and (inner == outer or outer in inner.parents):
                where = "stands twice" if inner == outer else f"lies in {other.name}, which is searched too"
                raise UserError(f"--corpus={place.name}: {where}; give each text once")
    return places


def check_tokenizers(places: Sequence[Place], spec: Spec) -> None:
    """The token files are of the tokenizer that the items go through.

    Raises:
        UserError: one is not.
    """
    search = build_search(spec).by
    for place in places:
        if place.is_tokens:
            assert isinstance(search, TokenSearch)
            for notice in check_tokenizer(TokenFile.open(place.path), search.tokenizer):
                print(f"note: {notice}", file=sys.stderr)


def stretches(place: Place, key: str, suffixes: Sequence[str] | None) -> Iterator[tuple[Stretch, int]]:
    """The stretches of a place in order, each with the bytes of input read up to it."""
    if not place.is_tokens:
        corpus = Corpus([place.path], key, suffixes)
        for chunk in corpus.chunks():
            yield chunk, corpus.read_bytes
        return
    file = TokenFile.open(place.path)
    ends_D = np.cumsum(file.lengths_D, dtype=np.int64)
    first = 0
    while first < file.documents:
        before = int(ends_D[first - 1]) if first else 0
        end = max(first + 1, int(np.searchsorted(ends_D, before + RANGE_TOKENS, side="right")))
        yield TokenRange(place.path, first, end), int(ends_D[end - 1]) * file.dtype.itemsize
        first = end


def files_of(place: Place, key: str, suffixes: Sequence[str] | None) -> list[tuple[str, int, int]]:
    """The files of a place: path, bytes, time of the last change in nanoseconds.

    Raises:
        UserError: it cannot be read.
    """
    if not place.is_tokens:
        inputs = Corpus([place.path], key, suffixes).inputs
        return [(str(found.path), found.size, found.modified_ns) for found in inputs]
    statuses = [place.path.with_name(place.path.name + suffix).stat() for suffix in (".bin", ".idx")]
    return [(place.name, status.st_size, status.st_mtime_ns) for status in statuses]


def total_bytes(place: Place, key: str, suffixes: Sequence[str] | None) -> int:
    """Bytes of a place, as they lie on the disk.

    Raises:
        UserError: it cannot be read.
    """
    if not place.is_tokens:
        return Corpus([place.path], key, suffixes).total_bytes
    file = TokenFile.open(place.path)
    return file.tokens * file.dtype.itemsize


def identity(stretch: Stretch) -> str:
    """Names a stretch, so that a resumed search sees that the corpus is cut as before."""
    if isinstance(stretch, TokenRange):
        return f"{stretch.prefix}:{stretch.first}:{stretch.end}"
    if isinstance(stretch, JsonLines):
        return f"{stretch.file}:{stretch.first_line}:{len(stretch.data)}"
    if isinstance(stretch, ParquetRows):
        return f"{stretch.file}:{stretch.first_row}:{len(stretch.texts)}"
    if isinstance(stretch, TextFiles):
        return repr([(file, len(data)) for file, data in stretch.files])
    assert isinstance(stretch, BrokenFile)
    return stretch.where


def chained(before: str, stretch: Stretch) -> str:
    """The identity of all stretches up to this one."""
    return hashlib.sha256(f"{before}\n{identity(stretch)}".encode("utf-8", "surrogateescape")).hexdigest()


def search_stretch(stretch: Stretch, spec: Spec) -> Found:
    """Searches one stretch; the same in whichever process."""
    search = build_search(spec).by
    if isinstance(stretch, TokenRange):
        assert isinstance(search, TokenSearch)
        ids_T, bounds_D = ids_of(stretch)
        hits = hits_of(search, search.occurrences_in(ids_T, bounds_D))
        wheres = {hit.document: f"{stretch.prefix}:{stretch.first + hit.document}" for hit in hits}
        return Found(stretch.end - stretch.first, len(ids_T), hits, wheres, [])
    records = list(stretch.records())
    broken = [record for record in records if isinstance(record, Broken)]
    documents = [record for record in records if not isinstance(record, Broken)]
    texts = [document.text for document in documents]
    hits = hits_of(search, search.occurrences(texts))
    wheres = {hit.document: documents[hit.document].where for hit in hits}
    return Found(len(documents), _utf8_bytes(texts), hits, wheres, broken)


def _utf8_bytes(texts: Sequence[str]) -> int:
    return sum(len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass")) for text in texts)


def ids_of(stretch: TokenRange) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The ids of a range of documents, end to end, and the D + 1 bounds of the documents."""
    file = TokenFile.open(stretch.prefix)
    lengths = file.lengths_D[stretch.first : stretch.end].astype(np.int64)
    begins = file.pointers_D[stretch.first : stretch.end]
    bounds_D = np.concatenate([[0], np.cumsum(lengths)])
    if bool((begins[1:] == begins[:-1] + lengths[:-1] * file.dtype.itemsize).all()):
        path = stretch.prefix.with_name(f"{stretch.prefix.name}.bin")
        ids_T = np.fromfile(
            path, file.dtype.newbyteorder("<"), count=int(bounds_D[-1]), offset=int(begins[0])
        )
    else:  # other programs may lay documents in another order than they list them
        ids_T = np.concatenate([file.document(number) for number in range(stretch.first, stretch.end)])
    return ids_T, bounds_D
