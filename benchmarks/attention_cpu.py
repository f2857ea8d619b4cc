#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Attention on this CPU: the engine's products over blocks of queries against torch's flash kernel.

    OMP_NUM_THREADS=2 python benchmarks/attention_cpu.py --output benchmarks/attention_cpu

Forward and backward of one layer, the two kernels in turn; a time is the median of --calls after three that
do not count. Errors are relative to the formula in float64, the worst of the result and the gradients of
q, k, v.
Writes FILE.json and FILE.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import page
from benchmarks.machine import describe
from megatron.model import cpu_attention
from megatron.model.attention import AttentionShape, attention_task
from megatron.model.attention_kernels import Kernel, Settings, math_attention, sdpa
from megatron.model.kernel_choice import Tensors, forward_backward, relative_difference

SHAPES = {
    "8.4 M": AttentionShape(512, 4, 8, 4, 32),
    "SmolLM2-135M": AttentionShape(512, 4, 9, 3, 64),
    "SmolLM2-135M, 2,048 tokens": AttentionShape(2048, 1, 9, 3, 64),
    "SmolLM2-135M, 4,096 tokens": AttentionShape(4096, 1, 9, 3, 64),
    "7B, 1,024 tokens": AttentionShape(1024, 1, 32, 32, 128),
}


def blocks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, how: Settings) -> torch.Tensor:
    """The engine's own kernel, also where it would take torch's."""
    return cpu_attention.block_attention(q, k, v, q.size(-1) ** -0.5)


def seconds_of(kernel: Kernel, inputs: Tensors, gradient: torch.Tensor) -> float:
    began = time.perf_counter()
    torch.autograd.grad(kernel(inputs[0], inputs[1], inputs[2], Settings()), list(inputs), gradient)
    return time.perf_counter() - began


def rows(calls: int) -> Iterator[dict[str, Any]]:
    for dtype in (torch.bfloat16, torch.float32):
        for name, shape in SHAPES.items():
            task = attention_task(shape, torch.device("cpu"), dtype)
            inputs = task.inputs(False)
            exact = forward_backward(
                task, math_attention, [x.detach().double().requires_grad_() for x in inputs]
            )
            gradient = torch.ones_like(inputs[0])
            seconds: dict[str, list[float]] = {"flash": [], "blocks": []}
            kernels = {"flash": sdpa, "blocks": blocks}
            for _ in range(calls + 3):
                for side, kernel in kernels.items():
                    seconds[side].append(seconds_of(kernel, inputs, gradient))
            row: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "shape": name, **vars(shape)}
            for side, kernel in kernels.items():
                found = forward_backward(task, kernel, inputs)
                row[f"{side}_ms"] = 1e3 * statistics.median(seconds[side][3:])
                row[f"{side}_error"] = max(
                    relative_difference(*pair) for pair in zip(found, exact, strict=True)
                )
            row["ratio"] = row["flash_ms"] / row["blocks_ms"]
            taken = cpu_attention.takes_blocks(shape.tokens, dtype, 0.0)
            row["taken"] = "blocks" if taken else "flash"
            yield row


def in_markdown(found: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    head = ("Shape", "dtype", "torch's flash, ms", "blocks, ms", "times as fast", "error, flash", "blocks",
            "taken")  # fmt: skip
    cells = [
        (
            row["shape"], row["dtype"], f"{row['flash_ms']:.1f}", f"{row['blocks_ms']:.1f}",
            f"{row['ratio']:.2f}", f"{row['flash_error']:.1e}", f"{row['blocks_error']:.1e}", row["taken"],
        )
        for row in found
    ]  # fmt: skip
    said = "Forward and backward; the median of the calls after three that are dropped."
    return page.text("Attention on a CPU", machine, said, head, cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=15)
    parser.add_argument("--output", type=Path, help="writes FILE.json and FILE.md, too")
    options = parser.parse_args()
    machine, found = describe(), list(rows(options.calls))
    text = in_markdown(found, machine)
    print(text)
    if options.output is not None:
        page.write(options.output, {"machine": machine, "rows": found}, text)


if __name__ == "__main__":
    main()
