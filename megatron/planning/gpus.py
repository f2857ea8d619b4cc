# SPDX-License-Identifier: Apache-2.0
"""GPUs by name: peak, memory and links, as NVIDIA's data sheets and the usual machines have them."""

from __future__ import annotations

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
    """

    name: str
    bf16_tflops: float
    memory_gib: int
    node_gb_per_second: float
    network_gb_per_second: float
    kernel_share: float = 0.55


# Longer names first: a CUDA name is matched by all words of a row.
GPUS: tuple[Gpu, ...] = (
    Gpu("A100 80GB", 312.0, 80, 300, 25, kernel_share=0.72),
    Gpu("A100", 312.0, 40, 300, 25, kernel_share=0.72),
    Gpu("A800", 312.0, 80, 200, 25, kernel_share=0.72),
    Gpu("H100 PCIe", 756.0, 80, 64, 25),
    Gpu("GH200", 989.0, 96, 450, 50),
    Gpu("H100", 989.0, 80, 450, 50),
    Gpu("H800", 989.0, 80, 200, 50),
    Gpu("H200", 989.0, 141, 450, 50),
    Gpu("B200", 2250.0, 180, 900, 50),
    Gpu("L40S", 362.0, 48, 32, 12.5),
    Gpu("A40", 149.7, 48, 32, 12.5),
    Gpu("A10", 125.0, 24, 32, 12.5),
)


def find_gpu(name: str) -> Gpu | None:
    """The GPU with a CUDA name such as "NVIDIA A100-SXM4-80GB", or typed as `a100` or `a100-80gb`."""
    wanted = name.lower().replace("-", " ").replace("_", " ")
    for gpu in sorted(GPUS, key=lambda gpu: len(gpu.name), reverse=True):
        if all(word in wanted for word in gpu.name.lower().split()):
            return gpu
    return None


def peak_flops(gpu_name: str) -> float | None:
    """Dense bfloat16 peak of a GPU by its name, in FLOP/s; None where the table has none."""
    gpu = find_gpu(gpu_name)
    return None if gpu is None else gpu.bf16_tflops * 1e12
