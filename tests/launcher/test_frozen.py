# SPDX-License-Identifier: Apache-2.0
"""The frozen configuration: same run, same file; another file, no start."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from megatron.launcher.frozen import HASH_VARIABLE, freeze, read_frozen
from megatron.neox_arguments.errors import UserError
from tests.launcher.runs import small_run


def test_it_comes_back_equal_and_lies_in_save(tmp_path: Path) -> None:
    cfg = small_run(tmp_path, save=str(tmp_path / "run"))
    frozen = freeze(cfg)
    assert frozen.path.parent == (tmp_path / "run" / "run_configs").resolve()
    assert hashlib.sha256(frozen.path.read_bytes()).hexdigest() == frozen.sha256
    assert frozen.path.with_suffix(".sha256").read_text() == f"{frozen.sha256}  {frozen.path.name}\n"
    assert read_frozen(frozen.path, {HASH_VARIABLE: frozen.sha256}) == cfg
    assert read_frozen(frozen.path, {}) == cfg


def test_the_same_run_gives_the_same_file_and_another_run_another(tmp_path: Path) -> None:
    one = freeze(small_run(tmp_path, save=str(tmp_path / "run")))
    assert freeze(small_run(tmp_path, save=str(tmp_path / "run"))) == one
    other = freeze(small_run(tmp_path, save=str(tmp_path / "run"), train_iters=11))
    assert other.path != one.path
    assert len(list(one.path.parent.iterdir())) == 4


def test_a_run_that_saves_nothing_is_frozen_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cfg = small_run(tmp_path)
    assert read_frozen(freeze(cfg).path, {}) == cfg


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    frozen = freeze(small_run(tmp_path, save=str(tmp_path / "run")))
    text = frozen.path.read_text()
    frozen.path.write_text(text.replace('"train_iters": 10', '"train_iters": 99'))
    assert text != frozen.path.read_text()
    with pytest.raises(UserError, match="its sha256 is .*the launcher says .*start the run again"):
        read_frozen(frozen.path, {HASH_VARIABLE: frozen.sha256})
    with pytest.raises(UserError, match=f"and its name says {frozen.path.stem}: it was changed"):
        read_frozen(frozen.path, {})
    renamed = frozen.path.rename(frozen.path.with_name("mine.json"))
    assert read_frozen(renamed, {}).schedule.train_iters == 99, "a copy under another name is the user's own"
    frozen.path.with_suffix(".sha256").rename(renamed.with_suffix(".sha256"))
    with pytest.raises(UserError, match=f"mine.sha256 says {frozen.sha256}"):
        read_frozen(renamed, {})
    renamed.with_suffix(".sha256").write_text("")
    with pytest.raises(UserError, match="mine.sha256 says nothing"):
        read_frozen(renamed, {})


def test_a_missing_file_and_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a disk that all machines share"):
        read_frozen(tmp_path / "none.json", {HASH_VARIABLE: "0" * 64})
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=os.path.join(str(tmp_path), "file")):
        freeze(small_run(tmp_path, save=str(tmp_path / "file")))
