# SPDX-License-Identifier: Apache-2.0
"""Compressed JSON lines, block by block: gzip and Zstandard of any number of members, in bounded memory."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

# What is decompressed at a time. A byte of zstd stands for up to 32 KiB of text, one of gzip for up to 1 KiB.
_ZSTD_SLICE_BYTES, _GZIP_SLICE_BYTES = 1 << 10, 1 << 14


class BrokenArchive(Exception):
    """Compressed data that is damaged or cut off."""


def _sliced(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    for block in blocks:
        for begin in range(0, len(block), size):
            yield block[begin : begin + size]


def _gunzip(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Gzip members, one after another; zero padding at the end is allowed, as gzip allows it."""
    member, begun = zlib.decompressobj(wbits=31), False
    for rest in _sliced(blocks, _GZIP_SLICE_BYTES):
        while rest:
            if not begun:
                rest = rest.lstrip(b"\0")
                if not rest:
                    break
                begun = True
            try:
                yield member.decompress(rest)
            except zlib.error as error:
                raise BrokenArchive(f"is damaged gzip data ({error})") from None
            rest = member.unused_data
            if member.eof:
                member, begun = zlib.decompressobj(wbits=31), False
    if begun:
        raise BrokenArchive("is gzip data that is cut off")


def _unzstd(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Zstandard frames, one after another, with windows up to 2 GiB (`zstd --long=31`)."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame, begun = decompressor.decompressobj(), False
    for rest in _sliced(blocks, _ZSTD_SLICE_BYTES):
        while rest:
            begun = True
            try:
                yield frame.decompress(rest)
            except zstandard.ZstdError as error:
                raise BrokenArchive(f"is damaged zstd data ({error})") from None
            rest = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame, begun = decompressor.decompressobj(), False
    if begun:
        raise BrokenArchive("is zstd data that is cut off")


def _as_they_are(blocks: Iterator[bytes]) -> Iterator[bytes]:
    return blocks


DECOMPRESS: dict[str, Callable[[Iterator[bytes]], Iterator[bytes]]] = {
    ".jsonl": _as_they_are,
    ".jsonl.gz": _gunzip,
    ".jsonl.zst": _unzstd,
}
