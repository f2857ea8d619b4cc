#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""The three products of a linear layer in training, in float32: what the engine takes against torch.matmul.

    OMP_NUM_THREADS=2 python benchmarks/products_cpu.py --output benchmarks/products_cpu

For N tokens: x W^T [N, out], its gradients' products g W [N, in] and g^T x [out, in]. The two ways in turn; a
time is the median of --calls after three that do not count. Errors are relative to the product in float64.
Writes FILE.json and FILE.md.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import page, timed_calls
from megatron.backend import cpu_engine, cpu_products
from megatron.model.kernel_choice import relative_difference

# Tokens, width before, width after.
SHAPES = {
    "8.4 M, gate and up": (2048, 256, 1376),
    "8.4 M, down": (2048, 688, 256),
    "8.4 M, output layer": (2048, 256, 10240),
    "SmolLM2-135M, gate and up": (1024, 576, 3072),
    "SmolLM2-135M, down": (1024, 1536, 576),
    "SmolLM2-135M, output layer": (1024, 576, 49152),
    "7B, gate and up": (1024, 4096, 22016),
}
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
WAYS: dict[str, Product] = {"torch": torch.matmul, "engine": cpu_products.matmul}


def operands(tokens: int, before: int, after: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What each of the three products is of, laid out as in a training step."""
    generator = torch.Generator().manual_seed(0)
    x, weight, gradient = (
        torch.randn(size, generator=generator)
        for size in ((tokens, before), (after, before), (tokens, after))
    )
    return {"x W^T": (x, weight.t()), "g W": (gradient, weight), "g^T x": (gradient.t(), x)}


def rows(calls: int) -> Iterator[dict[str, Any]]:
    for name, shape in SHAPES.items():
        for what, (left, right) in operands(*shape).items():
            ways = {way: functools.partial(product, left, right) for way, product in WAYS.items()}
            medians = timed_calls.median_ms(ways, calls)
            exact = left.double() @ right.double()
            row: dict[str, Any] = {"shape": name, "sizes": list(shape), "product": what}
            for way, product in WAYS.items():
                row[f"{way}_ms"] = medians[way]
                row[f"{way}_error"] = relative_difference(product(left, right), exact)
            yield {**row, "ratio": row["torch_ms"] / row["engine_ms"]}


def in_markdown(found: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    head = ("Layer", "N, in, out", "Product", "torch.matmul, ms", "engine, ms", "times as fast",
            "error, torch", "engine")  # fmt: skip
    cells = [
        (
            row["shape"], ", ".join(f"{size:,}" for size in row["sizes"]), f"`{row['product']}`",
            f"{row['torch_ms']:.2f}", f"{row['engine_ms']:.2f}", f"{row['ratio']:.2f}",
            f"{row['torch_error']:.1e}", f"{row['engine_error']:.1e}",
        )
        for row in found
    ]  # fmt: skip
    library = "oneDNN" if cpu_products.onednn_is_faster() else "torch.matmul too"
    said = f"float32; the engine takes {library} here. {timed_calls.SAID}"
    return page.text("Products of a linear layer on a CPU", machine, said, head, cells)


if __name__ == "__main__":
    cpu_engine.keep_freed_memory()  # as a run does, so that nobody waits for new memory
    cpu_products.take_the_faster_library()
    timed_calls.run(__doc__, rows, in_markdown)
