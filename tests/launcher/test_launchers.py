# SPDX-License-Identifier: Apache-2.0
"""The table of launchers: what starts here, and how the others are refused."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from megatron.launcher.launchers import launch_problem
from megatron.neox_arguments.config import LaunchConfig


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, empty."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_every_launcher_of_the_configuration_has_an_answer() -> None:
    for name in get_args(LaunchConfig.model_fields["launcher"].annotation):
        problem = launch_problem(name, {})
        assert (problem is None) == (name == "local")
        if problem is not None:
            assert str(problem).startswith(f"launcher={name}: ")
            assert "--set launcher=local" in problem.remedy


def test_slurm_says_what_is_missing(programs: Path) -> None:
    assert "no SLURM on this machine" in str(launch_problem("slurm", {}))
    (programs / "srun").touch(mode=0o755)
    assert "outside an allocation" in str(launch_problem("slurm", {}))


@pytest.mark.parametrize(("environment", "words"), [
    ({"SLURM_JOB_ID": "7"}, None),
    ({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"}, None),
    ({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "32"}, "32 nodes"),
    ({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "8"}, "8 tasks"),
])  # fmt: skip
def test_slurm_inside_an_allocation(environment: dict[str, str], words: str | None) -> None:
    problem = launch_problem("slurm", environment)
    assert problem is None if words is None else words in str(problem)
