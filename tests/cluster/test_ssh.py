# SPDX-License-Identifier: Apache-2.0
"""The OpenMPI and pdsh launchers over four real sshd hosts on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import mini_ssh
from tests.cluster.mini_ssh import SshHosts
from tests.cluster.runs import assert_no_process_mentions, data_files, kill_rank, last_iteration, processes
from tests.launcher.runs import write_run
from tests.runs import ROOT, Place, history_of, latest, make_place
from tests.test_interruption import numbers

REASON = mini_ssh.missing("mpirun", "pdsh")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(REASON is not None, reason=f"no ssh hosts: {REASON}"),
]
BOTH = pytest.mark.parametrize("launcher", ["openmpi", "pdsh"])

# Tells its place; then waits until it is told to stop, or dies, as its argument after -- says.
RANK_PROGRAM = """
import hashlib, json, os, signal, sys, time
rank = os.environ["RANK"]
path = sys.argv[sys.argv.index("--config") + 1]
same = hashlib.sha256(open(path, "rb").read()).hexdigest() == os.environ["DEEPY_CONFIG_SHA256"]
names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
         "DEEPY_ATTEMPT", "FROM_CONFIG", "NCCL_DEBUG", "CUDA_VISIBLE_DEVICES", "HF_TOKEN"]
asked = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda number, frame: asked.append(number))
found = {name: os.environ.get(name) for name in names}
from megatron.monitoring.console import Console
found |= {"bar": Console(1)._has_bar}
found |= {"same": same, "connection": os.environ.get("SSH_CONNECTION", "").split()[2:3]}
open(f"rank{rank}.json", "w").write(json.dumps(found))
if sys.argv[-1] == "dies" and rank == "3" and os.environ["DEEPY_ATTEMPT"] == "0":
    time.sleep(0.5)
    sys.exit(9)
if sys.argv[-1] in ("dies", "waits") and os.environ["DEEPY_ATTEMPT"] == "0":
    end = time.monotonic() + 60
    while not asked and time.monotonic() < end:
        time.sleep(0.05)
    open(f"asked{rank}", "w").write(" ".join(map(str, asked)))
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[SshHosts]:
    with mini_ssh.running() as found:
        yield found


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "rank.py"
    path.write_text(RANK_PROGRAM)
    return path


def config(folder: Path, hosts: SshHosts, **changes: Any) -> Path:
    keys = {
        "save": str(folder / "save"), "hostfile": str(hosts.hostfile(2)), "master_addr": "127.0.0.1",
        "num_gpus": None, "environment": {"FROM_CONFIG": "it's 50% of $HOME"}, **changes,
    }  # fmt: skip
    kept = {key: value for key, value in keys.items() if value is not None}
    return write_run(folder / "run.yml", **data_files(folder), **kept)


def deepy(folder: Path, hosts: SshHosts, *arguments: object) -> subprocess.Popen[str]:
    with open(folder / "out.txt", "w") as out, open(folder / "err.txt", "w") as err:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "deepy.py"), *map(str, arguments)],
            cwd=folder, env={**hosts.environment, "NCCL_DEBUG": "WARN", "HF_TOKEN": "h0sh", "TERM": "xterm"},
            stdout=out, stderr=err, text=True,
        )  # fmt: skip


def wait_for(condition: Any, process: subprocess.Popen[str], folder: Path, limit_seconds: float) -> None:
    deadline = time.monotonic() + limit_seconds
    while not condition():
        said = (folder / "err.txt").read_text()[-4000:]
        assert process.poll() is None, f"it ended with {process.returncode}\n{said}"
        assert time.monotonic() < deadline, said
        time.sleep(0.05)


def places(folder: Path, ranks: int = 8) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]


@BOTH
def test_ranks_are_where_they_were_planned(
    launcher: str, hosts: SshHosts, program: Path, tmp_path: Path
) -> None:
    process = deepy(tmp_path, hosts, program, config(tmp_path, hosts, launcher=launcher))
    assert process.wait(60) == 0, (tmp_path / "err.txt").read_text()
    for rank, place in enumerate(places(tmp_path)):
        assert [place[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")] == [
            str(rank), str(rank % 2), "8", "2",
        ]  # fmt: skip
        assert place["FROM_CONFIG"] == "it's 50% of $HOME"
        assert (place["NCCL_DEBUG"], place["HF_TOKEN"]) == ("WARN", "h0sh")
        assert place["connection"] == [f"127.0.2.{rank // 2 + 1}"]
        assert place["same"]
        assert not place["bar"], "the output goes into a file"


@BOTH
def test_include_chooses_machines_and_gpus(
    launcher: str, hosts: SshHosts, program: Path, tmp_path: Path
) -> None:
    path = config(tmp_path, hosts, launcher=launcher, include="w2:1@w4")
    process = deepy(tmp_path, hosts, program, path)
    assert process.wait(60) == 0, (tmp_path / "err.txt").read_text()
    found = places(tmp_path, 3)
    assert [place["connection"] for place in found] == [["127.0.2.2"], ["127.0.2.4"], ["127.0.2.4"]]
    assert [place["LOCAL_WORLD_SIZE"] for place in found] == ["1", "2", "2"]
    assert found[0]["CUDA_VISIBLE_DEVICES"] == "1"


@BOTH
def test_a_stop_reaches_every_rank(launcher: str, hosts: SshHosts, program: Path, tmp_path: Path) -> None:
    process = deepy(tmp_path, hosts, program, config(tmp_path, hosts, launcher=launcher), "--", "waits")
    wait_for(lambda: len(list(tmp_path.glob("rank*.json"))) == 8, process, tmp_path, 60)
    time.sleep(0.3)
    assert not any("h0sh" in word for _, arguments, _ in processes() for word in arguments)
    assert not list((tmp_path / "save" / "run_configs").glob(".deepy-*"))
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130, (tmp_path / "err.txt").read_text()
    assert len(list(tmp_path.glob("asked*"))) == 8
    assert_no_process_mentions(str(program))


@BOTH
def test_a_dead_rank_ends_the_others_and_all_start_again(
    launcher: str, hosts: SshHosts, program: Path, tmp_path: Path
) -> None:
    path = config(tmp_path, hosts, launcher=launcher, max_restarts=1, restart_seconds=0.5)
    process = deepy(tmp_path, hosts, program, path, "--", "dies")
    assert process.wait(60) == 0, (tmp_path / "err.txt").read_text()
    assert "restart 1 of 1 in 0.5 s" in (tmp_path / "err.txt").read_text()
    assert {place["DEEPY_ATTEMPT"] for place in places(tmp_path)} == {"1"}
    again = deepy(tmp_path, hosts, program, path, "--set", "max_restarts=0", "--", "dies")
    assert again.wait(60) == 9, (tmp_path / "err.txt").read_text()
    assert_no_process_mentions(str(program))


@BOTH
def test_a_killed_launcher_leaves_no_rank(
    launcher: str, hosts: SshHosts, program: Path, tmp_path: Path
) -> None:
    process = deepy(tmp_path, hosts, program, config(tmp_path, hosts, launcher=launcher), "--", "waits")
    wait_for(lambda: len(list(tmp_path.glob("rank*.json"))) == 8, process, tmp_path, 60)
    process.kill()
    process.wait()
    assert_no_process_mentions(str(program), within_seconds=20)


def test_mpi4py_tells_the_rank_where_the_environment_does_not(tmp_path: Path) -> None:
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    program = tmp_path / "rank.py"
    program.write_text("import os; open('r' + os.environ['RANK'], 'w').write(os.environ['LOCAL_RANK'])")
    hidden = ["env", "-u", "OMPI_COMM_WORLD_RANK", "-u", "OMPI_COMM_WORLD_LOCAL_RANK"]
    variables = {"DEEPY_RANKS_FROM": "openmpi", "DEEPY_SLOTS": "0,1,2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "3", *hidden, sys.executable, "-m",
         "megatron.launcher.rank", sys.executable, str(program)],
        cwd=tmp_path, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"r{rank}").read_text() for rank in range(3)] == ["0", "1", "2"]


STEPS = 60
CHANGES: dict[str, Any] = {
    "train_iters": STEPS, "checkpoint_factor": 5, "eval_interval": 30, "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2, "model_parallel_size": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = make_place(tmp_path_factory.mktemp("place"))
    whole = place.train(place.folder / "whole", ranks=8, **CHANGES)
    assert whole.status == 0, whole.err
    return place


def sha256_of(save: Path) -> str:
    """The hash of the one configuration a run was started with."""
    [path] = (save / "run_configs").glob("*.sha256")
    return path.read_text().split()[0]


@BOTH
def test_training_with_a_killed_rank_and_a_stop_ends_as_if_never_interrupted(
    launcher: str, hosts: SshHosts, place: Place
) -> None:
    folder = place.folder / launcher
    save = folder / "save"
    _, *arguments = place.arguments(
        folder, ranks=8, **CHANGES, launcher=launcher, hostfile=str(hosts.hostfile(2)), max_restarts=1,
        restart_seconds=1, master_addr="127.0.0.1",
    )  # fmt: skip
    process = deepy(folder, hosts, *arguments)
    wait_for(lambda: last_iteration(save) >= 7, process, folder, 200)
    kill_rank(3, DEEPY_CONFIG_SHA256=sha256_of(save))
    restarted = "restart 1 of 1 in 1 s, from the last checkpoint"
    wait_for(lambda: restarted in (folder / "err.txt").read_text(), process, folder, 60)
    wait_for(lambda: last_iteration(save) >= 20, process, folder, 200)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, (folder / "err.txt").read_text()[-4000:]
    stopped = last_iteration(save)
    assert 20 <= stopped < STEPS
    assert latest(save) == f"global_step{stopped}"
    assert (save / "requeue").is_file()
    assert_no_process_mentions(str(save))
    again = deepy(folder, hosts, *arguments)
    assert again.wait(200) == 0, (folder / "err.txt").read_text()[-4000:]
    assert numbers(history_of(save)) == numbers(history_of(place.folder / "whole" / "save"))
    assert_no_process_mentions(str(save))
