# SPDX-License-Identifier: Apache-2.0
"""Which way of starting ranks a run takes: one table from the key `launcher` to what starts them here.

An entry answers for this machine: None, the ranks are started by `local.launch`; or a problem, which says
what is missing and how to go on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping

from megatron.neox_arguments.errors import Problem

RUN_HERE = "to run on this machine: --set launcher=local"


def launch_problem(launcher: str, environment: Mapping[str, str]) -> Problem | None:
    """Why `launcher` cannot start ranks from here; None where it can."""
    return _LAUNCHERS[launcher](environment)


def _local(environment: Mapping[str, str]) -> Problem | None:
    del environment
    return None


def _slurm(environment: Mapping[str, str]) -> Problem | None:
    """Inside an allocation of one node, started once, its ranks are this machine's."""
    if "SLURM_JOB_ID" not in environment:
        if shutil.which("srun") is None:
            constraint = "there is no SLURM on this machine (no srun on PATH, no SLURM_JOB_ID)"
            return Problem("launcher", "slurm", constraint, RUN_HERE)
        constraint = "this is outside an allocation (no SLURM_JOB_ID)"
        remedy = "start it from a batch script of one node, `sbatch --nodes=1 --ntasks=1 …`; " + RUN_HERE
        return Problem("launcher", "slurm", constraint, remedy)
    nodes = int(environment.get("SLURM_JOB_NUM_NODES", "1"))
    if nodes > 1:
        constraint = f"this allocation has {nodes} nodes, and only one is supported in this version"
        return Problem("launcher", "slurm", constraint, "allocate one with --nodes=1")
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1:
        constraint = f"srun started this command in {tasks} tasks, and each would start all ranks"
        return Problem("launcher", "slurm", constraint, "start it once, with srun --ntasks=1 or without srun")
    return None


def _unsupported(name: str) -> Callable[[Mapping[str, str]], Problem | None]:
    constraint = "is not supported in this version, which starts ranks on one machine"
    return lambda _environment: Problem("launcher", name, constraint, RUN_HERE)


_LAUNCHERS: dict[str, Callable[[Mapping[str, str]], Problem | None]] = {
    "local": _local,
    "slurm": _slurm,
    "openmpi": _unsupported("openmpi"),
    "pdsh": _unsupported("pdsh"),
}
