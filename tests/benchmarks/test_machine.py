# SPDX-License-Identifier: Apache-2.0
"""Which commit a page says it is of."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import machine


def git(*arguments: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.example")
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True)


def test_code_that_differs_is_said_and_results_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    files = [tmp_path / "code.py", tmp_path / "README.md", tmp_path / "benchmarks" / "found.json"]
    (tmp_path / "benchmarks").mkdir()
    for file in files:
        file.write_text("1")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "all")
    clean = machine.commit()
    assert len(clean) == 40
    for page in files[1:]:
        page.write_text("2")
    assert machine.commit() == clean
    files[0].write_text("2")
    assert machine.commit() == f"{clean} with changes"
