# SPDX-License-Identifier: Apache-2.0
"""Which share of a corpus is this process's: said on the command line, or told by SLURM, deepy.py or MPI."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from megatron.neox_arguments.errors import UserError

# Rank and number of ranks, as deepy.py and torchrun, Open MPI, MPICH and Intel MPI, and srun name them.
_RANKS = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
# SLURM numbers the steps that are not srun's (the batch script's among them) down from here.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0


@dataclass(frozen=True)
class Share:
    """The `number`-th (from 0) of `count` shares; `reason` says who told."""

    number: int = 0
    count: int = 1
    reason: str = "--share"

    def __str__(self) -> str:
        return f"share {self.number}/{self.count}"


def share_of(wanted: str | None, environment: Mapping[str, str]) -> Share:
    """The share that `--share` asks for: None for all, "i/N" counted from 0, "auto" for what the environment
    tells, "mpi" for the rank that mpi4py tells.

    Where a SLURM array and ranks are both there, each task of the array is shared out to its ranks.

    Raises:
        UserError: it is neither, or nothing is told.
    """
    if wanted is None:
        return Share()
    if match := re.fullmatch(r"(\d+)/(\d+)", wanted):
        number, count = int(match[1]), int(match[2])
        if number < count:
            return Share(number, count)
    elif wanted == "mpi":
        return _mpi()
    elif wanted == "auto":
        return _told(environment)
    raise UserError(
        f"--share {wanted}: is no share; write i/N with i from 0 to N-1, or auto, or mpi (by mpi4py)"
    )


def _told(environment: Mapping[str, str]) -> Share:
    found = [share for share in (_array(environment), _rank(environment)) if share is not None]
    if not found:
        raise UserError(
            "--share auto: neither a SLURM array (SLURM_ARRAY_TASK_ID) nor ranks (RANK and WORLD_SIZE of "
            "deepy.py, or those of MPI or srun) are here; write --share i/N, or start the command with srun"
        )
    whole = Share(reason="")
    for share in found:
        number = whole.number * share.count + share.number
        reason = f"{whole.reason}, {share.reason}" if whole.reason else share.reason
        whole = Share(number, whole.count * share.count, reason)
    return whole


def _array(environment: Mapping[str, str]) -> Share | None:
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return None
    try:
        task, count, first, last, step = (
            int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "COUNT", "MIN", "MAX", "STEP")
        )
    except (KeyError, ValueError):
        task, count, first, last, step = 0, 0, 0, 0, 1
    if count < 1 or (last - first) // step + 1 != count or (task - first) % step:
        raise UserError(
            "--share auto: the tasks of this SLURM array are not evenly numbered, so that none can tell its "
            "place; submit it with --array=0-7, or write --share i/N"
        )
    return Share((task - first) // step, count, f"task {task} of the SLURM array")


def _rank(environment: Mapping[str, str]) -> Share | None:
    for rank, size in _RANKS:
        if rank in environment and size in environment and (rank != "SLURM_PROCID" or _in_srun(environment)):
            number, count = environment[rank], environment[size]
            if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
                raise UserError(f"--share auto: {rank}={number} and {size}={count} make no sense; write i/N")
            return Share(int(number), int(count), f"{rank}={number}")
    return None


def _in_srun(environment: Mapping[str, str]) -> bool:
    """Whether srun has started this process. In a batch script SLURM_PROCID is 0, and the tasks that srun
    would start are not there."""
    step = environment.get("SLURM_STEP_ID", "")
    return step.isdigit() and int(step) < _FIRST_SPECIAL_STEP


def _mpi() -> Share:
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UserError(
            f"--share mpi: mpi4py cannot be imported ({error}); install it (requirements-optional.txt), or "
            "use --share auto, which reads the environment of mpirun"
        ) from None
    world = MPI.COMM_WORLD
    return Share(world.Get_rank(), world.Get_size(), "mpi4py")
