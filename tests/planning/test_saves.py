# SPDX-License-Identifier: Apache-2.0
"""How many checkpoints a plan says are written and kept: beside the rules of a run, step by step."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.checkpointing import folders
from megatron.planning.length import length_of
from megatron.planning.plan import make_plan
from megatron.planning.report import as_data, in_words
from megatron.planning.saves import Saves, saved_iterations, saves_of
from tests.planning.test_length import run_of
from tests.planning.test_plan import cluster, llemma

factors = st.none() | st.integers(1, 60)


@given(
    steps=st.integers(1, 50),
    every=factors,
    milestone=factors,
    extra=st.lists(st.integers(1, 60), max_size=4),
    newest=st.none() | st.integers(1, 5),
)
def test_checkpoints_are_those_of_a_run(
    steps: int, every: int | None, milestone: int | None, extra: list[int], newest: int | None
) -> None:
    keys = {
        "checkpoint_factor": every,
        "checkpoint_milestone_factor": milestone,
        "extra_save_iters": tuple(extra),
        "keep_last_n_checkpoints": newest,
    }
    cfg = run_of(steps, checkpoint=keys)
    is_milestone = cfg.checkpoint.is_milestone
    due = [
        step
        for step in range(1, steps + 1)
        if step == steps or (every and step % every == 0) or is_milestone(step)
    ]
    assert list(saved_iterations(cfg)) == due
    found = saves_of(cfg)
    assert (found.written, found.milestones) == (len(due), sum(map(is_milestone, due)))
    with tempfile.TemporaryDirectory() as folder:
        save = Path(folder)
        for step in due:
            (save / folders.step_name(step)).mkdir()
            (save / folders.step_name(step) / "checkpoint.json").touch()
            (save / folders.LATEST).write_text(folders.step_name(step))
            if newest is not None:
                folders.keep_newest(save, newest, is_milestone)
        assert found.kept == len(folders.iterations_in(save))


def test_a_run_that_saves_nothing() -> None:
    cfg = run_of(1000, checkpoint={"save": None})
    assert saves_of(cfg) == Saves(0, 0, 0)
    assert list(saved_iterations(cfg)) == []


def test_a_plan_of_very_many_steps_goes_through_few() -> None:
    keys = {"checkpoint_factor": 1, "checkpoint_milestone_factor": 7, "keep_last_n_checkpoints": 3}
    cfg = run_of(10**15, checkpoint=keys)
    assert saves_of(cfg) == Saves(10**15, 10**15 // 7 + 3, 10**15 // 7)
    length = length_of(cfg, cluster(), step_seconds=10.0, forward_seconds=3.0, checkpoint_bytes=10**11)
    assert length.saving_seconds == pytest.approx(10**15 * length.lost_each_seconds)


def test_a_milestone_soon_after_a_checkpoint_waits_for_it() -> None:
    """100 GB take 50 s to write; 5 steps of 2 s after every other save the next one waits for 40 of these."""
    sizes: dict[str, Any] = {"step_seconds": 2.0, "forward_seconds": 1.0, "checkpoint_bytes": 10**11}
    keys = {"checkpoint_factor": 100, "async_save": True}
    apart, near = (
        length_of(run_of(1000, checkpoint={**keys, "extra_save_iters": extra}), cluster(), **sizes)
        for extra in ((), tuple(range(105, 1000, 100)))
    )
    assert near.lost_each_seconds == pytest.approx(apart.lost_each_seconds + 40 * 9 / 18)
    assert near.lost_last_seconds == apart.lost_last_seconds == pytest.approx(50, rel=0.1)


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize(("settings", "words"), [
    (["checkpoint_milestone_factor=100", "checkpoint_factor=null"],
     "480 written, 480 kept (480 milestones among them): 45."),
    (["checkpoint_milestone_factor=1300", "keep_last_n_checkpoints=2"],
     "125 written, 38 kept (36 milestones among them): 3.58 TB"),
    (["checkpoint_factor=null"], "1 written, 1 kept: 0.09 TB"),
])  # fmt: skip
def test_a_plan_says_what_stays_on_the_disk(settings: list[str], words: str) -> None:
    plan = make_plan(llemma("7b", *settings), cluster())
    assert words in in_words(plan)
    assert as_data(plan)["checkpoint"]["written"] == int(words.split()[0])
