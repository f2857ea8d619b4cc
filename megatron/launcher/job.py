# SPDX-License-Identifier: Apache-2.0
"""What ranks run, and the commands a launcher makes of it: plain data, to be shown and compared."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from megatron.neox_arguments.urls import is_secret

ROOT = Path(__file__).resolve().parents[2]
RANK_MODULE = "megatron.launcher.rank"

# What travels to other machines where the launcher does not carry the whole environment (OpenMPI, pdsh).
_TRAVELLING = re.compile(
    r"(NCCL|UCX|FI|GLOO|TORCH|TORCHINDUCTOR|TRITON|CUDA|CUDNN|NVTE|OMP|MKL|HF|WANDB|AWS|FSSPEC|SSL|LC)_.*"
    r"|PYTHON.*|DEEPY_(?!CONFIG_SHA256|COMMAND).*|PATH|LD_LIBRARY_PATH|LD_PRELOAD|LANG|VIRTUAL_ENV|[a-zA-Z_]+_proxy"
)
# Set anew for each rank, so that an old one must not travel.
_PER_RANK = {"CUDA_VISIBLE_DEVICES"}


@dataclass(frozen=True)
class Job:
    """What every rank runs: a program, its folder, and the variables it gets beside those it inherits.

    `shared` is a folder that all machines see, by default that of the program.
    """

    command: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    shared: Path | None = None


@dataclass(frozen=True)
class Commands:
    """How ranks on other machines are started and asked to stop, and how a dead one is recognised.

    `stop` maps a signal's name to the command that passes it on; None: the signal goes to the start command
    itself, as `signals` says. `failure` finds the exit status of a dead rank in what the start command writes
    to standard error. `private_files` are written for this start, for nobody else to read, and removed.
    """

    start: tuple[str, ...]
    environment: Mapping[str, str]
    failure: re.Pattern[str]
    signals: Mapping[int, int] = field(default_factory=dict)
    stop: Mapping[str, tuple[str, ...]] | None = None
    private_files: Mapping[Path, str] = field(default_factory=dict)

    def shown(self) -> str:
        """The start command as one can type it, but for credentials."""
        variables = ["env", *shown_assignments(self.environment)] if self.environment else []
        files = [f"# deepy.py writes {path}, with credentials" for path in self.private_files]
        return "\n".join([*files, shlex.join([*variables, *self.start])])


def assignments(variables: Mapping[str, str]) -> list[str]:
    """`NAME=value` of each."""
    return [f"{name}={value}" for name, value in variables.items()]


def shown_assignments(variables: Mapping[str, str]) -> list[str]:
    """`assignments` as they may be shown: `NAME=…` of a credential."""
    return [f"{name}={'…' if is_secret(name, value) else value}" for name, value in variables.items()]


def travelling(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of this machine that ranks on others need as well."""
    return {
        name: value
        for name, value in environment.items()
        if _TRAVELLING.fullmatch(name) and name not in _PER_RANK and "\n" not in value
    }


def with_root(environment: Mapping[str, str]) -> str:
    """PYTHONPATH from which `python -m megatron.launcher…` runs."""
    before = [part for part in environment.get("PYTHONPATH", "").split(":") if part and part != str(ROOT)]
    return ":".join([str(ROOT), *before])


def python_of_ranks(rank_python: str | None, container: str | None) -> str:
    """The interpreter of the ranks; ours is not in a container."""
    return rank_python or (sys.executable if container is None else "python3")


# A request to stop, as srun and mpirun pass it on to every rank: they answer SIGTERM by killing them, and a
# first SIGINT only asks srun for its state.
USR1_FOR_ALL: dict[int, int] = dict.fromkeys((signal.SIGINT, signal.SIGHUP, signal.SIGTERM), signal.SIGUSR1)
