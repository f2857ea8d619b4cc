# SPDX-License-Identifier: Apache-2.0
"""Bytes of a page to characters: which encoding is right when header, page and bytes disagree."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

_DECLARED = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.\-]{1,40})", re.IGNORECASE)
_DECLARED_WITHIN_BYTES = 4096
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True)
class DecodedPage:
    """The characters of a page, the encoding they were read in, and how many of them stand for broken
    bytes."""

    html: str
    encoding: str
    replaced: int


def decode_page(data: bytes, header_encoding: str | None = None) -> DecodedPage:
    """`data` as text; never fails.

    The first that fits every byte is taken: a byte order mark, UTF-8 (text in another encoding with bytes
    above 127 practically never is valid UTF-8), the encoding of the HTTP header, the one in the page's
    `<meta>`, the one Resiliparse detects. If none fits, the declared or detected one with U+FFFD for what is
    broken."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _with_replacements(data[len(mark) :], encoding)
    if b"\x1b$" not in data and b"\x1b(" not in data:  # ISO-2022 is 7-bit and would pass as UTF-8
        decoded = _strictly(data, "utf-8")
        if decoded is not None:
            return DecodedPage(decoded, "utf-8", 0)
    candidates = [name for name in (header_encoding, _declared(data), _detected(data)) if name]
    for name in candidates:
        known = _known(name)
        decoded = None if known is None else _strictly(data, known)
        if known is not None and decoded is not None:
            return DecodedPage(decoded, known, 0)
    fallback = next((known for name in candidates if (known := _known(name)) is not None), "utf-8")
    return _with_replacements(data, fallback)


def _declared(data: bytes) -> str | None:
    found = _DECLARED.search(data, 0, _DECLARED_WITHIN_BYTES)
    return found.group(1).decode("ascii") if found else None


def _detected(data: bytes) -> str | None:
    from resiliparse.parse.encoding import detect_encoding

    return detect_encoding(data)


def _known(name: str) -> str | None:
    """Python's codec for an HTML encoding label, None if there is none (`utf-7` and the like are refused)."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    label = map_encoding_to_html5(name.strip().lower(), fallback_utf8=False)
    if not label:
        return None
    try:
        return codecs.lookup(label).name
    except LookupError:
        return None


def _strictly(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return None


def _with_replacements(data: bytes, encoding: str) -> DecodedPage:
    html = data.decode(encoding, "replace")
    return DecodedPage(html, encoding, html.count("\ufffd"))
