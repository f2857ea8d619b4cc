# SPDX-License-Identifier: Apache-2.0
"""The place of a rank from what SLURM and OpenMPI set, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.launcher.rank import Misplaced, rank_variables, read_slots, write_slots

ROOT = Path(__file__).parents[2]


def slurm(rank: int, local: int, size: int = 4, slots: str = "0,1|0,1", **more: str) -> dict[str, str]:
    return {
        "DEEPY_RANKS_FROM": "slurm", "DEEPY_SLOTS": slots, "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(local), "SLURM_NTASKS": str(size), **more,
    }  # fmt: skip


def test_slots_travel_as_one_word() -> None:
    assert read_slots(write_slots([(0, 1), (3,)])) == [[0, 1], [3]]


def test_slurm() -> None:
    assert rank_variables(slurm(3, 1), cores=8) == {
        "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "4",
    }  # fmt: skip


@pytest.mark.parametrize("names", [
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),
])  # fmt: skip
def test_mpi_by_both_its_names(names: tuple[str, ...]) -> None:
    found = dict(zip(names, ("2", "0", "3"), strict=True))
    place = rank_variables({"DEEPY_RANKS_FROM": "openmpi", "DEEPY_SLOTS": "0,1|2", **found}, cores=1)
    assert (place["RANK"], place["LOCAL_RANK"], place["WORLD_SIZE"]) == ("2", "0", "3")
    assert place["CUDA_VISIBLE_DEVICES"] == "2"


def test_gpus_are_those_of_the_slots() -> None:
    some = slurm(1, 1, 2, slots="2,3")
    assert rank_variables(some, 1)["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert rank_variables({**some, "CUDA_VISIBLE_DEVICES": "4,5,6,7"}, 1)["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert rank_variables({**some, "DEEPY_ON_CPU": "1"}, 1)["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in rank_variables(slurm(0, 0), 1)


@pytest.mark.parametrize(("environment", "words"), [
    (slurm(1, 0), "ranks of one machine must follow each other"),
    (slurm(1, 1, size=8), "8 ranks were started where 4 were planned"),
    ({"DEEPY_SLOTS": "0"}, "nothing tells this process its rank"),
])  # fmt: skip
def test_another_place_than_planned_is_refused(environment: dict[str, str], words: str) -> None:
    with pytest.raises(Misplaced, match=words):
        rank_variables(environment, 1)


def test_it_becomes_the_program_and_imports_next_to_nothing() -> None:
    program = "import os; print(os.environ['RANK'], os.environ['WORLD_SIZE'])"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "megatron.launcher.rank", sys.executable, "-c", program],
        cwd=ROOT, env={**os.environ, **slurm(2, 0)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "2 4\n", done.stderr
    assert "pydantic" not in done.stderr
    assert "subprocess" not in done.stderr
    refused = subprocess.run(
        [sys.executable, "-m", "megatron.launcher.rank", "no-such-program"],
        cwd=ROOT, env={**os.environ, **slurm(2, 0)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (refused.returncode, refused.stderr) == (2, "error: no-such-program: No such file or directory\n")
