# SPDX-License-Identifier: Apache-2.0
"""Pages out of WARC files and folders, whole and broken."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron.neox_arguments.errors import UserError
from tests.tools.proof_pile_2.open_web_math.pages import gzipped, record

pytest.importorskip("resiliparse", reason="needs requirements/requirements-data.txt")
pytest.importorskip("warcio", reason="needs requirements/requirements-data.txt")

from tools.proof_pile_2.documents import Broken, Document
from tools.proof_pile_2.open_web_math.web_pages import PageOptions, plan_pages
from tools.proof_pile_2.shards import Limits

BODIES = [f"<p>page {i} {'word ' * 200}</p>".encode() for i in range(5)]
RECORDS = [record(f"http://example.org/{i}", body) for i, body in enumerate(BODIES)]
WARC_INFO = b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 2\r\n\r\nab\r\n\r\n"


def read(path: Path, options: PageOptions = PageOptions()) -> tuple[list[Document], list[Broken]]:  # noqa: B008
    items = [item for shard in plan_pages([path], options) for item in shard.read()]
    return [i for i in items if isinstance(i, Document)], [i for i in items if isinstance(i, Broken)]


@pytest.mark.parametrize(("name", "data"), [
    ("a.warc", b"".join([WARC_INFO, *RECORDS])),
    ("a.warc.gz", gzipped([WARC_INFO, *RECORDS])),
    ("one_member.warc.gz", gzip.compress(b"".join(RECORDS))),
    ("a.warc.zst", b"".join(zstandard.compress(data) for data in RECORDS)),
])  # fmt: skip
def test_pages_of_a_warc(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    pages, broken = read(tmp_path)
    assert [page.text.encode() for page in pages] == BODIES
    assert pages[1].meta == {
        "url": "http://example.org/1",
        "date": "2023-01-01T00:00:00Z",
        "encoding": "utf-8",
    }
    assert broken == []


def test_warcs_below_a_url(tmp_path: Path) -> None:
    (tmp_path / "crawl").mkdir()
    (tmp_path / "crawl/a.warc.gz").write_bytes(gzipped(RECORDS))
    shards = plan_pages([f"file://{tmp_path}/crawl"], PageOptions())
    items = [item for shard in shards for item in shard.read()]
    assert [item.text.encode() for item in items if isinstance(item, Document)] == BODIES


def test_what_is_a_page(tmp_path: Path) -> None:
    chunked = b"5\r\n<p>ch\r\n5\r\nunked\r\n0\r\n\r\n"
    (tmp_path / "a.warc").write_bytes(b"".join([
        record("http://a/404", b"<p>gone", status="404 Not Found"),
        record("http://a/png", b"<p>png", "image/png"),
        record("http://a/xhtml", b"<p>xhtml", "application/xhtml+xml"),
        record("http://a/latin", "<p>caf\xe9".encode("latin-1"), "text/html; charset=ISO-8859-1"),
        record("http://a/gzip", gzip.compress(b"<p>zipped"), headers=["Content-Encoding: gzip"]),
        record("http://a/chunked", chunked, headers=["Transfer-Encoding: chunked"]),
        record("http://a/r", b"<p>request").replace(b"WARC-Type: response", b"WARC-Type: request"),
    ]))  # fmt: skip
    pages, broken = read(tmp_path / "a.warc")
    assert [page.text for page in pages] == ["<p>xhtml", "<p>café", "<p>zipped", "<p>chunked"]
    assert broken == []


@pytest.mark.parametrize(("name", "data", "pages", "reason"), [
    ("a.warc", b"", 0, "holds no bytes"),
    ("a.warc", b"no warc at all\n" * 50, 0, "is damaged WARC data"),
    ("a.warc", b"".join(RECORDS)[: 3 * len(RECORDS[0]) - 50], 2, "is a record that is cut off"),
    ("a.warc.gz", gzipped(RECORDS)[: len(gzipped(RECORDS[:3])) - 20], 2, "is gzip data that is cut off"),
    ("a.warc.gz", gzip.compress(b"".join(RECORDS))[:-30], None, "is gzip data that is cut off"),
    ("a.warc.zst", zstandard.compress(b"".join(RECORDS))[:-9], None, "is zstd data that is cut off"),
    ("a.warc.gz", gzipped(RECORDS[:2]) + b"\x1f\x8b garbage that is no member", 2, "is damaged gzip data"),
    ("a.warc", record("http://a", b"x" * 3000), 0, "is a page of more than 2000 bytes"),
    ("a.warc", record("http://a", b""), 0, "holds no bytes"),
    ("a.warc", record("http://a", b"no gzip", headers=["Content-Encoding: gzip"]), 1, ""),
    ("a.warc.gz", gzip.compress(record("http://a", b"x" * 9_000_000)), 0, "expands beyond"),
    ("a.warc", record("http://a", gzip.compress(b"x" * 50_000_000), headers=["Content-Encoding: gzip"]), 0,
     "more than 2000"),
])  # fmt: skip
def test_what_is_broken_is_counted_and_bounded(
    tmp_path: Path, name: str, data: bytes, pages: int | None, reason: str
) -> None:
    (tmp_path / name).write_bytes(data)
    limits = Limits(expansion_free_bytes=1 << 20, max_expansion=300)
    found, broken = read(tmp_path / name, PageOptions(max_page_bytes=2000, limits=limits))
    assert pages is None or len(found) == pages
    assert len(found) <= 5
    assert [page.text.encode() for page in found] == BODIES[: len(found)] or not reason
    assert (reason in " ".join(item.reason for item in broken)) == bool(reason) or not reason


def test_folders_of_html(tmp_path: Path) -> None:
    folder = tmp_path / "pages"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "z.html").write_text("<p>z")
    (folder / "a.HTM").write_text("<p>a")
    (folder / "c.txt").write_text("no page")
    (folder / "empty.html").write_bytes(b"")
    (folder / "large.html").write_bytes(b"x" * 3000)
    (tmp_path / "outside.html").write_text("<p>outside")
    (folder / "link.html").symlink_to(tmp_path / "outside.html")
    (folder / "d.warc.gz").write_bytes(gzipped(RECORDS[:1]))
    pages, broken = read(folder, PageOptions(max_page_bytes=2000))
    assert {str(page.meta.get("path", page.meta.get("url"))) for page in pages} == {
        "b/z.html", "a.HTM", "http://example.org/0"
    }  # fmt: skip
    assert sorted(item.reason for item in broken) == [
        "has more than 2000 bytes", "holds no bytes", "is a symbolic link, which is not followed"
    ]  # fmt: skip


def test_json_lines_with_html_and_inputs_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"html": "<p>x", "url": "http://a"}\n{"text": "no"}\n')
    pages, broken = read(tmp_path / "a.jsonl")
    assert [(page.text, page.meta["url"]) for page in pages] == [("<p>x", "http://a")]
    assert len(broken) == 1
    (tmp_path / "b.pdf").write_bytes(b"%PDF")
    (tmp_path / "nothing").mkdir()
    for wrong in ("b.pdf", "nothing", "absent"):
        with pytest.raises(UserError, match="--input"):
            read(tmp_path / wrong)


CHANGES = st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=6)), max_size=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CHANGES, st.sampled_from([".warc", ".warc.gz", ".warc.zst"]))
def test_no_warc_is_too_odd(changes: list[tuple[int, bytes]], suffix: str) -> None:
    """Records with bytes written over: pages and broken records come out, and nothing is raised."""
    data = b"".join(RECORDS[:3])
    if suffix == ".warc.gz":
        data = gzipped(RECORDS[:3])
    elif suffix == ".warc.zst":
        data = zstandard.compress(data)
    spoilt = bytearray(data)
    for place, piece in changes:
        place %= len(spoilt)
        spoilt[place : place + len(piece)] = piece
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(spoilt)
        pages, _ = read(path)
        assert len(pages) <= 3 or suffix != ".warc.gz"
