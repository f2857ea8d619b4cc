# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint is found, and what is said when none is."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.checkpointing import folders
from megatron.neox_arguments.errors import UserError


def make(save: Path, *iterations: int) -> None:
    for iteration in iterations:
        (save / folders.step_name(iteration)).mkdir(parents=True)
        (save / folders.step_name(iteration) / "checkpoint.json").write_text("{}")


def test_latest_names_the_one_that_is_found(tmp_path: Path) -> None:
    make(tmp_path, 5, 100, 20)
    folders.mark_latest(tmp_path, 20)
    assert folders.find(tmp_path) == tmp_path / "global_step20"
    assert folders.find(tmp_path, 100) == tmp_path / "global_step100"
    assert folders.find(tmp_path / "global_step5") == tmp_path / "global_step5"
    assert folders.iterations_in(tmp_path) == [5, 20, 100]


def test_an_empty_or_missing_folder_has_none(tmp_path: Path) -> None:
    assert folders.find(tmp_path) is None
    assert folders.find(tmp_path / "nowhere") is None


def test_unfinished_folders_are_not_checkpoints(tmp_path: Path) -> None:
    make(tmp_path, 5)
    (tmp_path / folders.unfinished_name(10)).mkdir()
    assert folders.iterations_in(tmp_path) == [5]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    make(tmp_path, 1, 2, 3, 4)
    folders.mark_latest(tmp_path, 4)
    assert folders.keep_newest(tmp_path, 2) == [tmp_path / "global_step1", tmp_path / "global_step2"]
    assert folders.iterations_in(tmp_path) == [3, 4]
    assert sorted(entry.name for entry in tmp_path.iterdir())[0] == "global_step3", "nothing half removed"


def test_those_after_latest_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    make(tmp_path, 1, 2, 3, 4)
    folders.mark_latest(tmp_path, 2)  # somebody went back
    assert folders.keep_newest(tmp_path, 1) == [tmp_path / "global_step1"]
    assert folders.iterations_in(tmp_path) == [2, 3, 4]


def test_milestones_stay_and_are_not_counted(tmp_path: Path) -> None:
    make(tmp_path, 1, 2, 3, 4, 5, 6)
    folders.mark_latest(tmp_path, 6)
    folders.keep_newest(tmp_path, 2, lambda iteration: iteration % 2 == 0)
    assert folders.iterations_in(tmp_path) == [2, 3, 4, 5, 6]


def test_a_replacement_that_was_cut_short_is_undone(tmp_path: Path) -> None:
    """Killed between the two renames: the old one is out of its place, the new one not in it."""
    make(tmp_path, 4, 8)
    folders.mark_latest(tmp_path, 8)
    assert folders.undo_half_replaced(tmp_path) is None, "nothing to undo"
    step = tmp_path / "global_step8"
    step.rename(folders.removed_path(step))
    (tmp_path / folders.unfinished_name(8)).mkdir()
    assert folders.undo_half_replaced(tmp_path) == step
    assert folders.find(tmp_path) == step
    old = folders.removed_path(tmp_path / "global_step4")
    old.mkdir()  # half removed: `latest` does not name it
    assert folders.undo_half_replaced(tmp_path) is None
    assert old.is_dir()


def test_a_whole_checkpoint_takes_its_place_and_latest_moves(tmp_path: Path) -> None:
    make(tmp_path, 5, 10)
    folders.mark_latest(tmp_path, 10)
    unfinished = tmp_path / folders.unfinished_name(5)
    unfinished.mkdir()
    (unfinished / "new").touch()
    folders.put_in_place(unfinished, tmp_path / "global_step5")
    assert folders.find(tmp_path) == tmp_path / "global_step5"
    assert [file.name for file in (tmp_path / "global_step5").iterdir()] == ["new"], "replaced, not merged"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["global_step10", "global_step5", "latest"]


def test_where_latest_cannot_be_written_everything_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, 5)
    folders.mark_latest(tmp_path, 5)
    for iteration in (5, 10):
        unfinished = tmp_path / folders.unfinished_name(iteration)
        unfinished.mkdir()

        def fail(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="No space"):
            folders.put_in_place(unfinished, tmp_path / folders.step_name(iteration))
        unfinished.rmdir()
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["global_step5", "latest"]
        assert (tmp_path / "global_step5" / "checkpoint.json").is_file()
        assert folders.find(tmp_path) == tmp_path / "global_step5"


def kill_while_it_writes(path: Path) -> None:
    """Has a process killed between the draft of a file and its name."""
    program = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from megatron.neox_arguments.whole_files import drafted\n"
        "with drafted(Path(sys.argv[1])) as draft:\n"
        "    draft.touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    before = set(path.parent.iterdir())
    done = subprocess.run([sys.executable, "-c", program, str(path)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert len(set(path.parent.iterdir()) - before) == 1


def test_only_remnants_are_removed(tmp_path: Path) -> None:
    make(tmp_path, 5)
    kept = [".global_step5.unfinished.mine", "global_step7.unfinished", "logs", "global_step5"]
    gone = (folders.unfinished_name(9), folders.unfinished_name(9, attempt=2), ".global_step3.removed")
    for name in (*kept[:3], *gone):
        (tmp_path / name).mkdir()
    (tmp_path / folders.download_name(11)).mkdir()
    (tmp_path / "latest").write_text("global_step5\n")
    kill_while_it_writes(tmp_path / "latest")
    (tmp_path / ".latest.mine").touch()
    kept += [".latest.mine", "latest"]
    folders.remove_unfinished(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize(
    ("latest", "iteration", "message"),
    [
        ("global_step7", None, "`latest` names 'global_step7', which is not there; choose one of 5"),
        ("rubbish", None, "'rubbish'"),
        (None, None, "the file `latest` is missing beside global_step5"),
        ("global_step5", 6, "iteration=6"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, latest: str | None, iteration: int | None, message: str
) -> None:
    make(tmp_path, 5)
    if latest is not None:
        (tmp_path / folders.LATEST).write_text(latest)
    with pytest.raises(UserError, match=message):
        folders.find(tmp_path, iteration)


@given(st.binary(max_size=40))
def test_any_content_of_latest_is_a_folder_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    save = tmp_path_factory.mktemp("save")
    make(save, 5)
    (save / folders.LATEST).write_bytes(content)
    try:
        found = folders.find(save)
    except UserError:
        return
    assert found == save / "global_step5"
