# SPDX-License-Identifier: Apache-2.0
"""Two attempts at one run: the later one writes, the earlier one stops and has written nothing since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron.monitoring import Monitor, Sink
from megatron.trainer import fence
from megatron.trainer.fence import Fence, Superseded
from tests.runs import Place, finish, has_done, history_of, latest, make_place, start, wait_until


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


def attempt(save: Path) -> Fence:
    return Fence(save, *fence._claim(save), True)


def test_the_newest_attempt_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, "_LOOK_SECONDS", 0.0)
    old = attempt(tmp_path)
    old.check()
    assert (old.number, old.is_passed()) == (1, False)
    new = attempt(tmp_path)
    new.check()
    assert (new.number, old.is_passed(), new.is_passed()) == (2, True, False)
    with pytest.raises(Superseded, match=f"save={tmp_path}: attempt 2 at this run has begun"):
        old.check()
    Fence(tmp_path, 1, "", False).check()  # a rank other than 0 has nothing to compare
    (tmp_path / "attempt").write_text("no JSON")
    old.check()
    assert attempt(tmp_path).number == 1
    Fence(None, 0, "", True).check()


def test_no_line_is_written_after_the_fence(tmp_path: Path) -> None:
    class Kept(Sink):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def event(self, kind: str, fields: object) -> None:
            self.lines.append(kind)

    sink, old = Kept(), attempt(tmp_path)
    monitor = Monitor([sink])
    monitor.may_write = old.may_write
    monitor.event("before")
    attempt(tmp_path)
    monitor.event("after")
    monitor.close()
    assert sink.lines == ["before"]


def test_a_run_that_is_started_twice_is_finished_by_the_second(place: Place) -> None:
    """The first is in the middle of a save in the background when the second begins."""
    folder = place.folder / "twice"
    changes = {"train_iters": 4000, "eval_interval": 10_000, "checkpoint_factor": 20}
    first = start(folder, *place.arguments(folder, **changes))
    wait_until(has_done(folder / "save", 22), first)
    second = start(folder / "again", *place.arguments(folder, **changes), "--set", "lr=2e-3")
    stopped = finish(first, folder)
    assert stopped.status == 2, stopped.err
    assert "attempt 2 at this run has begun" in stopped.err
    assert len(stopped.errors) == 1, stopped.err
    assert "Traceback" not in stopped.err
    since = json.loads((folder / "save" / "attempt").read_text())
    wait_until(lambda: len(history_of(folder / "save").steps) > 60, second)
    second.kill()
    finish(second, folder / "again")
    assert since["attempt"] == 2
    events = [event for event in history_of(folder / "save").events if event["kind"] == "start"]
    assert len(events) == 2
    begun = events[1]["iteration"]
    assert begun > 0
    lines = (folder / "save" / "logs" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["iteration"] for line in lines if '"kind": "step"' in line]
    later = steps[steps.index(begun + 1, begun) :] if begun + 1 in steps[begun:] else steps
    assert later == sorted(later), "the first attempt wrote among the lines of the second"
    assert int(latest(folder / "save").removeprefix("global_step")) >= begun
