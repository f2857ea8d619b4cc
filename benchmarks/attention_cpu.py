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

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import page, timed_calls
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


def there_and_back(kernel: Kernel, inputs: Tensors, gradient: torch.Tensor) -> None:
    torch.autograd.grad(kernel(inputs[0], inputs[1], inputs[2], Settings()), list(inputs), gradient)


def rows(calls: int) -> Iterator[dict[str, Any]]:
    for dtype in (torch.bfloat16, torch.float32):
        for name, shape in SHAPES.items():
            task = attention_task(shape, torch.device("cpu"), dtype)
            inputs = task.inputs(False)
            exact = forward_backward(
                task, math_attention, [x.detach().double().requires_grad_() for x in inputs]
            )
            gradient = torch.ones_like(inputs[0])
            kernels = {"flash": sdpa, "blocks": blocks}
            ways = {
                side: functools.partial(there_and_back, kernel, inputs, gradient)
                for side, kernel in kernels.items()
            }
            medians = timed_calls.median_ms(ways, calls)
            row: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "shape": name, **vars(shape)}
            for side, kernel in kernels.items():
                found = forward_backward(task, kernel, inputs)
                row[f"{side}_ms"] = medians[side]
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
    said = f"Forward and backward. {timed_calls.SAID}"
    return page.text("Attention on a CPU", machine, said, head, cells)


if __name__ == "__main__":
    timed_calls.run(__doc__, rows, in_markdown)
