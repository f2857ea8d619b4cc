# SPDX-License-Identifier: Apache-2.0
"""Which encoding a page is read in."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("resiliparse", reason="needs requirements/requirements-data.txt")

from tools.proof_pile_2.open_web_math.page_bytes import decode_page

META = "<meta charset={}>"


@pytest.mark.parametrize(("text", "written", "header", "declared"), [
    ("naïve", "utf-8", None, None),
    ("naïve", "utf-8", "iso-8859-1", "windows-1252"),  # a lie: the bytes are UTF-8
    ("naïve", "latin-1", "utf-8", "iso-8859-1"),  # the header lies, the page does not
    ("naïve", "latin-1", "iso-8859-1", None),
    ("Пример", "windows-1251", None, "windows-1251"),
    ("Пример", "koi8-r", "koi8-r", None),
    ("例え", "shift_jis", "Shift_JIS", None),
    ("例え", "iso-2022-jp", None, "iso-2022-jp"),
    ("naïve", "utf-16-le", "utf-16le", None),
    ("naïve", "utf-8-sig", None, "latin-1"),
])  # fmt: skip
def test_the_encoding_that_fits_every_byte(
    text: str, written: str, header: str | None, declared: str | None
) -> None:
    html = f"<p>{text}" + (META.format(declared) if declared else "")
    page = decode_page(html.encode(written), header)
    assert page.html == html
    assert page.replaced == 0


def test_what_fits_nothing_is_replaced_and_counted() -> None:
    page = decode_page(b"<meta charset=utf-8>caf\xc3\xa9 \xff\xfe\xff", "no-such-encoding")
    assert page.html.startswith("<meta charset=utf-8>caf")
    assert page.replaced == page.html.count("\ufffd")
    assert decode_page(b"").html == ""


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=80),
    st.one_of(st.none(), st.sampled_from(["utf-8", "gbk", "utf-7", "x", "hex", "punycode"])),
)
def test_any_bytes_are_a_page(data: bytes, header: str | None) -> None:
    page = decode_page(data, header)
    assert page.replaced == page.html.count("\ufffd") or page.replaced == 0
    page.html.encode("utf-8")
