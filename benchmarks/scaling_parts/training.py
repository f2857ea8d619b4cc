# SPDX-License-Identifier: Apache-2.0
"""Training as work grows: with the length of sequences, with depth, with the micro-batch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks.scaling_parts.lines import Page
from benchmarks.training_sides.processes import in_own_process
from benchmarks.training_sides.shapes import LLEMMA_7B, SMALL, Shape

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
DEPTHS = (1, 2, 4, 6, 8, 12)
MICRO_BATCHES = (1, 2, 4, 8, 16)


def base_shape() -> Shape:
    """What two CPU cores train in seconds; a GPU takes four of Llemma-7B's layers."""
    return LLEMMA_7B.with_layers(4) if torch.cuda.is_available() else SMALL


def time_step(shape: Shape, micro: int, options: argparse.Namespace) -> dict[str, Any]:
    """A row: the median step of this engine in a process of its own, and what follows from it."""
    request = {
        "side": "engine", "shape": asdict(shape), "layers": shape.layers, "micro": micro, "accumulation": 1,
        "steps": options.steps, "dropped": options.dropped, "dtype": options.dtype, "keys": {}, "trace": None,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }  # fmt: skip
    found = in_own_process(request, options.limit_seconds)
    if "error" in found:
        return {"error": found["error"]}
    # Beside other work the clock on the wall says what that took too.
    clock = "seconds" if torch.cuda.is_available() else "cpu_seconds"
    seconds, tokens = min(found[clock]), micro * shape.tokens
    flops, causal = shape.flops_per_token()
    row = {
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "microseconds_per_token": 1e6 * seconds / tokens,
        "gigaflops_per_token": flops / 1e9,
        "gigaflops_per_token_causal": causal / 1e9,
        "peak_gib": found["peak_bytes"] / 2**30 if "peak_bytes" in found else None,
    }
    print(f"{shape.layers} layers, {micro} x {shape.tokens}: {seconds:.3f} s", file=sys.stderr, flush=True)
    return row


def _measure(
    page: Page,
    key: str,
    values: Sequence[int],
    of: Callable[[int], tuple[Shape, int]],
    options: argparse.Namespace,
) -> Page:
    for value in values:
        row = time_step(*of(value), options)
        if "error" in row:
            page.found.append(f"{value}: {row['error']}.")
            break
        page.rows.append({key: value, **row})
    return page


COLUMNS = {
    "step_seconds": "Step, s",
    "tokens_per_second": "tokens/s",
    "microseconds_per_token": "µs a token",
    "gigaflops_per_token": "GFLOP a token",
    "gigaflops_per_token_causal": "causal at half",
    "peak_gib": "Peak GiB",
}


def _notes(shape: Shape, options: argparse.Namespace) -> list[str]:
    clock = "seconds" if torch.cuda.is_available() else "CPU seconds of the process, with one thread"
    return [
        f"{shape.name}: hidden {shape.hidden}, ffn {shape.ffn}, {shape.heads} heads, vocabulary "
        f"{shape.vocab}; {options.dtype}. A step's time is the fastest of {options.steps} after "
        f"{options.dropped} dropped, in {clock}: other work on the machine makes it longer, never shorter."
    ]


def by_length(options: argparse.Namespace) -> Page:
    """One sequence of 512 to 16,384 tokens a step."""
    shape = base_shape()
    page = Page(
        "Training by sequence length", "tokens", "tokens of a sequence",
        {"microseconds_per_token": "measured"}, "µs a token",
        {"tokens": "Tokens", **COLUMNS}, _notes(shape, options),
    )  # fmt: skip
    lengths = [length for length in LENGTHS if length <= options.most]
    _measure(page, "tokens", lengths, lambda length: (replace(shape, tokens=length), 1), options)
    if len(page.rows) >= 3:
        page.found.append(compare_with_flops(page))
    return page


def compare_with_flops(page: Page) -> str:
    """Attention's share by the clock and by FLOPs: a token costs a + b s, and FLOPs do so too."""
    line = page.lines()["microseconds_per_token"]
    first, last = page.rows[0], page.rows[-1]
    slope = (last["gigaflops_per_token_causal"] - first["gigaflops_per_token_causal"]) / (
        last["tokens"] - first["tokens"]
    )
    constant = first["gigaflops_per_token_causal"] - slope * first["tokens"]
    by_clock, by_flops = line.slope / line.intercept, slope / constant
    page.rows[:] = [{**row, "line": line.at(row["tokens"])} for row in page.rows]
    return (
        "A token attends to those before it, so its cost is a + b s and that of a sequence a s + b s²; "
        f"tokens/s is no straight line, µs a token is. By the clock b/a is {by_clock:.3g} a token, by FLOPs "
        f"(causal) {by_flops:.3g}: attention's FLOPs cost {by_clock / by_flops:.2f} times as much as those "
        f"of the matrices. Attention and matrices are equal at {1 / by_clock:,.0f} tokens."
    )


def by_depth(options: argparse.Namespace) -> Page:
    """Layers; the embedding, the output layer and the loss are the constant."""
    shape = base_shape()
    page = Page(
        "Training by depth", "layers", "layers", {"step_seconds": "step"}, "seconds a step",
        {"layers": "Layers", **COLUMNS}, _notes(shape, options),
    )  # fmt: skip
    depths = [depth for depth in DEPTHS if depth <= options.most]
    _measure(page, "layers", depths, lambda depth: (shape.with_layers(depth), 4), options)
    page.found.append(
        "The constant is the embedding, the output layer, the loss, and what a step costs at all."
    )
    return page


def by_micro_batch(options: argparse.Namespace) -> Page:
    """Sequences of a micro-batch; the optimizer is the constant."""
    shape = base_shape()
    page = Page(
        "Training by micro-batch", "sequences", "sequences of a micro-batch", {"step_seconds": "step"},
        "seconds a step", {"sequences": "Sequences", **COLUMNS}, _notes(shape, options),
    )  # fmt: skip
    sizes = [size for size in MICRO_BATCHES if size <= options.most]
    _measure(page, "sequences", sizes, lambda size: (shape, size), options)
    page.found.append("The constant is the optimizer, and what a step costs at all.")
    return page
