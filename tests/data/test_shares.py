# SPDX-License-Identifier: Apache-2.0
"""Which share of a corpus a process does, from each place that may tell."""

from __future__ import annotations

import sys

import pytest

from megatron.data.shares import Share, share_of
from megatron.neox_arguments.errors import UserError


def array(task: int, first: int, last: int, step: int = 1, count: int | None = None) -> dict[str, str]:
    count = (last - first) // step + 1 if count is None else count
    values = {"ID": task, "MIN": first, "MAX": last, "STEP": step, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def srun(rank: int, ranks: int) -> dict[str, str]:
    values = {"PROCID": rank, "NTASKS": ranks, "STEP_ID": 0, "STEP_NUM_TASKS": ranks}
    return {f"SLURM_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("wanted", "environment", "expected"),
    [
        (None, array(1, 0, 3), (0, 1)),
        ("2/5", {"RANK": "1", "WORLD_SIZE": "2"}, (2, 5)),
        ("auto", array(6, 4, 7), (2, 4)),
        ("auto", array(9, 1, 13, 4), (2, 4)),
        ("auto", {"RANK": "3", "WORLD_SIZE": "4"}, (3, 4)),
        ("auto", {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, (0, 2)),
        ("auto", {"PMI_RANK": "1", "PMI_SIZE": "2"}, (1, 2)),
        ("auto", srun(1, 2), (1, 2)),
        ("auto", array(1, 0, 1) | srun(3, 4), (7, 8)),
        # In the batch script of a task of an array, before any srun.
        ("auto", array(1, 0, 1) | {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (1, 2)),
        ("auto", array(1, 0, 1) | srun(0, 4) | {"SLURM_STEP_ID": "4294967291"}, (1, 2)),
        ("auto", array(1, 0, 2) | {"RANK": "1", "WORLD_SIZE": "2"}, (3, 6)),
    ],
)
def test_shares(wanted: str | None, environment: dict[str, str], expected: tuple[int, int]) -> None:
    share = share_of(wanted, environment)
    assert (share.number, share.count) == expected


def test_an_array_of_ranks_is_shared_out_completely() -> None:
    numbers = [
        share_of("auto", array(task, 0, 2) | {"RANK": str(rank), "WORLD_SIZE": "2"}).number
        for task in range(3)
        for rank in range(2)
    ]
    assert numbers == list(range(6))


@pytest.mark.parametrize(
    ("wanted", "environment", "words"),
    [
        ("5/5", {}, "is no share; write i/N"),
        ("1", {}, "is no share"),
        ("auto", {}, "neither a SLURM array .* nor ranks"),
        ("auto", {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "neither .* start the command with srun"),
        ("auto", array(3, 1, 9, count=2), "not evenly numbered"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "1"}, "not evenly numbered"),
        ("auto", {"RANK": "2", "WORLD_SIZE": "2"}, "make no sense"),
    ],
)
def test_what_is_no_share(wanted: str, environment: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        share_of(wanted, environment)


def test_without_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(UserError, match="mpi4py cannot be imported .* use --share auto"):
        share_of("mpi", {})


def test_mpi4py_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    class World:
        def Get_rank(self) -> int:
            return 1

        def Get_size(self) -> int:
            return 3

    class Module:
        MPI = type("MPI", (), {"COMM_WORLD": World()})

    monkeypatch.setitem(sys.modules, "mpi4py", Module)
    assert share_of("mpi", {}) == Share(1, 3, "mpi4py")
