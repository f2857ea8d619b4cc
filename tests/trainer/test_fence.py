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
    lines = (folder / "save" / "logs" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    [_, begun] = [number for number, record in enumerate(records) if record["kind"] == "start"]
    first_step = records[begun]["iteration"] + 1
    steps = [record["iteration"] for record in records[begun:] if record["kind"] == "step"]
    assert first_step > 20
    assert steps == list(range(first_step, first_step + len(steps))), "the first wrote in between"
    assert int(latest(folder / "save").removeprefix("global_step")) >= first_step - 1
