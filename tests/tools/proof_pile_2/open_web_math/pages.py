# SPDX-License-Identifier: Apache-2.0
"""Pages, WARC records and archives made for the tests."""

from __future__ import annotations

import gzip
from collections.abc import Sequence

PROSE = (
    "Let us consider a function that is continuous on a closed interval. Every such function attains its "
    "largest value, and the proof of this theorem uses the completeness of the real numbers. "
)


def page(body: str, head: str = "") -> str:
    """An HTML document."""
    return f"<!DOCTYPE html><html><head><title>A page</title>{head}</head><body>{body}</body></html>"


MATHJAX = "<script>MathJax = {tex: {inlineMath: [['$', '$'], ['\\\\(', '\\\\)']]}};</script>"


def math_page(number: int, words: str = PROSE) -> str:
    """A page that passes every rule; each number's is unlike all others'."""
    varied = " ".join(
        f"Remark {number}.{i} names {number * 7919 + i * 104729} and {i * number} again." for i in range(12)
    )
    return page(
        f"<h1>Lemma {number}</h1><p>{words}</p><p>{varied} So $x_{{{number}}}^2 \\ge 0$.</p>", MATHJAX
    )


def record(
    url: str,
    content: bytes,
    content_type: str = "text/html; charset=utf-8",
    status: str = "200 OK",
    headers: Sequence[str] = (),
) -> bytes:
    """A WARC response."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", *headers]
    http = "\r\n".join(lines).encode() + b"\r\n\r\n" + content
    head = "\r\n".join([
        "WARC/1.0", "WARC-Type: response", f"WARC-Target-URI: {url}", "WARC-Date: 2023-01-01T00:00:00Z",
        "WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>",
        "Content-Type: application/http; msgtype=response", f"Content-Length: {len(http)}",
    ])  # fmt: skip
    return head.encode() + b"\r\n\r\n" + http + b"\r\n\r\n"


def gzipped(records: Sequence[bytes]) -> bytes:
    """A gzip member for each record, as crawls have it."""
    return b"".join(gzip.compress(data, mtime=0) for data in records)
