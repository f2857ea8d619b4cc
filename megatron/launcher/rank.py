# SPDX-License-Identifier: Apache-2.0
"""What SLURM and OpenMPI start for each rank: finds the rank's place, then becomes the rank's program.

python -m megatron.launcher.rank PROGRAM ARGUMENT…

The program finds RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE in its environment, as under torchrun,
whoever started it. The place is compared with the layout the launcher planned: ranks in another order would
train too, with tensor parallel groups across machines.

This runs once a rank, 2,048 times on 256 machines, so it imports next to nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

SOURCE_VARIABLE = "DEEPY_RANKS_FROM"  # slurm or openmpi
SLOTS_VARIABLE = "DEEPY_SLOTS"  # of each machine, as 0,1,2,3|0,1,2,3
ON_CPU_VARIABLE = "DEEPY_ON_CPU"
WRONG_INPUT = 2

# (rank, local rank, world size) by the names each launcher gives them. The second of openmpi's is PMI's, as
# MPICH and Intel MPI have it.
_NAMES = {
    "slurm": (("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"),),
    "openmpi": (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),
    ),
}

Place = tuple[int, int, int]


class Misplaced(Exception):
    """The place of this rank cannot be told, or is not where it was planned."""


def place_from(environment: Mapping[str, str]) -> Place:
    """(rank, local rank, world size) of this process.

    Raises:
        Misplaced: nothing tells it.
    """
    source = environment.get(SOURCE_VARIABLE, "")
    for names in _NAMES.get(source, ()):
        if all(name in environment for name in names):
            rank, local_rank, size = (int(environment[name]) for name in names)
            return rank, local_rank, size
    if source == "openmpi":
        return _place_from_mpi()
    raise Misplaced(f"{SOURCE_VARIABLE}={source}: nothing tells this process its rank; start it by deepy.py")


def _place_from_mpi() -> Place:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise Misplaced(
            f"mpirun has set none of {', '.join(names[0] for names in _NAMES['openmpi'])}, and mpi4py, which "
            f"would ask it, cannot be loaded ({error}); install mpi4py, or use launcher: pdsh"
        ) from error
    world = MPI.COMM_WORLD
    place = world.Get_rank(), world.Split_type(MPI.COMM_TYPE_SHARED).Get_rank(), world.Get_size()
    MPI.Finalize()  # the program that follows is no MPI program
    return place


def planned_place(rank: int, slots: Sequence[Sequence[int]]) -> tuple[int, int]:
    """(machine, local rank) of a rank when machines are filled one after another."""
    for node, own in enumerate(slots):
        if rank < len(own):
            return node, rank
        rank -= len(own)
    raise Misplaced(f"rank={rank}: is beyond the layout")


def rank_variables(environment: Mapping[str, str], cores: int) -> dict[str, str]:
    """What the program of this rank finds in its environment beside what is there.

    Raises:
        Misplaced: the launcher's order or number of ranks is not the planned one.
    """
    rank, local_rank, size = place_from(environment)
    slots = read_slots(environment[SLOTS_VARIABLE])
    planned = sum(map(len, slots))
    if size != planned:
        raise Misplaced(f"{size} ranks were started where {planned} were planned; ask for {planned} tasks")
    node, planned_local = planned_place(rank, slots)
    if local_rank != planned_local:
        raise Misplaced(
            f"rank {rank} is number {local_rank} on its machine and was planned as number {planned_local} of "
            f"machine {node}; ranks of one machine must follow each other (srun --distribution=block:block)"
        )
    found = {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(len(slots[node])),
    }
    if "OMP_NUM_THREADS" not in environment:
        found["OMP_NUM_THREADS"] = str(max(1, cores // len(slots[node])))
    if ON_CPU_VARIABLE in environment:
        found["CUDA_VISIBLE_DEVICES"] = ""
    else:
        found.update(visible_gpus(slots[node], environment))
    return found


def visible_gpus(slots: Sequence[int], environment: Mapping[str, str]) -> dict[str, str]:
    """CUDA_VISIBLE_DEVICES where the slots are not simply the first ones, so that LOCAL_RANK counts them."""
    if list(slots) == list(range(len(slots))):
        return {}
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = visible if len(visible) > max(slots) else [str(slot) for slot in range(max(slots) + 1)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[slot] for slot in slots)}


def write_slots(slots: Sequence[Sequence[int]]) -> str:
    """The slots of all machines as one word."""
    return "|".join(",".join(map(str, own)) for own in slots)


def read_slots(text: str) -> list[list[int]]:
    """What `write_slots` wrote."""
    return [[int(slot) for slot in own.split(",")] for own in text.split("|")]


def main(command: list[str]) -> None:
    """Becomes `command` in its place; exits with 2 where there is none."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        os.environ.update(rank_variables(os.environ, cores))
        os.execvp(command[0], command)
    except Misplaced as problem:
        print(f"error: {problem}", file=sys.stderr)
    except OSError as error:
        print(f"error: {command[0]}: {error.strerror}", file=sys.stderr)
    sys.exit(WRONG_INPUT)


if __name__ == "__main__":
    main(sys.argv[1:])
