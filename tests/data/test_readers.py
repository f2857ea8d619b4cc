# SPDX-License-Identifier: Apache-2.0
"""Documents come out of every format alike; what is broken is named with file and line and raises nothing."""

from __future__ import annotations

import gzip
import hashlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron.data import readers
from megatron.data.readers import Broken, Corpus, Document, read_documents
from megatron.neox_arguments.errors import UserError
from tests.data.corpora import latex_texts, python_texts

in_one_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = ["first", "", "naïve ∫\u2028dx\n", "\x00", *python_texts()[:3], *latex_texts()[:2]]


def as_lines(texts: list[str], key: str = "text") -> bytes:
    return b"".join(json.dumps({"meta": 1, key: text}).encode() + b"\n" for text in texts)


def write_parquet(path: Path, texts: list[str | None], column: str = "text") -> None:
    table = pyarrow.table({column: pyarrow.array(texts, pyarrow.string()), "n": list(range(len(texts)))})
    pyarrow.parquet.write_table(table, path, row_group_size=2)


WRITERS: dict[str, Callable[[Path, list[str]], object]] = {
    "c.jsonl": lambda path, texts: path.write_bytes(as_lines(texts)),
    "c.json": lambda path, texts: path.write_bytes(as_lines(texts)),
    "c.JSONL": lambda path, texts: path.write_bytes(as_lines(texts)[:-1].replace(b"\n", b"\r\n")),
    "bom.jsonl": lambda path, texts: path.write_bytes(b"\xef\xbb\xbf" + as_lines(texts)),
    "c.jsonl.gz": lambda path, texts: path.write_bytes(gzip.compress(as_lines(texts))),
    "two.jsonl.gz": lambda path, texts: path.write_bytes(
        gzip.compress(as_lines(texts[:2])) + gzip.compress(as_lines(texts[2:])) + b"\0" * 100
    ),
    "c.jsonl.zst": lambda path, texts: path.write_bytes(zstandard.compress(as_lines(texts))),
    "two.jsonl.zst": lambda path, texts: path.write_bytes(
        zstandard.compress(as_lines(texts[:2]))
        + b"\x50\x2a\x4d\x18\x04\0\0\0abcd"  # a skippable frame, as pzstd writes them
        + zstandard.compress(as_lines(texts[2:]))
    ),
    "c.parquet": lambda path, texts: write_parquet(path, list(texts)),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("chunk_bytes", [1, 100, 1 << 20])
def test_every_format_gives_the_same_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(readers, "_CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(readers, "_BLOCK_BYTES", 97)
    path = tmp_path / name
    WRITERS[name](path, TEXTS)
    corpus = Corpus([path])
    records = [record for chunk in corpus.chunks() for record in chunk.records()]
    assert records == [Document(text, f"{path}:{number}") for number, text in enumerate(TEXTS, 1)]
    assert corpus.read_bytes == corpus.total_bytes == path.stat().st_size
    [source] = corpus.sources()
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (source.path, source.files, source.bytes) == (str(path), 1, path.stat().st_size)


def test_a_folder_gives_its_files_in_order(tmp_path: Path) -> None:
    for name in ("b.py", "a.tex", "sub/c.py", "sub/d.json", ".hidden/x.py", ".y.py", "__pycache__/z.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "z.jsonl").write_bytes(as_lines(["one", "two"]))
    (tmp_path / "e.py").write_text("")
    records = list(read_documents([tmp_path]))
    assert [Path(record.where).name for record in records] == [
        "a.tex",
        "b.py",
        "e.py",
        "z.jsonl:1",
        "z.jsonl:2",
        "c.py",
        "d.json",
    ]
    corpus = Corpus([tmp_path], text_suffixes=[".py"])
    texts = [
        record.text for chunk in corpus.chunks() for record in chunk.records() if isinstance(record, Document)
    ]
    assert texts == ["text of b.py", "", "one", "two", "text of sub/c.py"]
    by_path = {source.path: source for source in corpus.sources()}
    assert by_path[str(tmp_path)].files == 3
    assert by_path[str(tmp_path / "z.jsonl")].files == 1
    before = by_path[str(tmp_path)].sha256
    (tmp_path / "b.py").write_text("other text")
    changed = Corpus([tmp_path], text_suffixes=[".py"])
    list(changed.chunks())
    assert {source.path: source for source in changed.sources()}[str(tmp_path)].sha256 != before


def test_sub_folders_are_read_in_order(tmp_path: Path) -> None:
    names = [f"{number:02}/{letter}.txt" for number in range(30) for letter in "ba"]
    for name in reversed(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    texts = [record.text for record in read_documents([tmp_path]) if isinstance(record, Document)]
    assert texts == sorted(names)


def test_broken_lines_are_named_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    lines = [
        b'{"text": "good"}',
        b"",
        b"{",
        b"[1]",
        b'{"content": "x", "id": 3}',
        b'{"text": null}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b"   ",
        b"[" * 5000,
        b'{"text": "also good"}',
    ]
    path.write_bytes(b"\n".join(lines))
    records = list(read_documents([path]))
    assert [record.text for record in records if isinstance(record, Document)] == ["good", "also good"]
    broken = {record.where: record.reason for record in records if isinstance(record, Broken)}
    assert list(broken) == [f"{path}:{number}" for number in (3, 4, 5, 6, 7, 8, 10)]
    assert broken[f"{path}:4"] == "is not a JSON object but a list"
    assert broken[f"{path}:5"] == "has no 'text'; it has content, id"
    assert broken[f"{path}:6"] == "'text' is not a string but a NoneType"


def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\n\xe9t\xe9\n")
    assert list(read_documents([path])) == [
        Broken(f"{path}:3", "is not UTF-8 text (byte 8: invalid continuation byte)")
    ]


@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.jsonl.zst"])
def test_an_archive_that_is_cut_off_is_broken_at_any_byte(tmp_path: Path, name: str) -> None:
    texts = ["abc" * 9, "∫" * 40, "third"]
    path = tmp_path / name
    WRITERS[name](path, texts)
    whole = path.read_bytes()
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        corpus = Corpus([path])
        records = [record for chunk in corpus.chunks() for record in chunk.records()]
        assert isinstance(records[-1], Broken), size
        assert records[-1].where == f"{path}:{len(records)}"
        assert [record.text for record in records[:-1] if isinstance(record, Document)] == texts[
            : len(records) - 1
        ]
        assert corpus.sources()[0].sha256 == hashlib.sha256(whole[:size]).hexdigest()


def test_a_damaged_archive_does_not_keep_the_next_file_from_being_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(as_lines(["one"])) + b"not a frame" * 100)
    (tmp_path / "b.jsonl").write_bytes(as_lines(["two"]))
    records = list(read_documents([tmp_path]))
    assert [type(record) for record in records] == [Document, Broken, Document]
    assert "damaged zstd data" in str(records[1])


@settings(in_one_folder, max_examples=150)
@given(name=st.sampled_from(list(WRITERS)), content=st.binary(max_size=300))
def test_random_bytes_never_raise(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for record in read_documents([path]):
        assert record.where.startswith(f"{path}:")
        if isinstance(record, Document):
            record.text.encode("utf-8")


@settings(in_one_folder, max_examples=150)
@given(name=st.sampled_from(list(WRITERS)), data=st.data())
def test_flipped_bytes_never_raise(tmp_path: Path, name: str, data: st.DataObject) -> None:
    path = tmp_path / name
    WRITERS[name](path, ["abc", "∫" * 40, "third"])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        for record in read_documents([path]):
            assert record.where.startswith(f"{path}:")
    except UserError as error:  # a Parquet column whose name was hit
        if "--json-key" not in str(error):
            raise


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.jsonl.zst"])
@pytest.mark.parametrize("block_bytes", [977, 1 << 16])
def test_a_line_without_end_is_broken_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block_bytes: int
) -> None:
    monkeypatch.setattr(readers, "_LONGEST_LINE_BYTES", 1 << 20)
    monkeypatch.setattr(readers, "_BLOCK_BYTES", block_bytes)
    path = tmp_path / name
    WRITERS[name](path, ["one", "x" * (3 << 20), "three", "y" * (2 << 20)])
    records = list(read_documents([path]))
    broken = [Broken(f"{path}:{line}", "is a line of more than 1 MiB") for line in (2, 4)]
    assert records == [Document("one", f"{path}:1"), broken[0], Document("three", f"{path}:3"), broken[1]]


@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.jsonl.zst"])
def test_a_bomb_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of 100 MB of zeros in one line, no more than a line may have is held, and the slice after it."""
    monkeypatch.setattr(readers, "_LONGEST_LINE_BYTES", 1 << 20)
    path = tmp_path / name
    zeros = b"0" * (100 << 20)
    path.write_bytes(gzip.compress(zeros, 1) if name.endswith("gz") else zstandard.compress(zeros))
    assert path.stat().st_size < 1 << 20
    del zeros
    tracemalloc.start()
    try:
        [record] = read_documents([path])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert record == Broken(f"{path}:1", "is a line of more than 1 MiB")
    assert peak_bytes < 70 << 20


def test_parquet_rows_without_text_are_broken(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    write_parquet(path, ["one", None, "three"])
    assert list(read_documents([path])) == [
        Document("one", f"{path}:1"),
        Broken(f"{path}:2", "'text' is null"),
        Document("three", f"{path}:3"),
    ]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_of_parquet_only_the_row_that_is_not_utf8_is_lost(tmp_path: Path, kind: pyarrow.DataType) -> None:
    values: list[bytes | None] = [b"good %d" % number for number in range(900)]
    values[300], values[700] = b"bad \xff\xfe", None
    array = pyarrow.array(
        values, pyarrow.large_binary() if kind == pyarrow.large_string() else pyarrow.binary()
    )
    column = pyarrow.Array.from_buffers(kind, len(array), array.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "c.parquet", row_group_size=400)
    records = list(read_documents([tmp_path / "c.parquet"]))
    assert [record.where for record in records] == [f"{tmp_path}/c.parquet:{row}" for row in range(1, 901)]
    broken = [record for record in records if isinstance(record, Broken)]
    assert [(one.where[-3:], one.reason) for one in broken] == [
        ("301", "'text' is not UTF-8 text"),
        ("701", "'text' is null"),
    ]


def test_a_damaged_row_group_does_not_keep_the_next_from_being_read(tmp_path: Path) -> None:
    """What is lost is said."""
    path = tmp_path / "c.parquet"
    table = pyarrow.table({"text": [f"text {number} " * 50 for number in range(40)]})
    pyarrow.parquet.write_table(table, path, row_group_size=10, compression="zstd", use_dictionary=False)
    chunk = pyarrow.parquet.read_metadata(path).row_group(1).column(0)
    damaged = bytearray(path.read_bytes())
    begin = chunk.data_page_offset
    damaged[begin : begin + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(damaged)
    records = list(read_documents([path]))
    assert len(records) == 31
    [broken] = [record for record in records if isinstance(record, Broken)]
    assert broken.where == f"{path}:11"
    assert "is damaged Parquet data" in broken.reason
    assert broken.reason.endswith("; 10 rows from here on are lost")
    assert [record.where for record in records[11:13]] == [f"{path}:21", f"{path}:22"]


def test_parquet_without_the_column(tmp_path: Path) -> None:
    write_parquet(tmp_path / "c.parquet", ["one"], column="content")
    with pytest.raises(UserError, match=r"has no column 'text'; its columns are content, n: .* --json-key"):
        list(read_documents([tmp_path / "c.parquet"]))
    with pytest.raises(UserError, match="column 'n' is int64, not text"):
        list(read_documents([tmp_path / "c.parquet"], key="n"))
    [record] = read_documents([tmp_path / "c.parquet"], key="content")
    assert isinstance(record, Document)


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: does not exist; give a file or a folder"):
        Corpus([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"the folder holds no file that ends in \.py"):
        Corpus([tmp_path], text_suffixes=[".py"])
