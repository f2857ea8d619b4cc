# SPDX-License-Identifier: Apache-2.0
"""What the quickstart does on this machine: GPU or CPU, number format, and a run that fits the time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron.launcher.devices import available_cores, count_gpus

# Instructions that multiply bfloat16, as /proc/cpuinfo names them. Without them float32 is faster.
BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16")


@dataclass(frozen=True)
class Machine:
    """What there is to compute on."""

    on_gpu: bool
    precision: str
    why: str

    @property
    def dtype(self) -> str:
        """The precision under torch's name, as the measuring commands take it."""
        return {"bfloat16": "bfloat16", "fp32": "float32"}[self.precision]


@dataclass(frozen=True)
class Size:
    """How much is trained, measured and written. `run` are keys of the run's configuration."""

    run: dict[str, Any]
    measured_documents: int
    measured_tokens: int
    sample_tokens: int


def detect(environment: Mapping[str, str], cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """Looks for a GPU, and for bfloat16 in the CPU."""
    gpus = count_gpus(environment)
    if gpus.count:
        return Machine(True, "bfloat16", f"a GPU is here (by {gpus.found_by}); one is used")
    try:
        words = set(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        words = set()
    for flag in BFLOAT16_FLAGS:
        if flag in words:
            return Machine(False, "bfloat16", f"no GPU; the CPU multiplies bfloat16 ({flag})")
    return Machine(False, "fp32", f"no GPU, and the CPU has neither {' nor '.join(BFLOAT16_FLAGS)}")


def size_for(machine: Machine, short: bool) -> Size:
    """A run for this machine; configs/quickstart.yml itself is that of a CPU with bfloat16."""
    if short:
        return Size({"train_iters": 12, "eval_interval": 12, "eval_iters": 1}, 8, 384, 24)
    if machine.on_gpu:
        run = {
            "num_gpus": 1,
            "seq_length": 512,
            "train_micro_batch_size_per_gpu": 16,
            "train_batch_size": 32,
            "train_iters": 200,
            "warmup_iters": 10,
            "eval_interval": 50,
            "checkpoint_factor": 50,
        }
        return Size(run, 40, 1024, 60)
    if machine.precision == "fp32":  # a third to 0.6 of the speed, by the library of products
        return Size({"train_iters": 20, "eval_interval": 10, "checkpoint_factor": 10}, 10, 512, 48)
    return Size({}, 16, 512, 48)


def run_file(output: Path, machine: Machine, size: Size) -> str:
    """The run's last configuration file: paths below `output`, precision, and what `size` changes."""
    tokens = output / "tokens"
    content = {
        "train_data_paths": [str(tokens / f"{source}_train_text_document") for source in ("python", "latex")],
        "valid_data_paths": [str(tokens / f"{source}_valid_text_document") for source in ("python", "latex")],
        "save": str(output / "run"),
        "precision": machine.precision,
        **size.run,
    }
    header = (
        "# Written by tools/quickstart.py: paths, and what follows from this machine.\n"
        f"# {machine.precision}: {machine.why}.\n"
    )
    return header + yaml.safe_dump(content, sort_keys=False)


def describe(machine: Machine) -> str:
    """One line for the start."""
    where = "one GPU" if machine.on_gpu else f"{available_cores()} CPU cores"
    return f"{where}, {machine.precision}: {machine.why}"


def python_environment() -> dict[str, str]:
    """The environment of the commands: ours, unbuffered, so that their lines come in order through a pipe."""
    return {**os.environ, "PYTHONUNBUFFERED": "1"}
