# SPDX-License-Identifier: Apache-2.0
"""How many GPUs and cores this machine gives a run, without torch and without touching a GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GpuCount:
    """The GPUs a run may use, and in words how they were counted."""

    count: int
    found_by: str


def count_gpus(environment: Mapping[str, str], device_folder: Path = Path("/dev")) -> GpuCount:
    """Counts NVIDIA GPUs: what the machine has, less what CUDA_VISIBLE_DEVICES hides."""
    present = _present(device_folder)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None or present.count == 0:
        return present
    return GpuCount(min(_visible(visible), present.count), f"CUDA_VISIBLE_DEVICES={visible}")


def gpu_here() -> tuple[str, int] | None:
    """Name and bytes of the first GPU of this machine, by the driver; None without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        name, mebibytes = done.stdout.splitlines()[0].rsplit(",", 1)
        return name.strip(), int(mebibytes) * 2**20
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None


def _present(device_folder: Path) -> GpuCount:
    program = shutil.which("nvidia-smi")
    if program is not None:
        try:
            listing = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20, check=True)
            return GpuCount(len(re.findall(r"^GPU \d+:", listing.stdout, re.MULTILINE)), "nvidia-smi -L")
        except (OSError, subprocess.SubprocessError):
            pass  # installed without a working driver: the device files tell
    nodes = [path for path in device_folder.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return GpuCount(len(nodes), f"{device_folder}/nvidia*")


def _visible(value: str) -> int:
    """Entries CUDA takes from CUDA_VISIBLE_DEVICES: those before the first that is no number and no UUID."""
    count = 0
    for entry in value.split(","):
        if not re.fullmatch(r"\d+|(GPU|MIG)-.+", entry.strip()):
            break  # SLURM writes NoDevFiles where a job has none
        count += 1
    return count


def available_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
