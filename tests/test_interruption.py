# SPDX-License-Identifier: Apache-2.0
"""Stopped in the middle, by whatever: the same command goes on, and ends where an uninterrupted run ends.

Where it ends is compared bit by bit: the loss, learning rate and gradient norm of every step, every
evaluation, and the exported weights. A wrong order of the data would show in the losses.
"""

from __future__ import annotations

import functools
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from megatron.monitoring.jsonl import RunHistory
from tests.runs import Done, Place, finish, has_done, history_of, latest, make_place, run, start, wait_until

pytestmark = pytest.mark.slow

STEPS, EVERY = 48, 4
CHANGES: dict[str, Any] = {"train_iters": STEPS, "checkpoint_factor": EVERY, "eval_interval": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def whole(place: Place) -> Path:
    """The save folder of an uninterrupted run on DP 2."""
    return uninterrupted(place, "whole")


def uninterrupted(place: Place, name: str, **changes: Any) -> Path:
    done = place.train(place.folder / name, **{**CHANGES, **changes})
    assert done.status == 0, done.err
    return place.folder / name / "save"


def interrupt(folder: Path, arguments: list[object], number: int, *, is_cold: bool = False) -> Done:
    """Starts a run and sends it a signal once its sixth step is recorded."""
    process = start(folder, *arguments, is_cold=is_cold)
    wait_until(has_done(folder / "save", 6), process)
    process.send_signal(number)
    return finish(process, folder)


def numbers(history: RunHistory) -> dict[Any, Any]:
    """All that an interruption must not change; speeds and memory may."""
    kept = ("loss", "lr", "grad_norm", "tokens_seen")
    steps: dict[Any, Any] = {
        iteration: [step[name] for name in kept] for iteration, step in history.steps.items()
    }
    return steps | history.evaluations


@functools.cache
def weights(save: Path) -> str:
    """A digest of the exported weights of the newest checkpoint."""
    from megatron.checkpointing.convert import digest_of

    exported = save.parent / "hf"
    done = run(
        save.parent / "export",
        "tools/convert_checkpoint.py",
        "neox-to-hf",
        "--input",
        save,
        "--output",
        exported,
    )
    assert done.status == 0, done.err
    return digest_of(exported)


def assert_equal(save: Path, whole: Path) -> None:
    ours, theirs = numbers(history_of(save)), numbers(history_of(whole))
    assert set(theirs) >= {1, STEPS, ("valid", 0), ("valid", STEPS), ("test", STEPS)}
    assert ours == theirs
    assert latest(save) == latest(whole) == f"global_step{STEPS}"
    assert weights(save) == weights(whole)


def leftovers(save: Path) -> list[str]:
    return [entry.name for entry in save.iterdir() if entry.name.startswith(".")]


def test_ctrl_c_saves_stops_and_the_same_command_goes_on(place: Place, whole: Path) -> None:
    folder = place.folder / "ctrl_c"
    arguments = place.arguments(folder, **CHANGES)
    stopped = interrupt(folder, arguments, signal.SIGINT, is_cold=True)
    assert stopped.status == 128 + signal.SIGINT, stopped.err
    last = max(history_of(folder / "save").steps)
    assert 6 <= last < STEPS, "the run was over before it could be stopped"
    assert latest(folder / "save") == f"global_step{last}"
    assert f"stopped by SIGINT after iteration {last}; the same command goes on from here" in stopped.err
    assert "SIGINT: the ranks finish their step, save and stop" in stopped.err
    assert "Traceback" not in stopped.err
    assert "error" not in stopped.err
    assert not (folder / "save" / "requeue").exists(), "nobody starts it again who pressed Ctrl-C"
    assert leftovers(folder / "save") == []
    again = run(folder, *arguments)
    assert again.status == 0, again.err
    assert f"loaded weights and optimizer of {folder / 'save' / f'global_step{last}'}" in again.err
    assert_equal(folder / "save", whole)


def test_a_request_of_the_scheduler_in_another_layout(place: Place) -> None:
    """SIGTERM on PP 2, which keeps one checkpoint: what travels with the first must not be lost.

    A scheduler is to start the run again, and finds a file that says so.
    """
    changes = {"pipe_parallel_size": 2, "keep_last_n_checkpoints": 1}
    whole = uninterrupted(place, "whole_pp", **changes)
    folder = place.folder / "sigterm"
    arguments = place.arguments(folder, **{**CHANGES, **changes})
    stopped = interrupt(folder, arguments, signal.SIGTERM)
    assert stopped.status == 0, stopped.err
    assert latest(folder / "save") != f"global_step{STEPS}"
    done = latest(folder / "save").removeprefix("global_step")
    requeue = folder / "save" / "requeue"
    assert requeue.read_text() == f"stopped by SIGTERM after iteration {done}\n"
    assert run(folder, *arguments).status == 0
    assert_equal(folder / "save", whole)
    assert not requeue.exists(), "a run that is done is not to be started again"
    checkpoints = [entry.name for entry in (folder / "save").glob("global_step*")]
    assert checkpoints == [f"global_step{STEPS}"]
    base = folder / "save" / f"global_step{STEPS}" / "base"
    assert {file.name for file in base.iterdir()} == {
        file.name for file in (place.folder / "base" / "global_step0" / "base").iterdir()
    }


def test_a_run_killed_with_all_its_ranks_goes_on_from_its_last_checkpoint(place: Place, whole: Path) -> None:
    folder = place.folder / "killed"
    arguments = place.arguments(folder, **CHANGES)
    killed = interrupt(folder, arguments, signal.SIGKILL)
    assert killed.status == -signal.SIGKILL
    record = folder / "save" / "logs" / "metrics.jsonl"
    wait_until_still(record)
    last = max(history_of(folder / "save").steps)
    assert last < STEPS
    saved = {last // EVERY * EVERY}
    if last in saved:  # it may have been killed while it saved that one
        saved.add(last - EVERY)
    assert int(latest(folder / "save").removeprefix("global_step")) in saved
    # As if it had been killed in the middle of a save, too.
    half_written = folder / "save" / ".global_step999.unfinished"
    shutil.copytree(folder / "save" / latest(folder / "save"), half_written)
    with open(record, "a") as file:
        file.write('{"kind": "step", "iterat')
    again = run(folder, *arguments)
    assert again.status == 0, again.err
    assert_equal(folder / "save", whole)
    assert leftovers(folder / "save") == []


def wait_until_still(path: Path) -> None:
    """Waits until nobody writes to a file any more: the ranks of a dead launcher die within moments."""
    deadline = time.monotonic() + 10
    before = -1
    while before != (before := path.stat().st_size):
        assert time.monotonic() < deadline, "a rank outlives its launcher"
        time.sleep(0.5)


def test_a_run_goes_back_to_an_older_checkpoint(place: Place, whole: Path) -> None:
    folder = place.folder / "back"
    shutil.copytree(whole, folder / "save")
    arguments = place.arguments(folder, **CHANGES)
    done = run(folder, *arguments, "--set", f"load={folder / 'save'}", "--set", "iteration=16")
    assert done.status == 0, done.err
    assert f"going back to {folder / 'save' / 'global_step16'}" in done.err
    assert f"iteration 17/{STEPS}" in done.out
    assert f"iteration 16/{STEPS}" not in done.out
    assert_equal(folder / "save", whole)


def test_a_finished_run_is_left_as_it_is(place: Place, whole: Path) -> None:
    folder = place.folder / "finished"
    shutil.copytree(whole, folder / "save")
    before = numbers(history_of(folder / "save"))
    written = {path: path.stat().st_mtime_ns for path in (folder / "save").glob("global_step*/*")}
    done = place.train(folder, **CHANGES)
    assert done.status == 0, done.err
    assert f"nothing to do: iteration {STEPS} of train_iters={STEPS} is done" in done.err
    assert numbers(history_of(folder / "save")) == before
    assert written == {path: path.stat().st_mtime_ns for path in (folder / "save").glob("global_step*/*")}
