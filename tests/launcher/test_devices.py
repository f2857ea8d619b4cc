# SPDX-License-Identifier: Apache-2.0
"""Counting GPUs on machines made up of a fake nvidia-smi and a fake /dev."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron.launcher.devices import count_gpus

LISTING = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)
  MIG 1g.10gb     Device  0: (UUID: MIG-1)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for /dev, with three GPUs' nodes and others of the driver; PATH is empty."""
    devices = tmp_path / "dev"
    devices.mkdir()
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm", "null"):
        (devices / name).touch()
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    return devices


def nvidia_smi(machine: Path, script: str) -> None:
    program = machine.parent / "bin" / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_nvidia_smi_is_asked_first(machine: Path) -> None:
    nvidia_smi(machine, f"[ \"$1\" = -L ] && echo '{LISTING}'")
    assert (count_gpus({}, machine).count, count_gpus({}, machine).found_by) == (2, "nvidia-smi -L")


def test_without_it_the_device_nodes_count(machine: Path) -> None:
    assert count_gpus({}, machine).count == 3
    nvidia_smi(machine, "echo 'NVIDIA-SMI has failed' ; exit 9")
    assert count_gpus({}, machine).count == 3


def test_a_machine_without_gpus(tmp_path: Path, machine: Path) -> None:
    assert count_gpus({}, tmp_path / "empty").count == 0
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "0,1"}, tmp_path / "empty").count == 0


@pytest.mark.parametrize(("visible", "count"), [
    ("0", 1), ("2,0", 2), ("GPU-1,GPU-2", 2), ("0,1,2,3,4", 3), ("", 0), ("-1", 0), ("0,-1,1", 1),
    ("NoDevFiles", 0),
])  # fmt: skip
def test_cuda_visible_devices_hides(machine: Path, visible: str, count: int) -> None:
    assert count_gpus({"CUDA_VISIBLE_DEVICES": visible}, machine).count == count
