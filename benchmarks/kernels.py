#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Kernels one by one at the shapes of Llemma's layers: errors and, on a GPU, speed.

    python benchmarks/kernels.py fused --output benchmarks/kernels_fused
    python benchmarks/kernels.py attention --output benchmarks/kernels_attention

Each writes FILE.json and FILE.md. Shapes are those of one rank with 4,096 tokens: 7B at TP 2, 34B at TP 8,
both with sequence parallelism. Time is the GPU's, by events, with its caches emptied before each call: the
median of --calls after three that do not count. GB/s is what has to be read and written at least, divided by
the time, the same for every kernel of a row's kind; TFLOP/s counts half of the square of causal attention,
and 2.5 times the forward pass for the backward pass. Without a GPU it says so: errors are those of Triton's
interpreter on small shapes, and speed is not measured.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import page
from benchmarks.kernel_errors import GPU_SHAPES, IS_INTERPRETED, Error, all_errors, subjects
from benchmarks.machine import describe
from megatron.model.attention import AttentionShape, attention_task
from megatron.model.attention_kernels import cuda_kernels, math_attention
from megatron.model.fused_kernels import LayerShape
from megatron.model.kernel_choice import (
    Candidate,
    Task,
    cuda_clock,
    forward_backward,
    relative_difference,
    why_unfit,
)

NOT_MEASURED = "not measured"
Row = dict[str, Any]


def least_bytes(what: str, shape: LayerShape, element_bytes: int) -> tuple[int, int]:
    """Bytes that must be read and written, forward and backward: inputs and results once each.

    A norm reads x and writes y; then it reads x and dL/dy, and writes dL/dx. SwiGLU reads two widths and
    writes one; then it reads three and writes two. Rotary reads and writes the product each way.
    """
    tokens = shape.tokens * shape.sequences
    if what.startswith("rmsnorm"):
        row = shape.norm_tokens * shape.sequences * shape.hidden * element_bytes
        return 2 * row, 3 * row
    if what == "rotary":
        row = tokens * shape.kv_heads * (shape.queries + 2) * shape.head_dim * element_bytes
        return 2 * row, 2 * row
    row = tokens * shape.ffn * element_bytes
    return 3 * row, 5 * row


def times_of(task: Task[Any], kernel: Callable[..., Any], calls: int) -> tuple[float, float]:
    """Seconds forward, and forward and backward."""
    inputs = task.inputs(False)
    clock = functools.partial(cuda_clock, timed_calls=calls)
    forward = clock(lambda: task.call(kernel, inputs))
    gradients = [torch.ones_like(result) for result in task.call(kernel, inputs)]
    both = clock(lambda: torch.autograd.grad(list(task.call(kernel, inputs)), list(inputs), gradients))
    return forward, both


def _itself(kernel: Callable[..., Any]) -> Callable[..., Any]:
    return kernel


def speed_of_fused(calls: int) -> Iterator[Row]:
    """A row for each kernel and shape in bfloat16. Without a GPU, rows without times."""
    device = torch.device("cpu" if IS_INTERPRETED else "cuda")
    for name, shape in GPU_SHAPES.items():
        for what, (task, candidates, twin) in subjects(shape, device, torch.bfloat16):
            forward_bytes, backward_bytes = least_bytes(what, shape, 2)
            sides = [Candidate("twin", functools.partial(_itself, twin)), *candidates]
            for side in sides:
                row: Row = {"what": what, "shape": name, "kernel": side.name}
                if IS_INTERPRETED:
                    yield {**row, "speed": NOT_MEASURED}
                elif unfit := why_unfit(task, side):
                    yield {**row, "speed": unfit}
                else:
                    forward, both = times_of(task, side.load(), calls)
                    yield {
                        **row,
                        "forward_ms": forward * 1e3,
                        "both_ms": both * 1e3,
                        "forward_gb_s": forward_bytes / forward / 1e9,
                        "both_gb_s": (forward_bytes + backward_bytes) / both / 1e9,
                    }


ATTENTION_SHAPES = {
    "7B, TP 1": AttentionShape(4096, 1, 32, 32, 128),
    "7B, TP 2": AttentionShape(4096, 1, 16, 16, 128),
    "34B, TP 8": AttentionShape(4096, 1, 8, 1, 128),
}


def attention_rows(calls: int) -> Iterator[Row]:
    """A row for each attention kernel and shape in bfloat16: errors beside torch's math kernel's, speed."""
    for name, shape in ATTENTION_SHAPES.items():
        flops = 2 * shape.tokens**2 * shape.sequences * shape.heads * shape.head_dim  # half of the square
        if IS_INTERPRETED:
            for candidate in cuda_kernels((9, 0), False):
                yield {"shape": name, "kernel": candidate.name, "speed": NOT_MEASURED}
            continue
        task = attention_task(shape, torch.device("cuda"), torch.bfloat16)
        inputs = task.inputs(False)
        exact = forward_backward(task, math_attention, [x.detach().double().requires_grad_() for x in inputs])
        plain = _worst(forward_backward(task, math_attention, inputs), exact)
        for candidate in cuda_kernels(torch.cuda.get_device_capability(), False):
            row: Row = {"shape": name, "kernel": candidate.name, "math_error": plain}
            if unfit := why_unfit(task, candidate):
                yield {**row, "speed": unfit}
                continue
            kernel = candidate.load()
            forward, both = times_of(task, kernel, calls)
            yield {
                **row,
                "error": _worst(forward_backward(task, kernel, inputs), exact),
                "forward_ms": forward * 1e3,
                "both_ms": both * 1e3,
                "forward_tflop_s": flops / forward / 1e12,
                "both_tflop_s": 3.5 * flops / both / 1e12,
            }


def _worst(found: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    return max(relative_difference(*pair) for pair in zip(found, exact, strict=True))


def errors_in_markdown(errors: Sequence[Error]) -> list[str]:
    where = "Triton's interpreter, small shapes" if IS_INTERPRETED else "on this GPU"
    rows = [
        (e.what, e.shape, e.kernel, e.dtype, e.quantity or e.reason, e.error, e.plain if e.quantity else None)
        for e in errors
    ]
    header = ("Kernel of", "Shape", "From", "dtype", "Quantity", "Error", "Plain twin's")
    return [f"## Errors against the formula in float64 ({where})\n", page.table(header, rows)]


def speed_in_markdown(rows: Sequence[Row], unit: str) -> list[str]:
    keys = ["forward_ms", "both_ms", f"forward_{unit}", f"both_{unit}"]
    named = unit.replace("gb_s", "GB/s").replace("tflop_s", "TFLOP/s")
    has_errors = any("error" in row for row in rows)
    header = [
        "Kernel of",
        "Shape",
        "From",
        "Forward, ms",
        "With backward, ms",
        f"Forward, {named}",
        f"Both, {named}",
    ]
    cells = []
    for row in rows:
        times = [row.get(key) for key in keys]
        if "speed" in row:
            times[0] = row["speed"]
        errors = [row.get("error"), row.get("math_error")] if has_errors else []
        cells.append([row.get("what", "attention"), row["shape"], row["kernel"], *times, *errors])
    header += ["Error", "Math's"] if has_errors else []
    return ["## Speed, bfloat16\n", page.table(header, cells)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=("fused", "attention"))
    parser.add_argument("--calls", type=int, default=30, help="timed calls of each kernel")
    parser.add_argument("--output", type=Path, help="writes FILE.json and FILE.md instead of printing")
    options = parser.parse_args()
    content: Row = {"machine": describe(), "table": options.table}
    parts = [f"# Kernels: {options.table}\n", page.origin(content["machine"])]
    if IS_INTERPRETED:
        parts.append("There is no GPU here: speed is not measured.\n")
    if options.table == "fused":
        errors = all_errors()
        content["errors"] = [vars(error) for error in errors]
        content["speed"] = list(speed_of_fused(options.calls))
        parts += errors_in_markdown(errors) + speed_in_markdown(content["speed"], "gb_s")
    else:
        content["speed"] = list(attention_rows(options.calls))
        parts += speed_in_markdown(content["speed"], "tflop_s")
    if options.output is None:
        print("\n".join(parts))
    else:
        page.write(options.output, content, "\n".join(parts))


if __name__ == "__main__":
    main()
