#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Loss curves with fused and plain kernels on real text, and how far bfloat16 alone moves them.

    python benchmarks/loss_curve.py --quickstart quickstart [--steps 200] [--output benchmarks/loss_curve]

Each curve is a run of `deepy.py train.py` of its own, on the tokens that `make quickstart` made, from the
same random weights and in the same order: everything plain; everything fused that this machine has; and what
differs from plain by rounding alone, as a measure of noise: half the micro-batch with twice as many of them,
and float32. Without a GPU the fused kernels of norms, rotary embedding and SwiGLU are those of Triton's
interpreter, which is slow: they are compared in a smaller model, in float32. Writes OUTPUT.json, OUTPUT.md
and two pictures.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import page
from benchmarks.machine import ROOT, describe

# 15.7 M parameters with SmolLM2's 49,152 ids: the loss is most of the work, and the layers are a Llama's.
MODEL: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_kv_heads": 4,
    "intermediate_size": 688,
    "no_weight_tying": False,
    "rotary_emb_base": 10000,
    "seq_length": 256,
}
TRAINING: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 4,
    "train_batch_size": 4,
    "optimizer": {"type": "Adam", "params": {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8}},
    "weight_decay": 0.1,
    "gradient_clipping": 1.0,
    "lr_decay_style": "cosine",
    "warmup_iters": 20,
    "decay_lr_to": 0.1,
    "log_interval": 1,
    "precision": "bfloat16",
    "launcher": "local",
    "num_workers": 0,
}
AVERAGED_STEPS = 10  # in the picture of distances, which jump from step to step
PLAIN = {"fused_kernels": "plain", "cross_entropy_fusion_impl": "native"}
CURVES: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "fused": {"fused_kernels": "auto", "cross_entropy_fusion_impl": "linear"},
    "plain, half the micro-batch": {**PLAIN, "train_micro_batch_size_per_gpu": 2},
    "plain, float32": {**PLAIN, "precision": "fp32"},
}
# 1.7 M parameters.
SMALL = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 88,
    "seq_length": 32,
    "train_batch_size": 2,
    "train_micro_batch_size_per_gpu": 2,
    "precision": "fp32",
}
SMALL_CURVES = {
    "plain": {**PLAIN, **SMALL},
    "fused": {"fused_kernels": "triton", "cross_entropy_fusion_impl": "linear", **SMALL},
    "plain, half the micro-batch": {**PLAIN, **SMALL, "train_micro_batch_size_per_gpu": 1},
}


def train(folder: Path, quickstart: Path, steps: int, changes: dict[str, Any]) -> list[float]:
    """The losses of one run."""
    tokens = (quickstart / "tokens").resolve()
    configuration = {
        **MODEL,
        **TRAINING,
        "train_iters": steps,
        "train_data_paths": [str(tokens / f"{name}_train_text_document") for name in ("python", "latex")],
        "train_data_weights": [1, 1],
        "vocab_file": str((quickstart / "base-hf" / "tokenizer.json").resolve()),
        "tokenizer_type": "HFTokenizer",
        "save": str(folder / "run"),
        "checkpoint_factor": steps,
        **changes,
    }
    folder.mkdir()
    (folder / "run.yml").write_text(yaml.safe_dump(configuration))
    with open(folder / "output", "wb") as output:
        done = subprocess.run(
            [sys.executable, str(ROOT / "deepy.py"), "train.py", str(folder / "run.yml")],
            stdout=output, stderr=subprocess.STDOUT, check=False,
            env={**os.environ, "TRITON_INTERPRET": str(int(not has_gpu()))},
        )  # fmt: skip
    if done.returncode != 0:
        sys.exit((folder / "output").read_text(errors="replace")[-3000:])
    lines = (folder / "run" / "logs" / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if line["kind"] == "step"]


def rows_of(curves: dict[str, list[float]]) -> list[dict[str, Any]]:
    """How far each curve is from the plain one."""
    plain, rows = curves["plain"], []
    for name, losses in curves.items():
        apart = [abs(a - b) for a, b in zip(losses, plain, strict=True)]
        rows.append(
            {
                "curve": name,
                "first": losses[0],
                "last_20": statistics.mean(losses[-20:]),
                "mean_difference": statistics.mean(apart),
                "largest_difference": max(apart),
            }
        )
    return rows


def table(curves: dict[str, list[float]]) -> str:
    cells = [
        (
            row["curve"], f"{row['first']:.4f}", f"{row['last_20']:.4f}", f"{row['mean_difference']:.1e}",
            f"{row['largest_difference']:.1e}",
        )
        for row in rows_of(curves)
    ]  # fmt: skip
    return page.table(("Curve", "First loss", "Mean of the last 20", "Mean difference", "Largest"), cells)


def markdown(content: dict[str, Any]) -> str:
    parts = [
        "# Loss with fused and plain kernels\n",
        page.origin(content["machine"]),
        f"{content['steps']} steps of 4 sequences of 256 tokens of the quickstart's Python and LaTeX, 15.7 M "
        "parameters, from the same weights. Differences are those of each step's loss to the plain curve's, "
        "in nats per token.\n",
        table(content["losses"]),
        f"Fused here: {content['fused']}.\n",
    ]
    if content["small_losses"]:
        parts += [
            "All of Triton's kernels through its interpreter, and the loss with the output layer: 1.7 M "
            "parameters in float32, 2 sequences of 32 tokens.\n",
            table(content["small_losses"]),
        ]
    return "\n".join([*parts, "![Losses](loss_curve.png)\n", "![Distances](loss_curve_distance.png)\n"])


def draw(content: dict[str, Any], path: Path) -> None:
    """The losses, which lie on each other, and beside them how far each curve is from the plain one."""
    import numpy as np

    from megatron.monitoring.plots import draw_legend, plain_axes, write_figure

    groups = {"": content["losses"], "small, float32: ": content["small_losses"]}
    losses_figure, losses_axes = plain_axes("Loss with fused and plain kernels", "step", "nats per token")
    apart_figure, apart_axes = plain_axes(
        f"Distance from the plain curve, mean of {AVERAGED_STEPS} steps", "step", "nats per token"
    )
    for group, curves in groups.items():
        style = "--" if group else "-"
        for name, losses in curves.items():
            steps = np.arange(1, len(losses) + 1)
            losses_axes.plot(steps, losses, label=group + name, linewidth=0.9, alpha=0.8, linestyle=style)
            if name == "plain":
                continue
            apart = np.abs(np.subtract(losses, curves["plain"]))
            means = np.convolve(apart, np.full(AVERAGED_STEPS, 1 / AVERAGED_STEPS), "valid")
            apart_axes.plot(steps[AVERAGED_STEPS - 1 :], means, label=group + name, linestyle=style)
    apart_axes.set_yscale("log")
    for figure, axes, place in (
        (losses_figure, losses_axes, path),
        (apart_figure, apart_axes, path.with_stem(f"{path.stem}_distance")),
    ):
        draw_legend(axes)
        write_figure(figure, place)


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quickstart", type=Path, required=True, help="the folder that `make quickstart` made"
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/loss_curve"))
    options = parser.parse_args()
    on_gpu = has_gpu()
    losses: dict[str, dict[str, list[float]]] = {"losses": {}, "small_losses": {}}
    asked = [("losses", CURVES)] + ([] if on_gpu or not has_triton() else [("small_losses", SMALL_CURVES)])
    with tempfile.TemporaryDirectory(prefix="loss-curve-") as name:
        for group, curves in asked:
            for curve, changes in curves.items():
                folder = Path(name) / f"{group} {curve}"
                losses[group][curve] = train(folder, options.quickstart, options.steps, changes)
                first, *_, last = losses[group][curve]
                print(f"{group}, {curve}: {first:.4f} to {last:.4f}", flush=True)
    content = {
        "machine": describe(),
        "steps": options.steps,
        "fused": "all kernels of docs/kernels.md and the loss"
        if on_gpu
        else "the loss with the output layer",
        **losses,
    }
    page.write(options.output, content, markdown(content))
    draw(content, options.output.with_suffix(".png"))
    print(markdown(content))


if __name__ == "__main__":
    main()
