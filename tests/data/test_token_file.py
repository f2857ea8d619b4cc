# SPDX-License-Identifier: Apache-2.0
"""The format against megatron-core's reader and writer; kills, refusals and damage."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
from megatron.data import token_file
from megatron.data.token_file import TokenFile, TokenFileWriter, token_dtype
from megatron.neox_arguments.errors import UserError
from tests.data.corpora import numbers, provenance, random_documents, write_documents

in_one_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
vocabularies = st.sampled_from([2, 300, 32000, 65499, 65500, 65501, 151936])


@st.composite
def corpora(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    vocab_size = draw(vocabularies)
    document = st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=40)
    return vocab_size, draw(st.lists(document, min_size=1, max_size=20))


def contents(prefix: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(prefix.parent.iterdir()) if path.is_file()}


@in_one_folder
@given(corpora())
def test_megatron_core_reads_what_was_written(tmp_path: Path, corpus: tuple[int, list[list[int]]]) -> None:
    vocab_size, documents = corpus
    prefix = write_documents(tmp_path / "p", documents, numbers(vocab_size), overwrite=True)
    theirs = IndexedDataset(str(prefix))
    assert [theirs[i].tolist() for i in range(len(theirs))] == documents
    assert theirs.document_indices.tolist() == list(range(len(documents) + 1))
    assert theirs.index.dtype == DType.optimal_dtype(vocab_size) == token_dtype(vocab_size)
    ours = TokenFile.open(prefix)
    assert [ours.document(i).tolist() for i in range(ours.documents)] == documents
    assert ours.tokens == sum(map(len, documents))
    assert sorted(contents(prefix)) == ["p.bin", "p.idx", "p.json"]


@in_one_folder
@given(corpora())
def test_the_bytes_are_those_of_megatron_cores_writer(
    tmp_path: Path, corpus: tuple[int, list[list[int]]]
) -> None:
    vocab_size, documents = corpus
    write_documents(tmp_path / "ours", documents, numbers(vocab_size), overwrite=True)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=DType.optimal_dtype(vocab_size))
    for document in documents:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
    opened = TokenFile.open(tmp_path / "theirs")
    assert opened.sidecar is None
    assert [opened.document(i).tolist() for i in range(opened.documents)] == documents


def test_positions_beyond_2_to_the_31_are_right(tmp_path: Path) -> None:
    """Only the index is looked at: three documents of 1.5 billion tokens of four bytes."""
    writer = TokenFileWriter(tmp_path / "p", 100_000)
    writer._lengths, writer.documents = [np.full(3, 1_500_000_000, dtype=np.int32)], 3
    index = b"".join(writer._index_parts())
    assert struct.unpack_from("<3q", index, 34 + 3 * 4) == (0, 6_000_000_000, 12_000_000_000)


def test_documents_in_one_piece_are_the_same_as_one_by_one(tmp_path: Path) -> None:
    documents = random_documents(0, 50)
    one_by_one = write_documents(tmp_path / "a", documents)
    with TokenFileWriter(tmp_path / "b", 1000) as writer:
        writer.add_documents(np.concatenate(documents[:20]), np.array([len(d) for d in documents[:20]]))
        writer.add_documents(np.concatenate(documents[20:]), np.array([len(d) for d in documents[20:]]))
        writer.finalize(provenance(numbers()))
    for suffix in (".bin", ".idx", ".json"):
        assert Path(f"{one_by_one}{suffix}").read_bytes() == Path(f"{tmp_path / 'b'}{suffix}").read_bytes()


@pytest.mark.parametrize("ids", [[], [1000], [-1], [3, 70000]])
def test_a_programming_error_is_not_written(tmp_path: Path, ids: list[int]) -> None:
    with (
        TokenFileWriter(tmp_path / "p", 1000) as writer,
        pytest.raises(ValueError, match="token id|do not cut"),
    ):
        writer.add_document(ids)


def test_leaving_without_finalize_leaves_nothing(tmp_path: Path) -> None:
    with TokenFileWriter(tmp_path / "p", 1000) as writer:
        writer.add_document([1])
        assert (tmp_path / "p.bin.partial").exists()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    with (
        TokenFileWriter(tmp_path / "p", 1000) as writer,
        pytest.raises(UserError, match="no document has any token"),
    ):
        writer.finalize(provenance(numbers()))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_kept_unless_told(tmp_path: Path) -> None:
    prefix = write_documents(tmp_path / "p", [[1, 2]])
    before = contents(prefix)
    with pytest.raises(UserError, match=r"p\.bin: exists; pass --overwrite"):
        write_documents(prefix, [[3]])
    assert contents(prefix) == before
    write_documents(prefix, [[3]], overwrite=True)
    assert TokenFile.open(prefix).document(0).tolist() == [3]


def test_two_writers_of_one_prefix(tmp_path: Path) -> None:
    with (
        TokenFileWriter(tmp_path / "p", 1000),
        pytest.raises(UserError, match="another process is writing it"),
        TokenFileWriter(tmp_path / "p", 1000),
    ):
        pass
    write_documents(tmp_path / "p", [[1]])


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/p: cannot be written \(.*choose a folder you may write to"):
        write_documents(tmp_path / "file" / "p", [[1]])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str) -> None:
    prefix = write_documents(tmp_path / "p", [[1, 2]])
    before = contents(prefix)

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(token_file.os, call, refuse)
        promise = (
            "nothing that was there has changed"
            if call == "fsync"
            else "renames are done when it is next opened"
        )
        with pytest.raises(UserError, match=f"{os.strerror(number)}.*{promise}"):
            write_documents(prefix, [[3, 4]], overwrite=True)
    if call == "fsync":
        assert contents(prefix) == before
        assert TokenFile.open(prefix).document(0).tolist() == [1, 2]
    else:  # all is written and only waits for its renames: opening does them
        assert {name: data for name, data in contents(prefix).items() if name in before} == before
        assert TokenFile.open(prefix).document(0).tolist() == [3, 4]


class Killed(BaseException):
    """Stands for a kill: nothing of the writer runs after it."""


@pytest.mark.parametrize("first_time", [True, False])
@pytest.mark.parametrize("renames", [0, 1, 2, 3])
def test_a_kill_between_the_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int, first_time: bool
) -> None:
    prefix = tmp_path / "p"
    if not first_time:
        write_documents(prefix, [[1, 2]])
    done: list[Path] = []
    real_replace, real_unlink = os.replace, os.unlink

    def replace(source: Path, target: Path) -> None:
        if len(done) == renames:
            raise Killed
        done.append(target)
        real_replace(source, target)

    def unlink(path: Path) -> None:
        if renames == 3 and str(path).endswith(".commit"):
            raise Killed
        real_unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(token_file.os, "replace", replace)
        patch.setattr(token_file.os, "unlink", unlink)
        with pytest.raises(Killed):
            write_documents(prefix, [[3, 4, 5]], overwrite=True)
    assert (tmp_path / "p.commit").exists()
    assert TokenFile.open(prefix).document(0).tolist() == [3, 4, 5]
    assert sorted(contents(prefix)) == ["p.bin", "p.idx", "p.json"]


def test_a_kill_between_the_renames_is_finished_by_the_next_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tmp_path / "p"

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(token_file.os, "replace", kill)
        with pytest.raises(Killed):
            write_documents(prefix, [[3, 4, 5]])
    with TokenFileWriter(prefix, 1000, overwrite=True) as writer:
        writer.add_document([9])  # and this one gives up
    assert TokenFile.open(prefix).document(0).tolist() == [3, 4, 5]


def test_missing_files_say_what_to_do(tmp_path: Path) -> None:
    prefix = write_documents(tmp_path / "math_text_document", [[1]])
    with pytest.raises(UserError, match="without its suffix: .*math_text_document$"):
        TokenFile.open(Path(f"{prefix}.bin"))
    with pytest.raises(UserError, match=r"did you mean .*math_text_document\?"):
        TokenFile.open(tmp_path / "math")
    with pytest.raises(
        UserError, match=r"other\.idx: does not exist; make it with tools/preprocess_data\.py"
    ):
        TokenFile.open(tmp_path / "other")


def test_a_cut_off_bin_is_refused(tmp_path: Path) -> None:
    prefix = write_documents(tmp_path / "p", [[1, 2, 3]])
    (tmp_path / "p.bin").write_bytes((tmp_path / "p.bin").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"points at 6 bytes of p\.bin, which has 5"):
        TokenFile.open(prefix)


def test_a_pointer_beyond_the_bin_is_refused(tmp_path: Path) -> None:
    prefix = write_documents(tmp_path / "p", [[1, 2, 3]])
    index = bytearray((tmp_path / "p.idx").read_bytes())
    struct.pack_into("<q", index, 34 + 4, 2**63 - 1)
    (tmp_path / "p.idx").write_bytes(index)
    with pytest.raises(UserError, match="points at 9223372036854775807 bytes"):
        TokenFile.open(prefix)


def test_the_sidecar_of_other_data_is_refused(tmp_path: Path) -> None:
    prefix = write_documents(tmp_path / "p", [[1, 2, 3]])
    other = write_documents(tmp_path / "q", [[1], [2]])
    os.replace(f"{other}.json", f"{prefix}.json")
    with pytest.raises(UserError, match=r"p\.json: tells of 2 documents, 2 tokens"):
        TokenFile.open(prefix)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"tokenizer": 3}'])
def test_a_damaged_sidecar_is_refused(tmp_path: Path, content: bytes) -> None:
    prefix = write_documents(tmp_path / "p", [[1, 2, 3]])
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(UserError, match=r"p\.json: is not a sidecar of tools/preprocess_data\.py"):
        TokenFile.open(prefix)


@settings(in_one_folder, max_examples=200)
@given(st.data())
def test_a_damaged_index_is_read_or_refused_in_words(tmp_path: Path, data: st.DataObject) -> None:
    prefix = write_documents(tmp_path / "p", [[1, 2, 3], [4], [5, 6]], overwrite=True)
    index = bytearray((tmp_path / "p.idx").read_bytes())
    if data.draw(st.booleans()):
        index = index[: data.draw(st.integers(0, len(index) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            index[data.draw(st.integers(0, len(index) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "p.idx").write_bytes(index)
    try:
        opened = TokenFile.open(prefix)
    except UserError:
        return
    assert [len(opened.document(i)) for i in range(opened.documents)] == opened.lengths_D.tolist()
