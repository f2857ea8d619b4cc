#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Training speed on the CPU, against transformers with torch's fused AdamW: the sides in turn.

    python benchmarks/train_cpu.py [--model small|smollm2] [--steps 10] [--rounds 2] [--output FILE.json]

Both sides train the same architecture on the same random tokens. In bfloat16 there are two peers: weights
and moments in bfloat16 ("bfloat16"), and float32 weights under autocast ("autocast"), which is the precision
of this engine: bfloat16 weights with float32 copies, moments and gradients. A figure is tokens a second from
the median step of all rounds. A turn has a process of its own, as a run has: in one that has trained before,
either side finds its memory cold. The peer gets the engine's large pages (THP_MEM_ALLOC_ENABLE) too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

# small: 8.4 M parameters; smollm2: the shape of SmolLM2-135M. Sizes of a batch: sequences, tokens.
MODELS: dict[str, dict[str, Any]] = {
    "small": {
        "num_layers": 4,
        "hidden_size": 256,
        "num_attention_heads": 8,
        "num_kv_heads": 4,
        "intermediate_size": 688,
        "vocab_size": 10240,
        "no_weight_tying": True,
        "batch": (4, 512),
    },
    "smollm2": {
        "num_layers": 30,
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_kv_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "no_weight_tying": False,
        "batch": (4, 256),
    },
}
LR, BETAS, WEIGHT_DECAY, CLIP = 1e-4, (0.9, 0.95), 0.1, 1.0

Step = Callable[[torch.Tensor], float]


def transformers_step(keys: dict[str, Any], dtype: str) -> Step:
    """One step of transformers' Llama: forward, backward, clipping, fused AdamW. `dtype` as in the table."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=keys["num_layers"],
        hidden_size=keys["hidden_size"],
        num_attention_heads=keys["num_attention_heads"],
        num_key_value_heads=keys["num_kv_heads"],
        intermediate_size=keys["intermediate_size"],
        vocab_size=keys["vocab_size"],
        tie_word_embeddings=not keys["no_weight_tying"],
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    if dtype == "bfloat16":
        model.to(torch.bfloat16)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )
    is_autocast = dtype == "autocast"

    def step(sequences_BS: torch.Tensor) -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16) if is_autocast else contextlib.nullcontext():
            logits_BSV = model(sequences_BS[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(
            logits_BSV.float().flatten(0, 1), sequences_BS[:, 1:].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    return step


def engine_step(keys: dict[str, Any], dtype: str) -> Step:
    """One step of this engine, through the functions that the training loop calls."""
    from megatron.backend import initialize
    from megatron.data.loader import MicroBatch
    from megatron.model import build
    from megatron.neox_arguments.config import RunConfig
    from megatron.trainer.adam import give_to_megatron_core
    from megatron.trainer.setup import TrainingState, wrap
    from megatron.trainer.step import compute_gradients, reduce_over_ranks, update_weights

    sequences, tokens = keys["batch"]
    model = {key: value for key, value in keys.items() if key != "batch"}
    cfg = RunConfig.model_validate(
        {
            "model": {**model, "seq_length": tokens, "make_vocab_size_divisible_by": 1},
            "precision": {"precision": {"float32": "fp32"}.get(dtype, dtype)},
            "batch": {"train_micro_batch_size_per_gpu": sequences},
            "optimizer": {
                "lr": LR,
                "adam_beta1": BETAS[0],
                "adam_beta2": BETAS[1],
                "weight_decay": WEIGHT_DECAY,
                "gradient_clipping": CLIP,
            },
            "schedule": {"train_iters": 1000},
        }
    )
    backend = initialize(cfg.parallel, seed=0)
    give_to_megatron_core()
    built = build(cfg, backend, keys["vocab_size"], keys["vocab_size"])
    state = TrainingState(built, wrap(cfg, built))
    mask_BS, ids_B = torch.ones(sequences, tokens), torch.arange(sequences)

    def step(sequences_BS: torch.Tensor) -> float:
        batch = MicroBatch(
            sequences_BS[:, :-1].contiguous(), sequences_BS[:, 1:].contiguous(), mask_BS, ids_B
        )
        loss = reduce_over_ranks(compute_gradients(state, cfg, backend, iter([batch])), [], backend)[0]
        update_weights(state, cfg, LR)
        return loss

    return step


def random_sequences(keys: dict[str, Any]) -> Iterator[torch.Tensor]:
    sequences, tokens = keys["batch"]
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randint(0, keys["vocab_size"], (sequences, tokens + 1), generator=generator)


def time_steps(side: str, dtype: str, model: str, steps: int, dropped: int) -> list[float]:
    """Trains one side; the seconds of its steps after the first `dropped`."""
    keys = MODELS[model]
    step = (engine_step if side == "engine" else transformers_step)(keys, dtype)
    sequences, seconds = random_sequences(keys), []
    for number in range(steps + dropped):
        batch = next(sequences)
        started = time.perf_counter()
        step(batch)
        if number >= dropped:
            seconds.append(time.perf_counter() - started)
    return seconds


def take_turn(side: str, dtype: str, *arguments: Any) -> list[float]:
    """`time_steps` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(time_steps, (side, dtype, *arguments))


def measure(model: str, steps: int, dropped: int, rounds: int) -> list[dict[str, Any]]:
    """One row for each dtype and peer."""
    rows = []
    tokens = math.prod(MODELS[model]["batch"])
    for ours, peers in (("float32", ["float32"]), ("bfloat16", ["bfloat16", "autocast"])):
        sides = [("engine", ours), *(("transformers", peer) for peer in peers)]
        seconds: dict[tuple[str, str], list[float]] = {side: [] for side in sides}
        for turn in range(rounds):
            # Back and forth, so that a machine that grows slower favours nobody.
            for side in sides if turn % 2 == 0 else reversed(sides):
                seconds[side] += take_turn(*side, model, steps, dropped)
        rate = {side: tokens / statistics.median(times) for side, times in seconds.items()}
        for peer in peers:
            engine, theirs = rate["engine", ours], rate["transformers", peer]
            rows.append(
                {
                    "engine": ours,
                    "transformers": peer,
                    "engine_tokens_per_second": round(engine, 1),
                    "transformers_tokens_per_second": round(theirs, 1),
                    "ratio": round(engine / theirs, 3),
                }
            )
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--steps", type=int, default=10, help="counted steps of a side in each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dropped", type=int, default=3, help="first steps that are not counted")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    import transformers

    import megatron.backend  # noqa: F401  (large pages, for the processes of both sides)

    rows = measure(options.model, options.steps, options.dropped, options.rounds)
    content = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "steps": options.steps,
        "rounds": options.rounds,
        "dropped": options.dropped,
        "rows": rows,
    }
    if options.output is not None:
        options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
