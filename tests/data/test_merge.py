# SPDX-License-Identifier: Apache-2.0
"""Merged files hold the documents of all in their order; what does not fit together is refused; a kill costs
nothing."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.data import token_file
from megatron.data.merge import merge_token_files
from megatron.data.token_file import TokenFile, TokenFileWriter
from megatron.neox_arguments.errors import UserError
from tests.data.corpora import numbers, provenance, random_documents, write_documents

COMMAND = [sys.executable, str(Path(__file__).resolve().parents[2] / "tools" / "merge_datasets.py")]


def contents(prefix: Path) -> list[bytes]:
    return [prefix.with_name(prefix.name + suffix).read_bytes() for suffix in (".bin", ".idx", ".json")]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    vocab_size=st.sampled_from([1000, 70_000]),
    copied_bytes=st.sampled_from([8, 100, 1 << 28]),
)
def test_merged_documents_are_those_of_the_parts(
    tmp_path: Path, counts: list[int], vocab_size: int, copied_bytes: int
) -> None:
    parts = [random_documents(seed, count, vocab_size=vocab_size) for seed, count in enumerate(counts)]
    tokenizer = numbers(vocab_size)
    inputs = [
        write_documents(tmp_path / f"v1.{number}", documents, tokenizer, overwrite=True)
        for number, documents in enumerate(parts)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_file, "_COPIED_BYTES", copied_bytes)
        patch.setattr(token_file, "_BLOCK_DOCUMENTS", 7)
        patch.setattr(token_file.os, "fsync", lambda descriptor: None)  # only kills of machines need it
        sidecar = merge_token_files(inputs, tmp_path / "all", overwrite=True)
    together = [document for documents in parts for document in documents]
    theirs = IndexedDataset(str(tmp_path / "all"))
    assert [theirs[i].tolist() for i in range(len(theirs))] == together
    assert (sidecar.documents, sidecar.tokens) == (len(together), sum(map(len, together)))
    write_documents(tmp_path / "one", together, tokenizer, overwrite=True)
    assert contents(tmp_path / "all")[:2] == contents(tmp_path / "one")[:2]


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    documents = random_documents(0, 5)
    a = write_documents(tmp_path / "a", documents)
    for name, other, words in (
        ("tokenizer", numbers(fingerprint="e" * 64), "has tokenizer eeeeeeeeeeee, and .*a ffffffffffff"),
        ("eod", numbers(eod_id=0), "has eod_id 0, and .*a 2"),
        ("size", numbers(vocab_size=80_000), "has dtype int32, and .*a uint16"),
    ):
        b = write_documents(tmp_path / name, documents, other)
        with pytest.raises(UserError, match=words):
            merge_token_files([a, b], tmp_path / "all")
    with TokenFileWriter(tmp_path / "open", 1000) as writer:
        writer.add_document([1])
        writer.finalize(provenance(numbers(), eod_appended=False))
    with pytest.raises(UserError, match="has eod_appended False, and .*a True"):
        merge_token_files([a, tmp_path / "open"], tmp_path / "all")
    (tmp_path / "size.json").unlink()
    with pytest.raises(UserError, match=r"size: has no \.json, so that its tokenizer is not known"):
        merge_token_files([a, tmp_path / "size"], tmp_path / "all")
    with pytest.raises(UserError, match="is given twice"):
        merge_token_files([a, a], tmp_path / "all")
    with pytest.raises(UserError, match="is one of the inputs"):
        merge_token_files([a, tmp_path / "eod"], a)
    with pytest.raises(UserError, match="exists; pass --overwrite"):
        merge_token_files([a], tmp_path / "eod")
    assert not list(tmp_path.glob("all*"))


@pytest.mark.parametrize("vocab_size", [1000, 70_000])
def test_ids_outside_the_vocabulary_are_not_merged(tmp_path: Path, vocab_size: int) -> None:
    inputs = [
        write_documents(tmp_path / f"{n}", random_documents(n, 50), numbers(vocab_size)) for n in range(2)
    ]
    merge_token_files(inputs, tmp_path / "whole")
    data = bytearray((tmp_path / "1.bin").read_bytes())
    data[-1] = 0x7F if vocab_size == 1000 else 0xFF
    (tmp_path / "1.bin").write_bytes(data)
    with pytest.raises(
        UserError, match=rf"1\.bin: holds id -?\d+, which its tokenizer with {vocab_size} ids"
    ):
        merge_token_files(inputs, tmp_path / "all")
    assert not list(tmp_path.glob("all*"))


def test_an_interrupted_merge_copies_no_byte_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [write_documents(tmp_path / f"{n}", random_documents(n, 50)) for n in range(4)]
    merge_token_files(inputs, tmp_path / "whole")
    monkeypatch.setattr(token_file, "_COPIED_BYTES", 500)
    copy = token_file._copy_bytes
    copied: list[int] = []

    def copy_five(source: object, begin: int, target: object, count: int) -> None:
        if len(copied) % 6 == 5:
            copied.append(0)
            raise KeyboardInterrupt
        copied.append(count)
        copy(source, begin, target, count)  # type: ignore[arg-type]

    monkeypatch.setattr(token_file, "_copy_bytes", copy_five)
    for _ in range(100):
        try:
            merge_token_files(inputs, tmp_path / "all")
            break
        except KeyboardInterrupt:
            assert (tmp_path / "all.bin.partial").exists()
    assert contents(tmp_path / "all") == contents(tmp_path / "whole")
    assert sum(copied) == (tmp_path / "whole.bin").stat().st_size
    assert copied.count(0) > 2
    assert not list(tmp_path.glob("all.*partial")) + list(tmp_path.glob("all.resume"))


def test_what_was_begun_with_other_inputs_is_not_kept(tmp_path: Path) -> None:
    a, b = (write_documents(tmp_path / f"{n}", random_documents(n, 50)) for n in range(2))

    def interrupted() -> None:
        with TokenFileWriter(tmp_path / "all", 1000, resume_key="other") as writer:
            writer.add_file(TokenFile.open(b))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "all.resume").exists()
    merge_token_files([a, b], tmp_path / "all")
    merge_token_files([a, b], tmp_path / "whole")
    assert contents(tmp_path / "all") == contents(tmp_path / "whole")


def test_the_command_killed_at_random_moments(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    for number in range(6):
        write_documents(folder / f"{number}", random_documents(number, 40))
    done = subprocess.run(
        [*COMMAND, "--input", folder, "--output-prefix", tmp_path / "whole"],
        check=True, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert "240 documents" in done.stdout
    command = [*COMMAND, "--input", str(folder), "--output-prefix", str(tmp_path / "all")]
    generator = random.Random(3)
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (tmp_path / "all.lock").exists():
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        if process.wait(100) == 0:
            break
    else:
        # Killed between two renames, or not: opening finishes, and what is whole is not written again.
        if not (tmp_path / "all.bin").exists() and not (tmp_path / "all.commit").exists():
            subprocess.run(command, check=True, timeout=100, capture_output=True)
    TokenFile.open(tmp_path / "all")
    assert contents(tmp_path / "all") == contents(tmp_path / "whole")
    shutil.rmtree(folder)
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [*COMMAND, "--input", tmp_path / "empty", "--output-prefix", tmp_path / "x"],
        check=False, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert (done.returncode, "holds no token file" in done.stderr) == (2, True)
