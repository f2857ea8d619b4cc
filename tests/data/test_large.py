# SPDX-License-Identifier: Apache-2.0
"""Beyond 2**31 tokens and documents, in sparse files: they look as large as real ones and take no disk."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.data import token_file
from megatron.data.index_cache import IndexCache, Peers
from megatron.data.mcore_datasets import Packing, SequenceOrder
from megatron.data.merge import merge_token_files
from megatron.data.sources import Source
from megatron.data.token_file import Sidecar, TokenFile, TokenFileWriter
from megatron.neox_arguments.errors import UserError
from tests.data.corpora import numbers, provenance

DOCUMENTS, DOCUMENT_TOKENS = 60_000, 40_000  # 2.4e9 tokens, 4.8 GB of uint16
MARKED = 8


def mark(document: int) -> list[int]:
    """What a marked document begins with."""
    return [900 - (DOCUMENTS - document), 7]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token file of zeros; the last documents begin with ids of their own."""
    prefix = tmp_path_factory.mktemp("large") / "p"
    with TokenFileWriter(prefix, 1000) as writer:
        writer._lengths = [np.full(DOCUMENTS, DOCUMENT_TOKENS, dtype=np.int32)]
        writer.documents, writer.tokens = DOCUMENTS, DOCUMENTS * DOCUMENT_TOKENS
        assert writer._bin is not None
        writer._bin.truncate(writer.tokens * 2)
        for document in range(DOCUMENTS - MARKED, DOCUMENTS):
            writer._bin.seek(document * DOCUMENT_TOKENS * 2)
            writer._bin.write(np.array(mark(document), dtype="<u2").tobytes())
        sidecar = writer.finalize(provenance(numbers()))
    assert sidecar.tokens > 2**31
    binary = prefix.with_name("p.bin").stat()
    assert binary.st_size == sidecar.tokens * 2
    if binary.st_blocks * 512 > 100 << 20:
        pytest.skip("needs a file system with sparse files")
    return prefix


def test_documents_beyond_2_to_the_31_tokens_are_read(large: Path) -> None:
    ours, theirs = TokenFile.open(large), IndexedDataset(str(large))
    assert ours.is_end_to_end()
    for document in (0, DOCUMENTS - MARKED, DOCUMENTS - 1):
        expected = mark(document) if document else [0, 0]
        assert ours.document(document)[:2].tolist() == expected
        assert theirs[document][:2].tolist() == expected
    assert int(ours.pointers_D[-1]) == (DOCUMENTS - 1) * DOCUMENT_TOKENS * 2 > 2**32


def test_sequences_beyond_2_to_the_31_tokens_are_packed_and_blended(large: Path) -> None:
    """Every marked document turns up once in a pass over the end of the file, in a blend with its beginning,
    and the whole file is laid out."""
    file = TokenFile.open(large)
    packing = Packing(seq_length=4096, seed=1, vocab_size=1000, eod_id=2, eod_mask_loss=False)
    cache = IndexCache(None, Peers())
    end = Source("end", file, DOCUMENTS - MARKED, DOCUMENTS)
    whole = Source.whole("whole", file)
    in_a_pass = (MARKED * DOCUMENT_TOKENS - 1) // 4096
    order = SequenceOrder([end, whole], [1.0, 1.0], 2 * in_a_pass, packing, cache)
    seen: list[int] = []
    for position in range(len(order)):
        if order.source_of(position) == "end":
            tokens = order[position].tokens_S.numpy()
            seen += tokens[(tokens != 0) & (tokens != 7)].tolist()
    expected = [mark(document)[0] for document in range(DOCUMENTS - MARKED, DOCUMENTS)]
    assert set(seen) <= set(expected)
    assert len(seen) == len(set(seen)) >= MARKED - 1  # one may stand in the last sequence, which is not full
    assert whole.sequences(4096) == (DOCUMENTS * DOCUMENT_TOKENS - 1) // 4096
    assert len(SequenceOrder([whole], [1.0], whole.sequences(4096), packing, cache)) > 500_000


def test_files_beyond_2_to_the_31_tokens_are_merged(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_sparsely(source: IO[bytes], begin: int, target: IO[bytes], count: int) -> None:
        """As the kernel copies, but holes stay holes."""
        at = target.tell()
        target.truncate(at + count)
        position = begin
        while position < begin + count:
            try:
                position = os.lseek(source.fileno(), position, os.SEEK_DATA)
            except OSError:  # nothing but a hole is left
                break
            hole = min(os.lseek(source.fileno(), position, os.SEEK_HOLE), begin + count)
            if position < hole:
                os.pwrite(
                    target.fileno(),
                    os.pread(source.fileno(), hole - position, position),
                    at + position - begin,
                )
            position = hole
        target.seek(at + count)

    with TokenFileWriter(tmp_path / "small", 1000) as writer:
        writer.add_document([5, 6])
        writer.finalize(provenance(numbers()))
    monkeypatch.setattr(token_file, "_copy_bytes", copy_sparsely)
    sidecar = merge_token_files([large, tmp_path / "small"], tmp_path / "all")
    assert isinstance(sidecar, Sidecar)
    assert sidecar.tokens == DOCUMENTS * DOCUMENT_TOKENS + 2
    merged = TokenFile.open(tmp_path / "all")
    assert merged.document(DOCUMENTS).tolist() == [5, 6]
    assert merged.document(DOCUMENTS - 1)[:2].tolist() == mark(DOCUMENTS - 1)
    (tmp_path / "all.bin").unlink()


def test_an_index_of_more_than_2_to_the_31_documents(tmp_path: Path) -> None:
    """Only its ends are looked at: reading all of it would take half a minute."""
    documents = 2**31 + 5
    path = tmp_path / "p.idx"
    with open(path, "wb") as file:
        file.write(struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, documents, documents + 1))
        file.truncate(34 + 20 * documents + 8)
        file.seek(34 + 4 * (documents - 1))
        file.write(struct.pack("<i", 3))
        file.seek(34 + 12 * documents - 8)
        file.write(struct.pack("<q", 2**33))
        file.seek(34 + 20 * documents)
        file.write(struct.pack("<q", documents))
    dtype, lengths, pointers = token_file._read_index(path, may_be_empty=False)
    assert (dtype, len(lengths), len(pointers)) == (np.dtype(np.uint16), documents, documents)
    assert (int(lengths[-1]), int(pointers[-1])) == (3, 2**33)
    opened = TokenFile(tmp_path / "p", dtype, lengths, pointers, 3, None)
    assert opened.documents == documents
    with pytest.raises(UserError, match=r"holds 2147483653 documents, .* at most 2147483647 of one file"):
        SequenceOrder(
            [Source.whole("p", opened)], [1.0], 10, Packing(2, 1, 1000, 2, False), IndexCache(None, Peers())
        )
