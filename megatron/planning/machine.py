# SPDX-License-Identifier: Apache-2.0
"""The machines a plan is made for, from the options of `deepy.py --plan`, and what was assumed about them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.neox_arguments.errors import UserError
from megatron.planning.calibrated import calibrated_rates
from megatron.planning.calibration import read_calibration
from megatron.planning.gpus import GIB, GPUS, Gpu, find_typed_gpu
from megatron.planning.rates import Rates, assumed_rates

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", start=1)}

DEFAULT_GPU = "A100"
DEFAULT_GPUS_PER_NODE = 8
# One file system for the whole run: what a busy shared disk gives. `--disk-speed` says what yours gives.
DEFAULT_DISK_BYTES_PER_SECOND = 2e9
# The CUDA context, cuBLAS' workspace and NCCL's buffers, which no allocator of torch sees, and what is lost
# to fragmentation. An assumption, not a measurement.
RESERVED_BYTES = 2 * GIB
# Of a GPU's memory no plan uses more: activations differ by up to 5% from what is counted
# (docs/planning.md), kernels have workspaces, and an allocator that is nearly full starts over all the time.
USED_SHARE = 0.95
# More GPUs than any machine has. A plan names every rank's groups, so it grows with them.
MOST_GPUS = 2**18
_LEAST_MEMORY_BYTES = GIB


@dataclass(frozen=True)
class Machine:
    """Nodes of equal GPUs, a disk, and what was assumed about them.

    `memory_bytes` is what a process can have of one GPU, `network_bytes_per_second` one GPU's share of what
    its node sends to others.
    """

    nodes: int
    gpus_per_node: int
    gpu: Gpu
    memory_bytes: int
    disk_bytes_per_second: float
    network_bytes_per_second: float
    rates: Rates
    assumed: tuple[str, ...] = ()

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def planned_bytes(self) -> int:
        """What a run may need of a GPU to be said to fit."""
        return int(USED_SHARE * self.memory_bytes)


def parse_bytes(option: str, text: str) -> int:
    """`40GiB`, `40G`, `80e9`, `2GB/s` in bytes.

    Raises:
        UserError: it is no such number.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgt]i?)?b?(?:/s)?\s*", text, re.IGNORECASE)
    value = float(found[1]) * _UNITS[(found[2] or "").lower()] if found else 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"{option}={text}: is not a number of bytes; write for instance 40GiB, or 80e9")
    return int(value)


def machine_of(
    *,
    nodes: int,
    gpus_per_node: int,
    gpu_name: str | None,
    gpu_memory: str | None,
    disk_speed: str | None,
    network_speed: str | None = None,
    calibrations: Sequence[Path] = (),
    assumed: tuple[str, ...] = (),
) -> Machine:
    """The machine of a plan.

    Raises:
        UserError: an option makes no sense.
    """
    for option, number in (("--nodes", nodes), ("--gpus-per-node", gpus_per_node)):
        if number < 1:
            raise UserError(f"{option}={number}: must be at least 1")
    if nodes * gpus_per_node > MOST_GPUS:
        raise UserError(
            f"--nodes={nodes}: with {gpus_per_node:,} GPUs each these are {nodes * gpus_per_node:,}, and a "
            f"plan is made for at most {MOST_GPUS:,}; use fewer"
        )
    gpu = find_typed_gpu(DEFAULT_GPU if gpu_name is None else gpu_name)
    if gpu is None:
        known = ", ".join(gpu.name.lower().replace(" ", "-") for gpu in GPUS)
        raise UserError(f"--gpu={gpu_name}: is not in megatron/planning/gpus.py; use one of {known}")
    said = list(assumed)
    if gpu_name is None:
        said.append(f"GPUs are {gpu.name} (--gpu)")
    memory_bytes = int(gpu.usable_gib * GIB)
    if gpu_memory is not None:
        memory_bytes = parse_bytes("--gpu-memory", gpu_memory)
        if memory_bytes < _LEAST_MEMORY_BYTES:
            wanted = f"{gpu_memory.strip()}GiB" if gpu_memory.strip().isdigit() else "40GiB"
            raise UserError(
                f"--gpu-memory={gpu_memory}: is {memory_bytes:,} bytes, less than any GPU has; write {wanted}"
            )
    else:
        said.append(f"a process can have {gpu.usable_gib:g} GiB of a GPU's {gpu.memory_gb} GB (--gpu-memory)")
    speed = DEFAULT_DISK_BYTES_PER_SECOND
    if disk_speed is not None:
        speed = float(parse_bytes("--disk-speed", disk_speed))
    else:
        said.append(f"the disk takes {speed / 1e9:g} GB/s from all ranks together (--disk-speed)")
    network = gpu.network_gb_per_second * 1e9
    if network_speed is not None:
        network = float(parse_bytes("--network-speed", network_speed))
    elif nodes > 1:
        said.append(f"a GPU sends {network / 1e9:g} GB/s to other nodes (--network-speed)")
    rates = assumed_rates(gpu)
    if calibrations:
        rates = calibrated_rates(gpu, [(str(path), read_calibration(path)) for path in calibrations])
    said.extend(what_is_assumed(rates, nodes))
    return Machine(nodes, gpus_per_node, gpu, memory_bytes, speed, network, rates, tuple(said))


def what_is_assumed(rates: Rates, nodes: int) -> Iterator[str]:
    """What of the cost model's rates nobody measured on these GPUs."""
    measured = rates.calibration.measured() if rates.calibration is not None else []
    kinds = {
        "matrix_products": "matrix products", "attention": "attention", "pointwise": "pointwise kernels",
        "losses": "the loss", "optimizers": "the optimizer", "steps": "whole steps",
    }  # fmt: skip
    lacking = [words for kind, words in kinds.items() if kind not in measured]
    if lacking:
        yield f"times of {', '.join(lacking)} are assumed, not measured (--calibration)"
    yield f"links reach {rates.node_link_share:.0%} of their rating in a node" + (
        f" and {rates.network_share:.0%} between nodes" if nodes > 1 else ""
    )
