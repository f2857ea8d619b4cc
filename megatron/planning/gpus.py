# SPDX-License-Identifier: Apache-2.0
"""GPUs by name: peak, memory and links, as NVIDIA's data sheets and the usual machines have them.

What of these figures kernels and collectives reach is in rates.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import Problem

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One model of GPU.

    `bf16_tflops` is the dense bfloat16 peak, without sparsity. `node_gb_per_second` is what one GPU sends to
    the others of its node (one direction of NVLink, or of PCIe where there is none), `network_gb_per_second`
    its share of the network between nodes in the machine it is usually sold in: DGX A100 and H100 have one
    network card a GPU, of 200 and 400 Gbit/s. `memory_gb_per_second` is its memory's (HBM, or GDDR6).
    `memory_gb` is the figure it is sold with, `usable_gib` what its driver gives to a process (CUDA's
    totalGlobalMem, with ECC on, as A10, A40 and L40S have it when they are delivered). `host_gb_per_second`
    is one direction of the bus to the host: PCIe 4.0 or 5.0 with 16 lanes, or NVLink-C2C.
    """

    name: str
    bf16_tflops: float
    memory_gb: int
    usable_gib: float
    node_gb_per_second: float
    network_gb_per_second: float
    memory_gb_per_second: float
    multiprocessors: int
    generation: str
    host_gb_per_second: float = 32.0

    @property
    def fp8_tflops(self) -> float:
        """Dense fp8 peak: twice that of bfloat16 from Ada and Hopper on, 0 before."""
        return 0.0 if self.generation == "ampere" else 2 * self.bf16_tflops


# Data sheets of NVIDIA: A100 (2021), H100 (2023), H200 (2024), B200 (DGX B200, 2024), L40S, A40, A10. The
# multiprocessors are those of the white papers on Ampere (2020), Hopper (2022), Ada and Blackwell.
# A CUDA name is matched by all words of a row, and by the row with the most.
GPUS: tuple[Gpu, ...] = (
    Gpu("A100 80GB", 312.0, 80, 79.1, 300, 25, 2039, 108, "ampere"),
    Gpu("A100", 312.0, 40, 39.4, 300, 25, 1555, 108, "ampere"),
    Gpu("A800", 312.0, 80, 79.1, 200, 25, 2039, 108, "ampere"),
    Gpu("H100 PCIe", 756.0, 80, 79.1, 64, 25, 2000, 114, "hopper", 64.0),
    Gpu("H100 NVL", 835.0, 94, 93.1, 64, 25, 3900, 132, "hopper", 64.0),
    Gpu("GH200", 989.0, 96, 94.5, 450, 50, 4000, 132, "hopper", 450.0),
    Gpu("H100", 989.0, 80, 79.1, 450, 50, 3350, 132, "hopper", 64.0),
    Gpu("H800", 989.0, 80, 79.1, 200, 50, 3350, 132, "hopper", 64.0),
    Gpu("H200", 989.0, 141, 139.7, 450, 50, 4800, 132, "hopper", 64.0),
    Gpu("B200", 2250.0, 180, 178.3, 900, 50, 8000, 148, "blackwell", 64.0),
    Gpu("L40S", 362.0, 48, 44.4, 32, 12.5, 864, 142, "ada"),
    Gpu("A40", 149.7, 48, 44.4, 32, 12.5, 696, 84, "ampere"),
    Gpu("A10", 125.0, 24, 22.0, 32, 12.5, 600, 72, "ampere"),
)


# The generations that have the products of a recipe (docs/gpus.md): fp8 itself came with Ada and Hopper, the
# scales of blocks of 128 with Hopper, those of blocks of 32 with Blackwell.
_FP8_GENERATIONS = {
    "tensorwise": ("ada", "hopper", "blackwell"),
    "delayed": ("ada", "hopper", "blackwell"),
    "blockwise": ("hopper", "blackwell"),
    "mxfp8": ("blackwell",),
}


def fp8_problems(cfg: RunConfig, gpu: Gpu) -> Iterator[Problem]:
    """What keeps the layers' products of `cfg` from being computed in fp8 on such a GPU."""
    asked, name = cfg.acceleration, gpu.name
    if asked.fp8_format is None or gpu.generation in _FP8_GENERATIONS[asked.fp8_recipe]:
        return
    if gpu.generation not in _FP8_GENERATIONS["tensorwise"]:
        remedy = "plan for a GPU that has it, as --gpu h100, or leave fp8_format out"
        yield Problem("fp8_format", asked.fp8_format, f"needs a GPU with fp8, and {name} has none", remedy)
        return
    able = " or ".join(one.capitalize() for one in _FP8_GENERATIONS[asked.fp8_recipe])
    constraint = f"needs a GPU of the generation {able}, and {name} is {gpu.generation.capitalize()}"
    yield Problem("fp8_recipe", asked.fp8_recipe, constraint, "use fp8_recipe: tensorwise, or another --gpu")


def find_gpu(name: str) -> Gpu | None:
    """The GPU with a CUDA name such as "NVIDIA A100-SXM4-80GB", or typed as `a100` or `a100-80gb`.

    Whole words count: an RTX A1000 is no A100. A part of a GPU (MIG) has neither its peak nor its memory.
    """
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    if "mig" in words:
        return None
    fitting = [gpu for gpu in GPUS if words >= set(gpu.name.lower().split())]
    return max(fitting, key=lambda gpu: len(gpu.name.split()), default=None)


def find_typed_gpu(name: str) -> Gpu | None:
    """The GPU that a person means; none where the memory in the name, as in `a100-64gb`, is not its own."""
    memory = re.compile(r"\b(\d+)[\s-]*(?:gi?b?)?\b")
    text = name.lower().replace("_", " ")
    gpu, sizes = find_gpu(memory.sub(r"\1gb", text)), memory.findall(text)
    return gpu if gpu is not None and all(int(size) == gpu.memory_gb for size in sizes) else None


def peak_flops(gpu_name: str) -> float | None:
    """Dense bfloat16 peak of a GPU by its name, in FLOP/s; None where the table has none."""
    gpu = find_gpu(gpu_name)
    return None if gpu is None else gpu.bf16_tflops * 1e12
