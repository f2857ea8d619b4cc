# SPDX-License-Identifier: Apache-2.0
"""Input shards: every document once, however the input is cut; what is broken is counted and bounded, and
raises nothing."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from megatron.neox_arguments.errors import UserError
from tools.proof_pile_2.documents import Broken, Document
from tools.proof_pile_2.shards import (
    FilesShard,
    JsonLinesShard,
    Limits,
    ParquetShard,
    ReadOptions,
    cut_lines,
    plan_shards,
)

ROOT = Path(__file__).resolve().parents[3]
in_one_folder = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
COMPRESS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstandard.compress}
TEXTS = ["first", "", "naïve ∫\u2028dx\n", "\x00", "a" * 500]


def as_lines(texts: Sequence[str]) -> bytes:
    return b"".join(
        json.dumps({"text": text, "meta": {"n": n}}).encode() + b"\n" for n, text in enumerate(texts)
    )


def read(*places: Path, **options: object) -> list[Document | Broken]:
    shards = list(plan_shards(places, ReadOptions(**options)))  # type: ignore[arg-type]
    assert [shard.name for shard in shards] == [f"{number:05}" for number in range(len(shards))]
    return [item for shard in shards for item in shard.read()]


def reasons(items: Iterable[Document | Broken]) -> list[str]:
    return [item.reason for item in items if isinstance(item, Broken)]


@pytest.mark.parametrize("cut_bytes", [1, 7, 50, 64, 1 << 20])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_every_document_is_read_once_however_it_is_cut(tmp_path: Path, name: str, cut_bytes: int) -> None:
    path, data = tmp_path / name, as_lines(TEXTS)
    if name.endswith(".parquet"):
        table = pyarrow.table({"text": TEXTS, "meta": [json.dumps({"n": n}) for n in range(len(TEXTS))]})
        pyarrow.parquet.write_table(table, path, row_group_size=1)
    else:
        compress = COMPRESS.get(path.suffix, bytes)
        path.write_bytes(compress(data))
    assert read(path, cut_bytes=cut_bytes) == [Document(text, {"n": n}) for n, text in enumerate(TEXTS)]


@given(
    lines=st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=8),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20), limit=st.integers(1, 12), ends=st.booleans(),
)  # fmt: skip
def test_lines_are_cut_alike_for_any_blocks(
    lines: list[bytes], sizes: list[int], limit: int, ends: bool
) -> None:
    data = b"\n".join(lines) + (b"\n" if ends and lines else b"")
    blocks: list[bytes] = []
    place = 0
    while place < len(data):
        size = sizes[len(blocks) % len(sizes)]
        blocks.append(data[place : place + size])
        place += size
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    found = list(cut_lines(blocks, limit))
    assert [line for line, _ in found] == [line if len(line) <= limit else None for line in expected]
    assert sum(length for _, length in found) == len(data)


@in_one_folder
@given(
    data=st.binary(max_size=300),
    kind=st.sampled_from([".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".py"]),
)
def test_any_bytes_under_any_name_raise_nothing(tmp_path: Path, data: bytes, kind: str) -> None:
    path = tmp_path / f"a{kind}"
    path.write_bytes(data)
    for item in read(path):
        assert isinstance(item, (Document, Broken))


@in_one_folder
@example(places=[(0, 0)], cut=5, kind=".jsonl.zst")
@given(places=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4),
       cut=st.integers(1, 400),
       kind=st.sampled_from([".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"]))  # fmt: skip
def test_damaged_and_cut_files_raise_nothing(
    tmp_path: Path, places: list[tuple[float, int]], cut: int, kind: str
) -> None:
    path = tmp_path / f"b{kind}"
    if kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), path)
    else:
        compress = COMPRESS.get(path.suffix, bytes)
        path.write_bytes(compress(as_lines(TEXTS)))
    data = bytearray(path.read_bytes())
    for place, value in places:
        data[int(place * len(data))] = value
    path.write_bytes(data[: -cut or None])
    for item in read(path):
        assert isinstance(item, (Document, Broken))


def test_a_cut_archive_gives_what_is_whole(tmp_path: Path) -> None:
    rng = random.Random(1)
    texts = ["".join(rng.choices("abcdefgh ", k=3000)) for _ in range(300)]
    for name, compress in (("a.jsonl.zst", zstandard.compress), ("b.jsonl.gz", gzip.compress)):
        data = compress(as_lines(texts))
        (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
        *documents, broken = read(tmp_path / name)
        assert isinstance(broken, Broken)
        assert broken.reason.endswith("data that is cut off")
        found = [item.text for item in documents if isinstance(item, Document)]
        assert 0 < len(found) < 300
        assert found == texts[: len(found)]


@pytest.mark.parametrize(("line", "reason"), [
    (b'{"text": 1}', "'text' is not text but int"),
    (b'{"text": null}', "'text' is not text but null"),
    (b'{"other": "a"}', "has no 'text'"),
    (b'["text"]', "is not a JSON object but a list"),
    (b'{"text": "\xff"}', "is not JSON"),
    (b'{"text": "\\ud800"}', "is not JSON"),
    (b"[" * 5000, "is not JSON"),
    (b'{"text": "' + b"x" * 2000 + b'"}', "is a line of more than 1000 bytes"),
])  # fmt: skip
def test_broken_lines_are_named_and_the_others_read(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "before"}\n' + line + b'\n\n{"text": "after"}')
    first, broken, last = read(path, limits=Limits(max_record_bytes=1000 if b"xxx" in line else 1 << 20))
    assert (first, last) == (Document("before"), Document("after"))
    assert isinstance(broken, Broken)
    assert broken.where == f"{path}:2"
    assert broken.reason.startswith(reason)


def test_the_forms_of_meta(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "a", "meta": "{\\"url\\": \\"u\\"}", "id": 3}\n{"text": "b", "meta": "words"}\n'
        '{"text": "c", "meta": null}\n{"text": "d", "meta": [1]}\n'
    )
    metas = [item.meta for item in read(path, meta=(("lang", "x"),)) if isinstance(item, Document)]
    assert metas == [{"url": "u", "id": 3, "lang": "x"}, {"meta": "words", "lang": "x"}, {"lang": "x"},
                     {"meta": [1], "lang": "x"}]  # fmt: skip


def test_folders_of_source_files(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for path in (root / "b.py", root / "a" / "x.PY", root / ".git/y.py", root / "c.txt", outside / "z.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {path.name}\n")
    (root / "link.py").symlink_to(outside / "z.py")
    (root / "linked_folder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe.py")
    (root / "empty.py").touch()
    (root / "large.py").write_bytes(b"x" * 2000)
    (root / "latin.py").write_bytes(b"na\xefve")
    (root / os.fsdecode(b"\xff.py")).write_text("name")
    (root / "data.jsonl").write_text("as a file: no suffix of these")
    options = {"suffixes": (".py",), "as_files": True, "limits": Limits(max_record_bytes=1000)}
    for files_count in (1, 3, 100):
        items = read(root, files_count=files_count, **options)
        documents = {item.meta["path"]: item.text for item in items if isinstance(item, Document)}
        assert documents == {"b.py": "# b.py\n", "a/x.PY": "# x.PY\n", "\\xff.py": "name"}
        broken = {Path(item.where).name: item.reason for item in items if isinstance(item, Broken)}
        link = "is a symbolic link, which is not followed"
        assert broken == {
            "link.py": link, "linked_folder": link, "loop": link, "pipe.py": "is not a plain file",
            "empty.py": "holds no bytes", "large.py": "has more than 1000 bytes",
            "latin.py": "is not UTF-8 text",
        }  # fmt: skip


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: does not exist"):
        read(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no file that ends in .py"):
        read(tmp_path, suffixes=(".py",))


def test_identities_follow_what_decides_the_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_lines(TEXTS))
    [shard] = plan_shards([path], ReadOptions())
    same = [other.identity() for other in plan_shards([path], ReadOptions())]
    assert same == [shard.identity()]
    [other] = plan_shards([path], ReadOptions(text_key="meta"))
    assert other.identity() != shard.identity()
    path.write_bytes(as_lines([*TEXTS, "more"]))
    assert [changed.identity() for changed in plan_shards([path], ReadOptions())] != same
    assert isinstance(shard, JsonLinesShard)


def test_of_parquet_only_the_row_that_is_not_utf8_is_lost(tmp_path: Path) -> None:
    texts = [*(b"good %d" % number for number in range(20)), b"bad \xff", b"last"]
    array = pyarrow.array(texts, pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.string(), len(array), array.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    records = read(tmp_path / "a.parquet")
    assert len(records) == 22
    [broken] = [record for record in records if isinstance(record, Broken)]
    assert broken == Broken(f"{tmp_path}/a.parquet:21", "is not UTF-8 text")


def test_parquet_columns_are_meta(tmp_path: Path) -> None:
    table = pyarrow.table(
        {"content": ["a", None], "size": [1, 2], "when": pyarrow.array([0, 1], pyarrow.timestamp("s"))}
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    first, second = read(tmp_path / "a.parquet", text_key="content")
    assert isinstance(first, Document)
    assert (first.text, first.meta["size"]) == ("a", 1)
    assert reasons([second]) == ["'content' is not text but null"]
    assert reasons(read(tmp_path / "a.parquet", text_key="absent")) == ["has no 'absent'"] * 2
    [shard] = plan_shards([tmp_path / "a.parquet"], ReadOptions())
    assert isinstance(shard, ParquetShard)


BOMB = """
import resource, sys
from pathlib import Path
from tools.proof_pile_2.shards import Limits, ReadOptions, plan_shards
from tools.proof_pile_2.documents import Broken
import pyarrow, zstandard
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
limits = Limits(max_record_bytes=1 << 20, expansion_free_bytes=1 << 20)
for path in sorted(Path(sys.argv[1]).iterdir()):
    for shard in plan_shards([path], ReadOptions(limits=limits)):
        print(path.name, [item.reason for item in shard.read() if isinstance(item, Broken)])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_decompression_bombs_and_endless_lines_are_bounded(tmp_path: Path) -> None:
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    with open(tmp_path / "a.jsonl.zst", "wb") as file:
        for _ in range(300):  # 300 MB of blanks, without a line's end
            file.write(compressor.compress(b" " * (1 << 20)))
        file.write(compressor.flush())
    with gzip.open(tmp_path / "b.jsonl.gz", "wb", compresslevel=9) as packed:
        for _ in range(4):
            packed.write(b"\n" * (1 << 20))
    with open(tmp_path / "c.jsonl", "wb") as file:
        file.truncate(160 << 20)  # a sparse file: 160 MB of NUL in one line
    done = subprocess.run([sys.executable, "-c", BOMB, str(tmp_path)], cwd=ROOT, timeout=240, check=True,
                          capture_output=True, text=True)  # fmt: skip
    *lines, megabytes = done.stdout.splitlines()
    assert lines[0].startswith("a.jsonl.zst ['expands beyond ")
    assert lines[1].startswith("b.jsonl.gz ['expands beyond ")
    assert set(lines[2:]) == {"c.jsonl ['is a line of more than 1048576 bytes']", "c.jsonl []"}
    assert int(megabytes) < 150


def test_a_shard_is_a_stretch_of_files(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.v").write_text("x" * 100)
    shards = list(plan_shards([tmp_path], ReadOptions(as_files=True, files_bytes=250)))
    assert [len(shard.files) for shard in shards if isinstance(shard, FilesShard)] == [3, 3, 3, 1]
