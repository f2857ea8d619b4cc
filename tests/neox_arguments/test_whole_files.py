# SPDX-License-Identifier: Apache-2.0
"""A file is there whole or as it was: after failures, kills and writers beside each other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron.neox_arguments.whole_files import draft_of, drafted, write_whole
from tests.ranks import ROOT


def test_text_and_bytes(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "π\n")
    assert (tmp_path / "a").read_bytes() == "π\n".encode()
    write_whole(tmp_path / "a", b"\x00")
    assert (tmp_path / "a").read_bytes() == b"\x00"
    assert os.listdir(tmp_path) == ["a"]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "old")

    def fail() -> None:
        with drafted(tmp_path / "a") as draft:
            draft.write_text("half")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_is_not_there_is_the_callers_business(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "no" / "a", "x")


def test_killed_at_random_moments_the_file_is_one_of_those_written(tmp_path: Path) -> None:
    """Contents of one letter each, long enough to be met half written."""
    code = (
        "import itertools, sys; from pathlib import Path\n"
        "from megatron.neox_arguments.whole_files import write_whole\n"
        "for letter in itertools.cycle('ab'): write_whole(Path(sys.argv[1]), letter * 3_000_000)\n"
    )
    path = tmp_path / "a"
    for turn in range(5):
        writer = subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT)
        while not path.exists() and writer.poll() is None:
            time.sleep(0.005)
        time.sleep(0.013 * turn)
        writer.send_signal(signal.SIGKILL)
        assert writer.wait(30) == -signal.SIGKILL
        content = path.read_bytes()
        assert content in (b"a" * 3_000_000, b"b" * 3_000_000)
    write_whole(path, "whole")
    assert os.listdir(tmp_path) == ["a"], "what the killed ones left is overwritten"


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with drafted(tmp_path / "a") as first, drafted(tmp_path / "a") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"
    assert os.listdir(tmp_path) == ["a"]
    assert draft_of(first.name) == draft_of(second.name) == "a"
