# SPDX-License-Identifier: Apache-2.0
"""Runs that hang end by themselves and say why: a rank that does not come, and one that is stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from megatron.launcher.frozen import freeze
from megatron.launcher.ports import free_port
from megatron.neox_arguments.loader import load_config
from megatron.trainer.collectives import Position, Waiting, position_of, waited_for
from megatron.trainer.watchdog import EXIT_STATUS, conclude
from tests.ranks import rank_environment
from tests.runs import Done, Place, finish, has_done, history_of, latest, make_place, start, wait_until


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


def begin(
    place: Place, name: str, *faults: tuple[Any, ...], **changes: Any
) -> tuple[Path, list[subprocess.Popen[str]]]:
    """Starts two ranks without a launcher; returns the save folder and the processes."""
    folder = place.folder / name
    changes = {"save": str(folder / "save"), "eval_interval": 100, "train_iters": 40, **changes}
    config = place.write(folder / "run.yml", **changes)
    cfg, _ = load_config([place.model_yaml, config], overrides=["cpu_ranks=2"])
    call = f"trained({str(freeze(cfg).path)!r}, {faults!r})"
    program = f"from tests.trainer.injected import trained\nraise SystemExit({call})\n"
    (folder / "program.py").write_text(program)
    port = free_port()
    ranks = [
        start(folder / f"rank{rank}", folder / "program.py", environment=rank_environment(rank, 2, port))
        for rank in range(2)
    ]
    return folder / "save", ranks


def end(place: Place, name: str, ranks: list[subprocess.Popen[str]]) -> list[Done]:
    try:
        return [finish(rank, place.folder / name / f"rank{number}", 60) for number, rank in enumerate(ranks)]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def test_a_rank_that_does_not_come_is_named_with_its_collective(place: Place) -> None:
    """Rank 1 sleeps before step 6, while the checkpoint of step 4 is still being written."""
    changes = {"hang_timeout_seconds": 3.0, "async_save": True}
    save, ranks = begin(place, "stuck", ("slow_write", 5.0), ("stuck", 6, 1, 100.0), **changes)
    done = end(place, "stuck", ranks)
    assert [rank.status for rank in done] == [EXIT_STATUS] * 2, done[0].err
    assert re.search(r"watchdog: nothing has moved for [34] s in step 6", done[0].err)
    named = r"watchdog: rank 1 did not come to .*start_grad_sync.*, where rank 0 waited for it; it is in "
    assert re.search(named + r"\S+ \(injected.py:\d+\) on \S+", done[0].err), done[0].err
    stacks = (save / "logs" / "hangs" / "rank1.txt").read_text()
    assert "injected.py" in stacks
    assert "start_grad_sync" in (save / "logs" / "hangs" / "rank0.txt").read_text()
    assert f"checkpoint {save}/global_step4, which was being written, is complete" in done[0].err
    assert latest(save) == "global_step4"


@pytest.mark.parametrize(("fault", "gone"), [(("killed_in_a_save", 0), 0), (("killed_at", 3, 1), 1)])
def test_a_rank_whose_neighbour_is_killed_says_so_in_a_line(
    place: Place, fault: tuple[Any, ...], gone: int
) -> None:
    _, ranks = begin(place, fault[0], fault)
    done = end(place, fault[0], ranks)
    assert done[gone].status == -signal.SIGKILL
    left = done[1 - gone]
    assert left.status == 1, left.err
    assert "Traceback" not in left.err
    last = left.err.splitlines()[-1]
    assert re.fullmatch(rf"rank {1 - gone}: another rank is gone \(.+\), so this one ends too", last)


def test_a_stopped_process_is_noticed(place: Place) -> None:
    save, ranks = begin(place, "stopped", dead_rank_timeout_seconds=2.0, train_iters=4000)
    try:
        wait_until(has_done(save, 3), ranks[0])
        os.kill(_worker(ranks[1]), signal.SIGSTOP)
        before = time.monotonic()
        done = finish(ranks[0], place.folder / "stopped" / "rank0", 60)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert done.status == EXIT_STATUS, done.err
    assert "watchdog: rank 1: no sign of life for 2 s: stopped, or its machine is gone" in done.err
    assert time.monotonic() - before < 15
    assert history_of(save).steps


def _worker(client: subprocess.Popen[str]) -> int:
    """The process that runs the program: the client of tests/warm.py only passes signals on."""
    import psutil

    folder = psutil.Process(client.pid).cwd()
    for process in psutil.process_iter(["pid", "cwd"]):
        if process.info["cwd"] == folder and process.pid != client.pid:
            return int(process.pid)
    raise AssertionError(f"no process in {folder}")


def test_the_position_is_the_last_collective_or_the_first_that_does_not_end() -> None:
    def entry(number: int, state: str, group: str = "0", name: str = "nccl:all_reduce") -> dict[str, Any]:
        return {
            "process_group": [group, "default_pg"], "collective_seq_id": number, "state": state,
            "profiling_name": name, "time_created_ns": number, "is_p2p": False,
        }  # fmt: skip

    trace = {
        "pg_config": {"0": {"ranks": "[0, 1]"}},
        "entries": [entry(1, "completed"), entry(2, "started"), entry(3, "scheduled")],
    }
    assert position_of(trace) == Position(Waiting("0", 2, "nccl:all_reduce", (0, 1)), {"0": 2})
    gloo = [{**entry(n, "scheduled"), "profiling_name": "gloo:barrier"} for n in (1, 2, 3)]
    assert position_of({**trace, "entries": gloo}).numbers == {"0": 3}
    assert position_of({"entries": []}) == Position(None, {})


def test_the_rank_at_the_end_of_a_chain_of_waiting_ranks_is_to_blame() -> None:
    """0 waits for 1 in their tensor parallel group, 1 for 3 in their data parallel group, 3 for nobody."""
    positions = {
        0: Position(Waiting("tp", 5, "all_reduce", (0, 1)), {"tp": 5, "dp0": 1}),
        1: Position(Waiting("dp1", 2, "all_reduce", (1, 3)), {"tp": 4, "dp1": 2}),
        2: Position(Waiting("tp", 5, "all_reduce", (2, 3)), {"tp": 5, "dp0": 1}),
        3: Position(Waiting("tp", 4, "all_reduce", (2, 3)), {"tp": 4, "dp1": 1}),
    }
    assert waited_for(positions) == {3: [1, 2]}
    assert waited_for({**positions, 3: None}) == {3: [1, 2]}


def test_a_hang_in_which_nobody_is_behind_tells_where_all_are() -> None:
    same = Position(Waiting("0", 7, "all_reduce", (0, 1)), {"0": 7}).to_json()
    answers = {
        rank: {
            "seconds": 9.0, "doing": "step 3", "host": "n0", "at": f"wait (a.py:{rank})", "position": same,
            "is_in_collective": False,
        }
        for rank in range(2)
    }  # fmt: skip
    assert conclude(answers, 2) == [
        "nothing has moved for 9 s in step 3", "rank 0 is in wait (a.py:0)", "rank 1 is in wait (a.py:1)",
    ]  # fmt: skip
    answers[0]["is_in_collective"] = True
    assert conclude(answers, 3)[1:] == [
        "rank 1 did not come to wait (a.py:0), where rank 0 waited for it; it is in wait (a.py:1) on n0",
        "rank 2 did not come to wait (a.py:0), where rank 0 waited for it; it does not answer",
    ]
