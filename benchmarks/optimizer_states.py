#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""What states of the optimizer in 16 bits cost the loss, and what they take: the same run with each choice.

    python benchmarks/optimizer_states.py [--steps 100] [--output FILE]

A small Llama in bfloat16 learns the bytes of Python's standard library, the same batches in the same order.
`bytes` are those of weights, gradients and optimizer, for each parameter, as they lie in memory. Writes
FILE.json and FILE.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import page
from benchmarks.machine import describe

SEQUENCES, TOKENS, VOCABULARY, PEAK_LR, WARM_UP = 8, 128, 256, 3e-3, 10
MODEL: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_kv_heads": 4,
    "intermediate_size": 352,
    "vocab_size": VOCABULARY,
    "make_vocab_size_divisible_by": 1,
    "seq_length": TOKENS,
    "no_weight_tying": True,
}
MOMENTS = {"exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "bf16"}
# name: keys of the optimizer, format of gradients
CHOICES: dict[str, tuple[dict[str, Any], str]] = {
    "all float32": ({}, "fp32"),
    "remainders": ({"store_param_remainders": True}, "fp32"),
    "moments in bfloat16": (MOMENTS, "fp32"),
    "both": ({**MOMENTS, "store_param_remainders": True}, "fp32"),
    "both, gradients in bfloat16": ({**MOMENTS, "store_param_remainders": True}, "bf16"),
    "beta2 0.999: all float32": ({"adam_beta2": 0.999}, "fp32"),
    "beta2 0.999: moments in bfloat16": ({"adam_beta2": 0.999, **MOMENTS}, "fp32"),
}


def batches() -> Iterator[torch.Tensor]:
    """Bytes of the library's modules, [SEQUENCES, TOKENS + 1], drawn at random places."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    while True:
        starts = torch.randint(0, len(ids) - TOKENS - 1, (SEQUENCES,), generator=generator).tolist()
        yield torch.stack([ids[start : start + TOKENS + 1] for start in starts]).long()


def train(name: str, steps: int) -> dict[str, Any]:
    """One choice: the loss of every step, and bytes a parameter."""
    from megatron.backend import initialize
    from megatron.data.loader import MicroBatch
    from megatron.model import build
    from megatron.neox_arguments.config import RunConfig
    from megatron.trainer.adam import give_to_megatron_core
    from megatron.trainer.paper import bytes_of, optimizer_bytes
    from megatron.trainer.setup import TrainingState, wrap
    from megatron.trainer.step import compute_gradients, reduce_over_ranks, update_weights

    optimizer, gradients = CHOICES[name]
    cfg = RunConfig.model_validate(
        {
            "model": MODEL,
            "precision": {"precision": "bfloat16", "grad_accum_dtype": gradients},
            "batch": {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": SEQUENCES // 2},
            "optimizer": {"lr": PEAK_LR, "adam_beta2": 0.95, "weight_decay": 0.1, **optimizer},
            "schedule": {"train_iters": steps},
        }
    )
    backend = initialize(cfg.parallel, seed=0)
    give_to_megatron_core()
    built = build(cfg, backend, VOCABULARY, VOCABULARY)
    state = TrainingState(built, wrap(cfg, built))
    mask_BS, losses = torch.ones(2, TOKENS), []
    for step, sequences_BS in zip(range(steps), batches(), strict=False):
        parts = [
            MicroBatch(part[:, :-1].contiguous(), part[:, 1:].contiguous(), mask_BS, torch.arange(2))
            for part in sequences_BS.split(2)
        ]
        local = compute_gradients(state, cfg, backend, iter(parts))
        losses.append(reduce_over_ranks(local, [], backend)[0])
        update_weights(state, cfg, PEAK_LR * min(1.0, (step + 1) / WARM_UP))
    weights = list(state.model.module.parameters())
    held = bytes_of(weights) + bytes_of(buffer.grad_data for buffer in state.model.buffers)
    held += optimizer_bytes(state.trainable.optimizer, weights)
    return {
        "losses": losses,
        "bytes": held / built.parameters_on_rank,
        "parameters": built.parameters_on_rank,
    }


def markdown(content: dict[str, Any]) -> str:
    """The page beside the JSON."""
    found, cells = content["choices"], []
    for name, one in found.items():
        plain = found["beta2 0.999: all float32" if name.startswith("beta2") else "all float32"]["losses"]
        apart = [a - b for a, b in zip(one["losses"], plain, strict=True)]
        last = len(apart[-20:])
        cells.append(
            (
                name, f"{one['bytes']:.1f}", f"{sum(one['losses'][-20:]) / last:.4f}",
                f"{sum(apart[-20:]) / last:+.1e}", f"{max(map(abs, apart)):.1e}",
            )
        )  # fmt: skip
    head = ("States", "Bytes a parameter", "Loss, last 20 steps", "Less float32's", "Most apart at a step")
    said = f"{len(found['all float32']['losses'])} steps; speed is not measured."
    return page.text("States of the optimizer in 16 bits", content["machine"], said, head, cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = {}
    for name in CHOICES:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[name] = pool.apply(train, (name, options.steps))
        print(f"{name}: {found[name]['losses'][0]:.4f} to {found[name]['losses'][-1]:.4f}", file=sys.stderr)
    content = {"machine": describe(), "choices": found}
    print(markdown(content))
    if options.output is not None:
        page.write(options.output, content, markdown(content))


if __name__ == "__main__":
    main()
