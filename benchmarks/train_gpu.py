#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Training speed on one GPU against peers, at the shapes of Llemma-7B and of a rank of Llemma-34B at TP 8.

    python benchmarks/train_gpu.py --output benchmarks/train_gpu.json [--shapes 7b 34b-tp8] [--sides …]
        [--layers auto|N] [--micro 1] [--accumulation 4] [--set key=value …] [--profile FOLDER]

Every side runs in a process of its own, on the same tokens, one after the other: this engine first (as it
is, its layers compiled, with TransformerEngine's layers and fp8 where that is installed), then transformers
(compiled; with torch's attention, cuDNN's by name and flash-attn where it is installed; Liger's kernels),
torchtitan, litgpt, and plain megatron-core. What is not installed is a row that says so.

With `--layers auto` each side takes the whole depth, or the deepest of its eighths that fits; this engine is
also measured at every depth that a peer ends with, so that speeds are compared at the same depth. Beside
FILE.json come FILE.md, and FILE.calibration.json for `deepy.py … --plan --calibration`.
`--set` gives this engine further configuration keys, such as recompute=selective. On a CPU: `--shapes tiny`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from benchmarks import page
from benchmarks.training_sides.measuring import OUT_OF_MEMORY
from benchmarks.training_sides.processes import in_own_process
from benchmarks.training_sides.report import add_ratios, calibration, fill, markdown, table
from benchmarks.training_sides.shapes import SHAPES
from benchmarks.training_sides.sides import SIDES
from megatron.planning.gpus import peak_flops

# Measures a side at a depth.
Measure = Callable[[str, int], dict[str, Any]]


def measure_sides(names: list[str], depths: list[int], measure: Measure) -> list[dict[str, Any]]:
    """A row a side at the deepest of falling `depths` that fits; the engine at each peer's depth as well."""
    rows: list[dict[str, Any]] = []
    for name in names:
        side = SIDES[name]
        if (package := side.missing()) is not None:
            rows.append({"side": name, "layers": depths[0], "error": f"not installed ({package})"})
            continue
        for layers in depths:
            row = {"side": name, "version": side.version(), "layers": layers, **measure(name, layers)}
            if row.get("error") != OUT_OF_MEMORY or layers == depths[-1]:
                rows.append(row)
                break
    known = {row["layers"] for row in rows if row["side"] == "engine"}
    wanted = {row["layers"] for row in rows if "seconds" in row} - known
    if "engine" in names and known:
        more = [layers for layers in sorted(wanted, reverse=True) if layers < max(known)]
        version = SIDES["engine"].version()
        rows += [{"side": "engine", "version": version, "layers": n, **measure("engine", n)} for n in more]
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["7b", "34b-tp8"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--layers", default="auto", help="auto, or a depth for all sides")
    parser.add_argument("--micro", type=int, default=1, help="sequences of a micro-batch")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches of a step")
    parser.add_argument("--steps", type=int, default=10, help="counted steps of a side")
    parser.add_argument("--dropped", type=int, default=5, help="first steps, which are not counted")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of this engine")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU, where its name is not in the table")
    parser.add_argument("--limit-seconds", type=float, default=600, help="for a side at a depth")
    parser.add_argument(
        "--profile", type=Path, metavar="FOLDER", help="also a trace of two steps of each side"
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    return parser.parse_args()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All shapes and sides; what is written."""
    import torch

    from benchmarks import machine

    keys = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in options.set)}
    where = machine.describe()
    peak = peak_flops(where["device"])
    peak_tflops = options.peak_tflops or (peak / 1e12 if peak is not None else None)
    rows: list[dict[str, Any]] = []
    for name in options.shapes:
        depths = SHAPES[name].depths() if options.layers == "auto" else [int(options.layers)]
        settings = {"shape": name, "micro": options.micro, "accumulation": options.accumulation}

        def measure(side: str, layers: int, settings: dict[str, Any] = settings) -> dict[str, Any]:
            name = f"{settings['shape']}-{side}-{layers}.json.gz"
            trace = options.profile and str(options.profile / name)
            request = {
                **settings, "side": side, "layers": layers,
                "steps": options.steps, "dropped": options.dropped,
                "dtype": options.dtype, "device": "cuda" if torch.cuda.is_available() else "cpu",
                "keys": keys if side.startswith("engine") else {}, "trace": trace,
            }  # fmt: skip
            found = in_own_process(request, options.limit_seconds)
            told = found.get("error") or f"{found['median_seconds']:.3f} s a step"
            print(f"{settings['shape']}: {side}, {layers} layers: {told}", file=sys.stderr, flush=True)
            return {"keys": request["keys"], **found}

        found = [{**settings, **row} for row in measure_sides(options.sides, depths, measure)]
        for row in found:
            fill(row, peak_tflops)
        add_ratios(found)
        rows += found
        print(table(found), flush=True)
    settings = {"steps": options.steps, "dropped": options.dropped, "micro": options.micro}
    settings |= {"accumulation": options.accumulation, "dtype": options.dtype}
    return {"machine": where, "peak_tflops": peak_tflops, "settings": settings, "rows": rows}


def main() -> None:
    options = parse()
    content = run(options)
    if options.output is not None:
        page.write(options.output, content, markdown(content))
        text = json.dumps(calibration(content), indent=1) + "\n"
        options.output.with_suffix(".calibration.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
