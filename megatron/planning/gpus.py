# SPDX-License-Identifier: Apache-2.0
"""GPUs by name: peak, memory and links, as NVIDIA's data sheets and the usual machines have them."""

from __future__ import annotations

import re
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One model of GPU.

    `bf16_tflops` is the dense bfloat16 peak, without sparsity. `node_gb_per_second` is what one GPU sends to
    the others of its node (one direction of NVLink, or of PCIe where there is none), `network_gb_per_second`
    its share of the network between nodes in the machine it is usually sold in: DGX A100 and H100 have one
    network card a GPU, of 200 and 400 Gbit/s. `kernel_share` is the share of the peak that a layer's kernels
    reach when nobody waits for communication; docs/planning.md says from which published runs.
    `memory_gb` is the figure it is sold with, `usable_gib` what its driver gives to a process (CUDA's
    totalGlobalMem, with ECC on, as A10, A40 and L40S have it when they are delivered).
    """

    name: str
    bf16_tflops: float
    memory_gb: int
    usable_gib: float
    node_gb_per_second: float
    network_gb_per_second: float
    kernel_share: float = 0.55


# A CUDA name is matched by all words of a row, and by the row with the most.
GPUS: tuple[Gpu, ...] = (
    Gpu("A100 80GB", 312.0, 80, 79.1, 300, 25, kernel_share=0.72),
    Gpu("A100", 312.0, 40, 39.4, 300, 25, kernel_share=0.72),
    Gpu("A800", 312.0, 80, 79.1, 200, 25, kernel_share=0.72),
    Gpu("H100 PCIe", 756.0, 80, 79.1, 64, 25),
    Gpu("H100 NVL", 835.0, 94, 93.1, 64, 25),
    Gpu("GH200", 989.0, 96, 94.5, 450, 50),
    Gpu("H100", 989.0, 80, 79.1, 450, 50),
    Gpu("H800", 989.0, 80, 79.1, 200, 50),
    Gpu("H200", 989.0, 141, 139.7, 450, 50),
    Gpu("B200", 2250.0, 180, 178.3, 900, 50),
    Gpu("L40S", 362.0, 48, 44.4, 32, 12.5),
    Gpu("A40", 149.7, 48, 44.4, 32, 12.5),
    Gpu("A10", 125.0, 24, 22.0, 32, 12.5),
)


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
