# SPDX-License-Identifier: Apache-2.0
"""Ranks by OpenMPI: the mpirun line.

mpirun carries no environment to other machines by itself, passes USR1 on to every rank, and ends all ranks
when one dies or when it is ended. It would answer SIGTERM by killing ranks before they have saved, so every
request to stop reaches them as USR1. It gives each rank a terminal of its own for standard output, so that a
rank cannot tell whether a person or a file reads it.
"""

from __future__ import annotations

from collections.abc import Mapping

from megatron.launcher.hosts import World
from megatron.launcher.job import RANK_MODULE, USR1_FOR_ALL, Commands, Job, travelling, with_root
from megatron.launcher.rank import ON_CPU_VARIABLE, SLOTS_VARIABLE, SOURCE_VARIABLE, write_slots
from megatron.launcher.remote import failure_line

_FAILURE = failure_line(r"^\s*Exit code:\s+(\d+)")


def mpirun(
    job: Job, world: World, inherited: Mapping[str, str], *, as_root: bool, on_terminal: bool
) -> Commands:
    """The command that starts one process a rank, filling one machine after another.

    `on_terminal`: a person watches what rank 0 writes; otherwise ranks are told to write plain lines.
    """
    variables = {
        **travelling(inherited),
        **job.environment,
        "PYTHONPATH": with_root(inherited),
        SOURCE_VARIABLE: "openmpi",
        SLOTS_VARIABLE: write_slots([host.slots for host in world.hosts]),
        "MASTER_ADDR": world.master_addr,
        "MASTER_PORT": str(world.master_port),
        **({} if world.on_gpu else {ON_CPU_VARIABLE: "1"}),
        **({} if on_terminal else {"TERM": "dumb"}),
    }
    command = [
        "mpirun",
        *(["--allow-run-as-root"] if as_root else []),
        "-np", str(world.size),
        "--host", ",".join(f"{host.name}:{len(host.slots)}" for host in world.hosts),
        "--map-by", "slot",  # fills a machine before the next, as tensor parallel groups need
        "--bind-to", "none",  # by default one core a rank, and data loading needs more
        "--wdir", str(job.folder),
        *(part for name in variables for part in ("-x", name)),
        job.command[0], "-m", RANK_MODULE, *job.command,
    ]  # fmt: skip
    return Commands(tuple(command), variables, _FAILURE, USR1_FOR_ALL)
