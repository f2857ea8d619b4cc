#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Training speed on the CPU, against transformers with torch's fused AdamW: the sides in turn.

    python benchmarks/train_cpu.py [--model small|smollm2] [--steps 10] [--rounds 2] [--output FILE]

Both sides train the same architecture on the same random tokens, each as it is and compiled: transformers as
a whole by torch.compile, this engine with `torch_compile: layer`. Both need a C++ compiler. In bfloat16 there
are two peers: weights and moments in bfloat16, and float32 weights under autocast, which is the precision of
this engine: bfloat16 weights with float32 copies, moments and gradients. Speeds are from the median step of
all rounds; a ratio is the median of the rounds' ratios, with the least and the largest beside it. Each turn
of a side has a process of its own; all of them get the large pages that this engine asks for
(THP_MEM_ALLOC_ENABLE). Writes FILE.json and FILE.md.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import page
from benchmarks.machine import describe
from benchmarks.training_sides.processes import in_own_process
from benchmarks.training_sides.shapes import SHAPES

# Sequences of a batch, by shape.
BATCH = {"small": 4, "smollm2": 4}
ENGINES = ("engine", "engine-compiled")
PEERS = {
    "float32": ("transformers-eager", "transformers"),
    "bfloat16": (
        "transformers-eager",
        "transformers",
        "transformers-autocast-eager",
        "transformers-autocast",
    ),
}
LIMIT_SECONDS = 900


def take_turn(side: str, dtype: str, options: argparse.Namespace) -> list[float]:
    """Seconds of a side's counted steps."""
    request = {
        "side": side, "shape": options.model, "layers": SHAPES[options.model].layers, "dtype": dtype,
        "micro": BATCH[options.model], "accumulation": 1, "steps": options.steps, "dropped": options.dropped,
        "device": "cpu", "keys": {}, "trace": None,
    }  # fmt: skip
    found = in_own_process(request, LIMIT_SECONDS)
    if "error" in found:
        sys.exit(f"error: {side}, {dtype}: {found['error']}")
    seconds: list[float] = found["seconds"]
    return seconds


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each dtype, form of the engine and peer."""
    rows = []
    tokens = BATCH[options.model] * SHAPES[options.model].tokens
    for dtype, peers in PEERS.items():
        sides = (*ENGINES, *peers)
        rounds: dict[str, list[list[float]]] = {side: [] for side in sides}
        for turn in range(options.rounds):
            # Back and forth, so that a machine that grows slower favours nobody.
            for side in sides if turn % 2 == 0 else reversed(sides):
                rounds[side].append(take_turn(side, dtype, options))
        for engine, peer in itertools.product(ENGINES, peers):
            row = {"dtype": dtype, "engine": engine, "peer": peer}
            rows.append({**row, **compare(rounds[engine], rounds[peer], tokens)})
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


def compare(engine: list[list[float]], peer: list[list[float]], tokens: int) -> dict[str, float]:
    """Speeds, and how many times as fast the engine is; from seconds of a step, by round."""

    def speed(rounds: list[list[float]]) -> float:
        return tokens / statistics.median(itertools.chain.from_iterable(rounds))

    ratios = [statistics.median(b) / statistics.median(a) for a, b in zip(engine, peer, strict=True)]
    return {
        "engine_tokens_per_second": round(speed(engine), 1),
        "peer_tokens_per_second": round(speed(peer), 1),
        "ratio": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "largest": round(max(ratios), 3),
    }


NAMES = {
    "engine": "as it is",
    "engine-compiled": "`torch_compile: layer`",
    "transformers-eager": "as it is",
    "transformers": "compiled",
    "transformers-autocast-eager": "under autocast",
    "transformers-autocast": "under autocast, compiled",
}


def markdown(content: dict[str, Any]) -> str:
    """The page beside the JSON."""
    cells = [
        (
            row["dtype"], NAMES[row["engine"]], NAMES[row["peer"]], f"{row['engine_tokens_per_second']:,.1f}",
            f"{row['peer_tokens_per_second']:,.1f}",
            f"{row['ratio']:.2f} ({row['least']:.2f} to {row['largest']:.2f})",
        )
        for row in content["rows"]
    ]  # fmt: skip
    shape = SHAPES[content["model"]]
    return page.text(
        f"Training on a CPU: {shape.name}",
        content["machine"],
        f"{BATCH[content['model']]} sequences of {shape.tokens} tokens a step; {content['steps']} steps "
        f"counted after {content['dropped']} dropped, {content['rounds']} rounds. A ratio is the median "
        "of the rounds' ratios, with the least and the largest.",
        ("dtype", "Engine", "transformers", "tokens/s here", "there", "Ratio"),
        cells,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=BATCH, default="small")
    parser.add_argument("--steps", type=int, default=10, help="counted steps of a side in each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dropped", type=int, default=3, help="first steps that are not counted")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    content = {
        "machine": describe(),
        "model": options.model,
        "steps": options.steps,
        "rounds": options.rounds,
        "dropped": options.dropped,
        "rows": measure(options),
    }
    if options.output is not None:
        page.write(options.output, content, markdown(content))


if __name__ == "__main__":
    main()
