# SPDX-License-Identifier: Apache-2.0
"""However the corpus is cut, the parts in their order are the corpus, and each is known by what it is."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron.data import parts, readers
from megatron.data.parts import Plan, Stretches, Task, part_bytes_of
from megatron.data.readers import Broken, Corpus, Document, read_documents

in_one_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts and chunks of a few lines."""
    monkeypatch.setattr(parts, "_SMALLEST_PART_BYTES", 64)
    monkeypatch.setattr(parts, "_LARGEST_PART_BYTES", 64)
    monkeypatch.setattr(readers, "_CHUNK_BYTES", 50)
    monkeypatch.setattr(readers, "_BLOCK_BYTES", 37)
    monkeypatch.setattr(readers, "_LONGEST_LINE_BYTES", 150)


def records_of(plan: Plan, processes: int) -> list[Document | Broken]:
    """What so many processes find, put together in the order of the corpus."""
    found: dict[tuple[int, str], list[Document | Broken]] = {}
    order: list[tuple[int, str]] = []
    for task in plan.tasks(processes):
        for place, key, records in done_by(pickle.loads(pickle.dumps(task))):
            assert (place, key) not in found
            found[place, key] = records
    for entry in plan.entries:
        if isinstance(entry, Stretches):
            order += [(number, entry.key(number)) for number, chunks in entry.stretches() if list(chunks)]
        else:
            order.append((0, entry.key))
    assert len(set(order)) == len(order) == len(found)
    return [record for key in order for record in found[key]]


def done_by(task: Task) -> Iterator[tuple[int, str, list[Document | Broken]]]:
    if isinstance(task, Stretches):
        for number, chunks in task.stretches():
            if number % task.modulus == task.residue:
                yield number, task.key(number), [r for chunk, _ in chunks for r in chunk.records()]
    else:
        yield 0, task.key, [record for chunk, _ in task.chunks() for record in chunk.records()]


def texts_of(records: list[Document | Broken]) -> list[str]:
    return [record.text if isinstance(record, Document) else str(record) for record in records]


lines = st.lists(
    st.text(alphabet="ab\n∫", max_size=30).map(lambda text: json.dumps({"text": text}).encode())
    | st.just(b"")
    | st.just(b"{")
    | st.integers(60, 200).map(lambda size: json.dumps({"text": "x" * size}).encode()),
    max_size=25,
)


@settings(in_one_folder, max_examples=80)
@given(
    lines=lines, ends=st.booleans(), kind=st.sampled_from(["", ".gz", ".zst"]), processes=st.integers(1, 5)
)
@pytest.mark.usefixtures("small")
def test_parts_are_the_whole(
    tmp_path: Path, lines: list[bytes], ends: bool, kind: str, processes: int
) -> None:
    # A new name each time: lines before a stretch are counted once for each file.
    path = Path(tempfile.mkdtemp(dir=tmp_path)) / f"c.jsonl{kind}"
    content = b"\n".join(lines) + b"\n" * ends
    path.write_bytes(
        gzip.compress(content) if kind == ".gz" else zstandard.compress(content) if kind else content
    )
    assert texts_of(records_of(Plan.of(Corpus([path])), processes)) == texts_of(list(read_documents([path])))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["", ".zst"])
@pytest.mark.parametrize("line_bytes", [16, 31, 32, 33, 63, 64, 65, 128])
def test_lines_that_end_at_the_border_of_a_part(tmp_path: Path, line_bytes: int, kind: str) -> None:
    texts = [f"{number:02}".ljust(line_bytes - len('{"text":""}') - 1, "x") for number in range(40)]
    content = b"".join(b'{"text":"%s"}\n' % text.encode() for text in texts)
    assert len(content) == 40 * line_bytes
    path = tmp_path / f"c.jsonl{kind}"
    path.write_bytes(zstandard.compress(content) if kind else content)
    assert texts_of(records_of(Plan.of(Corpus([path])), 2)) == texts


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("processes", [1, 3])
def test_several_kinds_of_input(tmp_path: Path, processes: int) -> None:
    texts = [f"text {number} " * (number % 7 + 1) for number in range(40)]
    content = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + content)
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(content) + zstandard.compress(content))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(content)[:-9])  # cut off
    table = pyarrow.table({"text": pyarrow.array([*texts, None], pyarrow.string())})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet", row_group_size=5)
    for number, text in enumerate(texts):
        (tmp_path / f"e{number:02}.txt").write_text(text)
    (tmp_path / "f.parquet").write_bytes(b"PAR1 damaged")
    (tmp_path / "g.jsonl").write_bytes(b"")
    plan = Plan.of(Corpus([tmp_path]))
    assert len(plan.entries) > 20
    expected = list(read_documents([tmp_path]))
    found = records_of(plan, processes)
    assert texts_of(found) == texts_of(expected)
    assert [record for record in found if isinstance(record, Broken)] == [
        record for record in expected if isinstance(record, Broken)
    ]
    sizes = sum(entry.input_bytes for entry in plan.entries if not isinstance(entry, Stretches))
    compressed = sum(entry.found.size for entry in plan.entries if isinstance(entry, Stretches))
    assert abs(sizes + compressed - plan.corpus.total_bytes) < 100


@pytest.mark.usefixtures("small")
def test_a_broken_line_in_a_later_part_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "good"}\n' * 30 + "broken\n" + '{"text": "good"}\n' * 30)
    [broken] = [record for record in records_of(Plan.of(Corpus([path])), 2) if isinstance(record, Broken)]
    assert broken.where == f"{path}:31"


def test_keys_tell_files_stretches_and_changes_apart(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a"}\n')

    def key(json_key: str = "text") -> str:
        [entry] = Plan.of(Corpus([path], json_key)).entries
        assert not isinstance(entry, Stretches)
        return entry.key

    before = key()
    assert key() == before
    assert key("content") != before
    os.utime(path, ns=(0, 12345))
    assert key() != before


def test_the_cut_of_a_file_does_not_depend_on_other_files() -> None:
    assert part_bytes_of(0) == part_bytes_of(84_000_000) == 16 << 20
    assert part_bytes_of(4 << 30) == 64 << 20
    assert part_bytes_of(1 << 40) == 256 << 20


@pytest.mark.parametrize(("processes", "files", "per_file"), [(1, 1, 1), (8, 1, 8), (8, 3, 3), (2, 5, 1)])
def test_processes_are_shared_out_to_compressed_files(
    tmp_path: Path, processes: int, files: int, per_file: int
) -> None:
    for number in range(files):
        (tmp_path / f"{number}.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "a"}\n'))
    assert len(Plan.of(Corpus([tmp_path])).tasks(processes)) == files * per_file
