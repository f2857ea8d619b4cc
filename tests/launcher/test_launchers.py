# SPDX-License-Identifier: Apache-2.0
"""Which launcher a run gets, what keeps it from starting, and which ranks it has then."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from megatron.launcher.hosts import Host
from megatron.launcher.job import Job
from megatron.launcher.launchers import Choice, Settings, choose, launch_problem, lay_out, shown
from megatron.launcher.plan import RankPlan
from megatron.neox_arguments.config import LaunchConfig, SlurmConfig
from megatron.neox_arguments.errors import ConfigError

HERE = RankPlan(2, "two GPUs", on_gpu=True)


def launch(**keys: Any) -> LaunchConfig:
    return LaunchConfig(**keys)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, with programs that only are there; scontrol writes out n[0-1]."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("srun", "mpirun", "pdsh"):
        (folder / name).touch(mode=0o755)
    (folder / "scontrol").write_text("#!/bin/sh\necho n0\necho n1\n")
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def job(programs: Path, **more: str) -> dict[str, str]:
    """The environment inside an allocation of two machines."""
    return {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[0-1]",
        "SLURM_GPUS_ON_NODE": "4", "PATH": str(programs), **more,
    }  # fmt: skip


def test_every_launcher_of_the_configuration_can_start_where_its_program_is(programs: Path) -> None:
    for name in get_args(LaunchConfig.model_fields["launcher"].annotation):
        environment = job(programs) if name == "slurm" else {"PATH": str(programs)}
        assert launch_problem(name, environment) is None
        problem = launch_problem(name, {"PATH": "/nowhere"})
        assert (problem is None) == (name in ("local", "auto"))
        if problem is not None:
            assert str(problem).startswith(f"launcher={name}: there is no ")
            assert "--set launcher=local" in problem.remedy


def test_what_is_found_out_and_why(programs: Path, tmp_path: Path) -> None:
    nothing = {"PATH": str(programs)}
    assert choose(launch(), nothing) == Choice("local", "neither a SLURM job nor a hostfile here")
    assert choose(launch(), job(programs)) == Choice("slurm", "inside SLURM job 7")
    assert choose(launch(hostfile=tmp_path), nothing) == Choice("pdsh", "hostfile")
    assert choose(launch(), {**nothing, "DLTS_HOSTFILE": "/h"}) == Choice("pdsh", "DLTS_HOSTFILE is set")
    assert choose(launch(launcher="openmpi"), job(programs)) == Choice("openmpi", "launcher=openmpi")
    assert choose(launch(launcher="slurm"), nothing) == Choice("slurm", "launcher=slurm")


def test_a_container_without_srun_uses_its_machine(programs: Path) -> None:
    (programs / "srun").unlink()
    alone = job(programs, SLURM_JOB_NUM_NODES="1")
    for name in ("auto", "slurm"):
        choice = choose(launch(launcher=name), alone)
        assert choice.name == "local"
        assert "no srun here, as in a container" in choice.reason
    assert choose(launch(launcher="slurm"), job(programs)).name == "slurm"
    assert "several machines" in str(launch_problem("slurm", job(programs)))


def test_slurm_says_what_is_missing(programs: Path) -> None:
    assert "add --submit" in str(launch_problem("slurm", {"PATH": str(programs)}))
    in_tasks = job(programs, SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="8")
    assert "8 tasks, and each would start all ranks" in str(launch_problem("slurm", in_tasks))


def world(name: str, environment: dict[str, str], **keys: Any) -> Any:
    return lay_out(Choice(name, ""), launch(**keys), environment, lambda: HERE)


def test_the_world_of_an_allocation(programs: Path) -> None:
    found = world("slurm", job(programs))
    assert found.hosts == (Host("n0", (0, 1, 2, 3)), Host("n1", (0, 1, 2, 3)))
    assert (found.on_gpu, found.master_addr, found.reason) == (True, "n0", "2 machines x 4, SLURM job 7")
    assert world("slurm", job(programs), num_gpus=2).size == 4
    assert world("slurm", job(programs), master_addr="ib0").master_addr == "ib0"
    on_cpu = world("slurm", job(programs), cpu_ranks=6)
    assert (on_cpu.size, on_cpu.on_gpu) == (6, False)
    typed = {**job(programs), "SLURM_GPUS_ON_NODE": "", "SLURM_GPUS_PER_NODE": "a100:3"}
    assert world("slurm", typed).size == 6


@pytest.mark.parametrize(("keys", "words"), [
    ({"num_nodes": 3}, "num_nodes=3: this allocation has 2"),
    ({"num_gpus": 8}, "num_gpus=8: this allocation has 4 on each machine"),
    ({"cpu_ranks": 3}, "cpu_ranks=3: cannot be spread evenly over 2 machines"),
])  # fmt: skip
def test_an_allocation_that_is_not_what_was_asked_for(
    programs: Path, keys: dict[str, int], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        world("slurm", job(programs), **keys)


def test_the_world_of_a_hostfile(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a slots=2\nb slots=4\n")
    named = {"DLTS_HOSTFILE": str(tmp_path / "hosts")}
    assert world("pdsh", named).hosts == (Host("a", (0, 1)), Host("b", (0, 1, 2, 3)))
    assert world("openmpi", {}, hostfile=tmp_path / "hosts", exclude="a").hosts == (Host("b", (0, 1, 2, 3)),)
    assert world("pdsh", named, cpu_ranks=2).hosts == (Host("a", (0,)), Host("b", (0,)))
    with pytest.raises(ConfigError, match="launcher=pdsh has no machines; set hostfile, or DLTS_HOSTFILE"):
        world("pdsh", {})


def test_this_machine_alone() -> None:
    for name in ("local", "openmpi"):
        found = world(name, {}, master_port=29500)
        assert found.hosts == (Host("localhost", (0, 1)),)
        assert (found.master_addr, found.master_port, found.reason) == ("127.0.0.1", 29500, "two GPUs")


def test_the_commands_of_this_machine_are_shown_too() -> None:
    found = world("local", {}, master_port=29500)
    lines = shown(
        Choice("local", ""), Job(("py", "t.py"), Path("/w"), {"A": "b c"}), found,
        Settings(launch(), SlurmConfig()), {},
    ).splitlines()  # fmt: skip
    assert lines[1] == (
        "env A='b c' RANK=1 LOCAL_RANK=1 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 "
        "MASTER_PORT=29500 py t.py &"
    )
