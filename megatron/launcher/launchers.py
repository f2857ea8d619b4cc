# SPDX-License-Identifier: Apache-2.0
"""Which way of starting ranks a run takes, which world of ranks it gets, and the start itself."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from megatron.launcher import openmpi, pdsh, slurm
from megatron.launcher.hosts import (
    HOSTFILE_VARIABLE,
    Host,
    World,
    chosen_hosts,
    cpu_hosts,
    in_words,
    read_hostfile,
)
from megatron.launcher.job import Commands, Job, shown_assignments
from megatron.launcher.local import launch as launch_here
from megatron.launcher.plan import RankPlan
from megatron.launcher.ports import free_port, guessed_port
from megatron.launcher.processes import Stop, say
from megatron.launcher.remote import run_commands
from megatron.launcher.restarts import ATTEMPT_VARIABLE, Restarts, run_with_restarts
from megatron.neox_arguments.config import LaunchConfig, SlurmConfig
from megatron.neox_arguments.errors import ConfigError, Problem

RUN_HERE = "to run on this machine: --set launcher=local"


@dataclass(frozen=True)
class Choice:
    """A launcher, and why this one."""

    name: str
    reason: str


@dataclass(frozen=True)
class Settings:
    """What launchers read of a configuration."""

    launch: LaunchConfig
    slurm: SlurmConfig


def choose(launch: LaunchConfig, environment: Mapping[str, str]) -> Choice:
    """The launcher that the configuration names, or the one that fits where we are."""
    if slurm.JOB_VARIABLE in environment and launch.launcher in ("auto", "slurm"):
        job = environment[slurm.JOB_VARIABLE]
        alone = environment.get("SLURM_JOB_NUM_NODES", "1") == "1"
        if shutil.which("srun", path=environment.get("PATH")) is None and alone:
            reason = f"no srun here, as in a container, and SLURM job {job} has this machine alone"
            return Choice("local", reason)
        if launch.launcher == "auto":
            return Choice("slurm", f"inside SLURM job {job}")
    if launch.launcher != "auto":
        return Choice(launch.launcher, f"launcher={launch.launcher}")
    if launch.hostfile is not None or HOSTFILE_VARIABLE in environment:
        return Choice("pdsh", "hostfile" if launch.hostfile is not None else f"{HOSTFILE_VARIABLE} is set")
    return Choice("local", "neither a SLURM job nor a hostfile here")


def launch_problem(launcher: str, environment: Mapping[str, str]) -> Problem | None:
    """Why `launcher` cannot start ranks from here; None where it can."""
    path = environment.get("PATH")
    if launcher == "slurm":
        return _slurm_problem(environment, path)
    program = {"openmpi": "mpirun", "pdsh": "pdsh"}.get(launcher)
    if program is not None and shutil.which(program, path=path) is None:
        constraint = f"there is no {program} on PATH"
        return Problem("launcher", launcher, constraint, f"install it, or {RUN_HERE}")
    return None


def _slurm_problem(environment: Mapping[str, str], path: str | None) -> Problem | None:
    if slurm.JOB_VARIABLE not in environment:
        if shutil.which("srun", path=path) is None:
            constraint = "there is no SLURM on this machine (no srun on PATH, no SLURM_JOB_ID)"
            return Problem("launcher", "slurm", constraint, RUN_HERE)
        constraint = "this is outside an allocation (no SLURM_JOB_ID)"
        return Problem("launcher", "slurm", constraint, f"add --submit to ask SLURM for one; {RUN_HERE}")
    if shutil.which("srun", path=path) is None:
        constraint = "there is no srun on PATH, and this allocation has several machines"
        return Problem(
            "launcher", "slurm", constraint, "start deepy.py outside the container, see slurm_container"
        )
    tasks = slurm.started_in_many_tasks(environment)
    if tasks > 1:
        constraint = f"srun started this command in {tasks} tasks, and each would start all ranks"
        return Problem("launcher", "slurm", constraint, "start it once, with srun --ntasks=1 or without srun")
    return None


def lay_out(
    choice: Choice, launch: LaunchConfig, environment: Mapping[str, str], here: Callable[[], RankPlan]
) -> World:
    """The ranks of a run on the machines that `choice` gives it.

    Args:
        here: the ranks this machine would get alone, from its GPUs and the model's cut.

    Raises:
        ConfigError, UserError: the machines are not those the configuration asks for, or cannot be told.
    """
    if choice.name == "slurm":
        return _slurm_world(launch, environment, here)
    hosts, where = _listed(choice, launch, environment)
    if hosts is None:
        plan = here()
        hosts = (Host("localhost", tuple(range(plan.ranks))),)
        address = launch.master_addr or "127.0.0.1"
        return World(hosts, bool(plan.on_gpu), plan.reason, address, launch.master_port)
    hosts = chosen_hosts(
        hosts,
        include=launch.include,
        exclude=launch.exclude,
        num_nodes=launch.num_nodes,
        num_gpus=launch.num_gpus,
    )
    on_gpu = launch.cpu_ranks is None
    if launch.cpu_ranks is not None:
        hosts = cpu_hosts([host.name for host in hosts], launch.cpu_ranks)
    reason = f"{in_words(hosts)}, by {where}"
    return World(hosts, on_gpu, reason, launch.master_addr or hosts[0].name, launch.master_port)


def _listed(
    choice: Choice, launch: LaunchConfig, environment: Mapping[str, str]
) -> tuple[tuple[Host, ...] | None, str]:
    """The machines of the hostfile and where it was named; None where only this machine is meant."""
    if choice.name == "local":
        return None, ""
    if launch.hostfile is not None:
        return read_hostfile(launch.hostfile), str(launch.hostfile)
    named = environment.get(HOSTFILE_VARIABLE)
    if named:
        return read_hostfile(Path(named), HOSTFILE_VARIABLE), f"{HOSTFILE_VARIABLE}={named}"
    if choice.name == "pdsh" or any((launch.include, launch.exclude, (launch.num_nodes or 1) > 1)):
        remedy = f"set hostfile, or {HOSTFILE_VARIABLE} in the environment, to a file with lines n0 slots=8"
        raise ConfigError([Problem("hostfile", None, f"launcher={choice.name} has no machines", remedy)])
    return None, ""


def _slurm_world(launch: LaunchConfig, environment: Mapping[str, str], here: Callable[[], RankPlan]) -> World:
    allocation = slurm.read_allocation(environment)
    nodes = allocation.nodes or (socket.gethostname(),)
    slurm.node_counts_agree(nodes, launch)
    address = launch.master_addr or nodes[0]
    where = f"SLURM job {allocation.job_id}"
    if launch.cpu_ranks is not None:
        hosts = cpu_hosts(nodes, launch.cpu_ranks)
        return World(hosts, False, f"{in_words(hosts)}, {where}", address, launch.master_port)
    gpus = allocation.gpus_per_node
    if gpus is not None and launch.num_gpus is not None and launch.num_gpus > gpus:
        constraint = f"this allocation has {gpus} on each machine"
        raise ConfigError([Problem("num_gpus", launch.num_gpus, constraint, f"use num_gpus={gpus}")])
    each = launch.num_gpus or gpus
    if each is None:  # a site whose GPUs SLURM does not count
        plan = here()
        each, on_gpu = plan.ranks, bool(plan.on_gpu)
    else:
        on_gpu = True
    hosts = tuple(Host(node, tuple(range(each))) for node in nodes)
    return World(hosts, on_gpu, f"{in_words(hosts)}, {where}", address, launch.master_port)


def commands(
    choice: Choice,
    job: Job,
    world: World,
    settings: Settings,
    environment: Mapping[str, str],
    attempt: int = 0,
) -> Commands | None:
    """What starts the ranks; None where this process starts them itself (`local`)."""
    # Through a pipe a rank's lines would come in blocks; srun's --unbuffered would give it a terminal.
    own = {"PYTHONUNBUFFERED": "1", ATTEMPT_VARIABLE: str(attempt)}
    job = replace(job, environment={**job.environment, **own})
    if choice.name == "slurm":
        allocation = slurm.read_allocation(environment)
        port = world.master_port or slurm.master_port(allocation.job_id, attempt)
        return slurm.srun(job, replace(world, master_port=port), settings.slurm, allocation, environment)
    if choice.name == "openmpi":
        as_root, on_terminal = os.geteuid() == 0, os.isatty(1)
        return openmpi.mpirun(job, _with_port(world), environment, as_root=as_root, on_terminal=on_terminal)
    if choice.name == "pdsh":
        run = hashlib.sha256(f"{job} {os.getpid()} {socket.gethostname()}".encode()).hexdigest()[:12]
        return pdsh.pdsh(job, _with_port(world), environment, run=f"{run}-{attempt}")
    return None


def _with_port(world: World) -> World:
    """`world` with a port to meet at; another machine's can only be guessed, each attempt anew."""
    if world.master_port is not None:
        return world
    if [host.name for host in world.hosts] == ["localhost"]:
        return replace(world, master_port=free_port())
    return replace(world, master_port=guessed_port())


def start(choice: Choice, job: Job, world: World, settings: Settings, environment: Mapping[str, str]) -> int:
    """Starts the ranks, again if need be and allowed, and waits for their end; returns the exit status."""

    def attempt(number: int, stop: Stop) -> int:
        found = commands(choice, job, world, settings, environment, number)
        if found is not None:
            return run_commands(found, environment, stop, say)
        return launch_here(
            job.command,
            world.size,
            environment={**environment, **job.environment, ATTEMPT_VARIABLE: str(number)},
            on_gpu=world.on_gpu,
            master_addr=world.master_addr,
            master_port=world.master_port,
            stop=stop,
        )

    restarts = Restarts(settings.launch.max_restarts, settings.launch.restart_seconds)
    return run_with_restarts(attempt, restarts, say)


def shown(choice: Choice, job: Job, world: World, settings: Settings, environment: Mapping[str, str]) -> str:
    """The commands of the first attempt, as one can type them."""
    found = commands(choice, job, world, settings, environment)
    if found is not None:
        return found.shown()
    port = world.master_port or free_port()
    pairs = [assignment.partition("=") for assignment in shown_assignments(job.environment)]
    words = " ".join(f"{name}={shlex.quote(value)}" for name, _, value in pairs)
    hidden = "" if world.on_gpu else "CUDA_VISIBLE_DEVICES= "
    return "\n".join(
        f"env {words} RANK={rank} LOCAL_RANK={rank} WORLD_SIZE={world.size} LOCAL_WORLD_SIZE={world.size} "
        f"MASTER_ADDR={world.master_addr} MASTER_PORT={port} {hidden}{shlex.join(job.command)} &"
        for rank in range(world.size)
    )
