# SPDX-License-Identifier: Apache-2.0
"""The SLURM launcher on a real SLURM of many nodes on this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import mini_slurm
from tests.cluster.mini_slurm import Cluster
from tests.cluster.runs import assert_no_process_mentions, data_files, kill_rank, last_iteration, processes
from tests.launcher.runs import write_run
from tests.runs import ROOT, Place, history_of, latest, make_place
from tests.test_interruption import numbers

REASON = mini_slurm.missing()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(REASON is not None, reason=f"no SLURM: {REASON}"),
]

NODES, PER_NODE = 32, 8
ALLOCATE = ("salloc", "-N2", "--ntasks-per-node=2")
RANK_PROGRAM = """
import hashlib, json, os, sys
path = sys.argv[sys.argv.index("--config") + 1]
same = hashlib.sha256(open(path, "rb").read()).hexdigest() == os.environ["DEEPY_CONFIG_SHA256"]
names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID",
         "SLURM_LOCALID", "SLURM_NODEID", "CUDA_VISIBLE_DEVICES", "FROM_PROLOGUE", "FROM_CONFIG"]
found = {name: os.environ.get(name) for name in names} | {"host": os.uname().nodename, "same": same}
open(f"rank{os.environ['RANK']}.json", "w").write(json.dumps(found))
"""


def submit(cluster: Cluster, folder: Path, *arguments: object) -> tuple[str, str]:
    """deepy.py --submit; returns the job's number and the script that was shown."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "deepy.py"), *map(str, arguments), "--submit"],
        cwd=folder, env={**cluster.environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = re.search(r"Submitted batch job (\d+)", done.stderr)
    assert found, done.stderr
    return found[1], done.stdout


def log_of(save: Path, job: str) -> str:
    path = save / "logs" / f"slurm-{job}.out"
    return path.read_text() if path.is_file() else ""


@pytest.fixture(scope="module")
def small() -> Iterator[Cluster]:
    with mini_slurm.running(4) as cluster:
        yield cluster


def test_256_ranks_on_32_nodes_are_where_they_were_planned(tmp_path: Path) -> None:
    program = tmp_path / "rank.py"
    program.write_text(RANK_PROGRAM)
    save = tmp_path / "save"
    config = write_run(
        tmp_path / "run.yml", **data_files(tmp_path), save=str(save), launcher="slurm", num_nodes=NODES,
        num_gpus=PER_NODE, model_parallel_size=4, slurm_prologue=["export FROM_PROLOGUE='a b'"],
        environment={"FROM_CONFIG": "c d"},
    )  # fmt: skip
    with mini_slurm.running(NODES) as cluster:
        before = time.monotonic()
        job, _ = submit(cluster, tmp_path, program, config)
        cluster.wait(job, "COMPLETED", limit_seconds=60)
        seconds = time.monotonic() - before
    print(f"256 ranks in {seconds:.1f} s")
    assert seconds < 60
    places = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(NODES * PER_NODE)]
    for rank, place in enumerate(places):
        node, local = divmod(rank, PER_NODE)
        expected = {
            "RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": 256, "LOCAL_WORLD_SIZE": 8, "SLURM_PROCID": rank,
            "SLURM_LOCALID": local, "SLURM_NODEID": node,
        }  # fmt: skip
        assert {name: int(place[name]) for name in expected} == expected
        assert place["host"] == f"n{node}"
        assert place["MASTER_ADDR"] == "n0"
        assert place["CUDA_VISIBLE_DEVICES"] == "0,1,2,3,4,5,6,7"
        assert (place["FROM_PROLOGUE"], place["FROM_CONFIG"]) == ("a b", "c d")
        assert place["same"]
    assert len({place["MASTER_PORT"] for place in places}) == 1
    groups = [{place["host"] for place in places[first : first + 4]} for first in range(0, 256, 4)]
    assert all(len(hosts) == 1 for hosts in groups), "a tensor parallel group crosses nodes"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


def test_killed_signalled_and_preempted_it_ends_as_if_never_interrupted(small: Cluster, place: Place) -> None:
    """4 nodes x 2 ranks: a killed rank, the time limit's signal, a preemption, and all numbers are equal."""
    steps = 160
    changes: dict[str, Any] = {
        "train_iters": steps, "checkpoint_factor": 10, "eval_interval": 80, "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2, "model_parallel_size": 2,
    }  # fmt: skip
    whole = place.train(place.folder / "whole", ranks=8, **changes)
    assert whole.status == 0, whole.err

    folder = place.folder / "slurm"
    save = folder / "save"
    _, program, *rest = place.arguments(
        folder, ranks=8, **changes, launcher="slurm", num_nodes=4, max_restarts=1, restart_seconds=1,
        slurm_partition="main", slurm_job_name="interrupted",
    )  # fmt: skip
    job, _ = submit(small, folder, program, *rest)

    def wait_for(iteration: int, attempt: int) -> None:
        deadline = time.monotonic() + 150
        while last_iteration(save) < iteration or log_of(save, job).count("verified ") < attempt:
            state = small.job(job)["JobState"]
            assert state in ("PENDING", "RUNNING", "COMPLETING"), f"{state}\n{log_of(save, job)[-3000:]}"
            assert time.monotonic() < deadline, log_of(save, job)[-3000:]
            time.sleep(0.1)

    wait_for(12, 1)
    kill_rank(3, SLURM_JOB_ID=job)
    wait_for(30, 2)
    assert "restart 1 of 1 in 1 s, from the last checkpoint" in log_of(save, job)
    assert small.job(job)["Restarts"] == "0"

    small.run("scancel", "--signal=USR1", job)  # what --signal=USR1@300 sends ahead of the time limit
    wait_for(50, 3)
    assert f"job {job} goes back into the queue" in log_of(save, job)
    assert small.job(job)["Restarts"] == "1"

    urgent = small.run(
        "sbatch", "--parsable", "-p", "high", "-N4", "--exclusive", "--wrap", "sleep 1"
    ).strip()
    small.wait(urgent, "COMPLETED", limit_seconds=60)
    small.wait(job, "COMPLETED", limit_seconds=150)
    assert small.job(job)["Restarts"] == "2"
    log = log_of(save, job)
    assert "stopped by SIGTERM after iteration" in log
    assert log.count("stopped by SIG") == 2
    assert latest(save) == f"global_step{steps}"
    assert not (save / "requeue").exists()
    assert numbers(history_of(save)) == numbers(history_of(place.folder / "whole" / "save"))
    assert_no_process_mentions(str(save))


SAVING_PROGRAM = """
import os, signal, sys, time
asked, place = [], os.environ["RANK"] + "-" + os.environ.get("SLURM_RESTART_COUNT", "0")
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: asked.append(number))
open("started" + place, "w").close()
end = time.monotonic() + 60
while not asked and time.monotonic() < end:
    time.sleep(0.05)
time.sleep(2)  # as a checkpoint takes
open("saved" + place, "w").close()
open(os.environ["DEEPY_REQUEUE_FILE"], "w").close()
"""


@pytest.mark.parametrize("how", [("scontrol", "requeue"), ("scancel", "--signal=TERM", "--full")])
def test_a_signal_to_all_of_a_job_leaves_time_to_save(
    small: Cluster, tmp_path: Path, how: tuple[str, ...]
) -> None:
    """It reaches the batch script, deepy.py and srun too, and srun answers SIGTERM by ending the ranks."""
    program = tmp_path / "rank.py"
    program.write_text(SAVING_PROGRAM)
    save = tmp_path / "save"
    config = write_run(
        tmp_path / "run.yml", **data_files(tmp_path), save=str(save), num_nodes=2, cpu_ranks=4, max_restarts=1
    )
    job, _ = submit(small, tmp_path, program, config)
    wait_for_files(tmp_path, "started?-0", 4, lambda: log_of(save, job))
    small.run(*how, job)
    wait_for_files(tmp_path, "saved?-0", 4, lambda: log_of(save, job))
    wait_for_files(tmp_path, "started?-1", 4, lambda: log_of(save, job))
    assert "restart 1 of 1" not in log_of(save, job)
    small.run("scancel", job)


def wait_for_files(folder: Path, pattern: str, count: int, said: Callable[[], str]) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < deadline, f"no {pattern}: {said()}"
        time.sleep(0.1)


def test_wrong_input_is_not_started_again(small: Cluster, tmp_path: Path) -> None:
    program = tmp_path / "rank.py"
    program.write_text("import os, sys, time; open('starts', 'a').write('x'); time.sleep(1); sys.exit(2)")
    save = tmp_path / 'sa ve 50%j #1 "x"'  # which sbatch must read as one word, and as no job's number
    config = write_run(
        tmp_path / "run.yml", **data_files(tmp_path), save=str(save), num_nodes=2, cpu_ranks=4,
        max_restarts=3, restart_seconds=0,
    )  # fmt: skip
    job, _ = submit(small, tmp_path, program, config)
    found = small.wait(job, "FAILED", limit_seconds=60)
    assert found["ExitCode"] == "2:0"
    assert (tmp_path / "starts").read_text() == "xxxx"
    assert log_of(save, job)


def test_another_order_of_tasks_is_refused_by_the_ranks(small: Cluster, tmp_path: Path) -> None:
    """What srun would do without --distribution=block:block on a site that deals tasks out in turn."""
    program = tmp_path / "rank.py"
    program.write_text("print('ran')")
    config = write_run(tmp_path / "run.yml", **data_files(tmp_path), save=str(tmp_path / "save"), cpu_ranks=4)
    inside = f"{sys.executable} {ROOT}/deepy.py {program} {config} --print-commands"
    shown = small.run(*ALLOCATE, "bash", "-c", f"cd {tmp_path} && {inside}")
    assert "--distribution=block:block" in shown
    small.run(*ALLOCATE, "bash", "-c", shown)
    cyclic = shown.replace("block:block", "cyclic")
    done = subprocess.run(
        [*ALLOCATE, "bash", "-c", cyclic],
        env=small.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "ranks of one machine must follow each other" in done.stderr
    assert done.stdout.count("ran") == 2, "ranks 0 and 3 have the same place in both orders"


def test_ctrl_c_in_an_allocation_saves(small: Cluster, place: Place) -> None:
    folder = place.folder / "salloc"
    _, program, *rest = place.arguments(folder, ranks=2, train_iters=400, checkpoint_factor=1000)
    inside = f"exec {sys.executable} {ROOT}/deepy.py {program} {' '.join(map(str, rest))}"
    with open(folder / "err.txt", "w") as err:
        process = subprocess.Popen(
            [*ALLOCATE, "bash", "-c", inside],
            env={**small.environment, "OMP_NUM_THREADS": "1"}, cwd=folder, stdout=err, stderr=err,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while last_iteration(folder / "save") < 5:
            assert process.poll() is None, (folder / "err.txt").read_text()
            assert time.monotonic() < deadline, (folder / "err.txt").read_text()
            time.sleep(0.1)
        # As a terminal does: to the job in the foreground, which salloc is not.
        [deepy] = [
            pid
            for pid, words, _ in processes()
            if words[1:2] == [f"{ROOT}/deepy.py"] and str(program) in words
        ]
        os.kill(deepy, signal.SIGINT)
        assert process.wait(60) == 130, (folder / "err.txt").read_text()
    finally:
        if process.poll() is None:
            process.kill()
    said = (folder / "err.txt").read_text()
    assert "launcher slurm (inside SLURM job" in said
    assert latest(folder / "save") == f"global_step{last_iteration(folder / 'save')}"
