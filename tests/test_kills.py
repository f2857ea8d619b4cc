# SPDX-License-Identifier: Apache-2.0
"""Killed at random moments, again and again: a run always goes on from its last whole checkpoint.

Every attempt is killed with SIGKILL, launcher and ranks, at a random moment after its first new step: with a
checkpoint for every other step, and saving as slow as training, about half of the kills hit a save. What an
attempt takes up is checked against what the one before had left, and at the end every number is compared
with the uninterrupted run's. KILLS=100 in the environment asks for that many; the seed is fixed.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.runs import Place, finish, history_of, latest, make_place, run, start, wait_until
from tests.test_interruption import leftovers, numbers, wait_until_still

KILLS = int(os.environ.get("KILLS", "8"))
SEED = 20260
# Steps enough that the run outlives its kills: an attempt that is killed has taken few steps.
STEPS = 30 + 8 * KILLS // 2
LONGEST_WAIT_SECONDS = 0.4
CHANGES: dict[str, Any] = {
    "train_iters": STEPS,
    "checkpoint_factor": 2,
    "keep_last_n_checkpoints": 3,
    "eval_interval": 10_000,
    "eval_at_start": False,
    "train_batch_size": 4,
    "train_micro_batch_size_per_gpu": 2,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def whole(place: Place) -> dict[Any, Any]:
    """The numbers of the uninterrupted run."""
    done = place.train(place.folder / "whole", **{**CHANGES, "checkpoint_factor": STEPS})
    assert done.status == 0, done.err
    return numbers(history_of(place.folder / "whole" / "save"))


def has_grown(path: Path, size_before: int) -> bool:
    """Whether a record of steps has the line of a new step."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        file.seek(size_before)
        return b'"kind": "step"' in file.read()


@pytest.mark.slow
@pytest.mark.parametrize("in_background", [False, True])
def test_it_goes_on_from_the_last_whole_checkpoint_with_the_same_losses(
    place: Place, whole: dict[Any, Any], in_background: bool
) -> None:
    folder = place.folder / f"killed_{in_background}"
    save, generator = folder / "save", random.Random(SEED + in_background)
    record = save / "logs" / "metrics.jsonl"
    arguments = place.arguments(folder, **CHANGES, async_save=in_background)
    expected: str | None = None
    kills, amid_saves, resumed = 0, 0, []
    while kills < KILLS // 2:
        size_before = record.stat().st_size if record.is_file() else 0
        process = start(folder, *arguments)
        wait_until(lambda size=size_before: has_grown(record, size), process)  # type: ignore[misc]
        time.sleep(generator.uniform(0, LONGEST_WAIT_SECONDS))
        assert process.poll() is None, "it was done before it could be killed; raise STEPS"
        process.send_signal(signal.SIGKILL)
        finish(process, folder)
        wait_until_still(record)
        kills += 1
        amid_saves += bool(leftovers(save))
        check_resumed((folder / "err.txt").read_text(), save, expected)
        expected = latest(save) if (save / "latest").is_file() else None
        resumed.append(expected)
    done = run(folder, *arguments, "--set", f"checkpoint_factor={STEPS}")
    assert done.status == 0, done.err
    check_resumed(done.err, save, expected)
    assert numbers(history_of(save)) == whole
    assert latest(save) == f"global_step{STEPS}"
    assert leftovers(save) == []
    print(f"{kills} kills, {amid_saves} amid a save; resumed from {resumed}")
    assert amid_saves > 0, "no save was hit: the kills prove too little"


def check_resumed(said: str, save: Path, expected: str | None) -> None:
    """An attempt takes up what `latest` named when it began, and nothing of it is damaged."""
    found = re.findall(rf"loaded weights and optimizer of {re.escape(str(save))}/(\S+) ", said)
    assert found == ([] if expected is None else [expected])
    assert "is damaged" not in said
