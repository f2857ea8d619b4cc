#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""The training time that a checkpoint costs: written while the run waits, and in the background.

    python benchmarks/save_time.py [--model small|smollm2] [--steps 12] [--saves 3] [--output FILE.json]

One process trains, on a GPU where there is one. The seconds of `--steps` steps are taken without a save and
with one begun after the first of them: the difference is what the save cost ("lost"). "blocked" is the part
of it in which no step could run: beginning, which copies, and finishing. A background write that outlasts
the steps is waited for at their end, which is given by itself; take more steps then.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.train_cpu import BETAS, CLIP, LR, MODELS, WEIGHT_DECAY, random_sequences


class Training:
    """A model in training on this process alone."""

    def __init__(self, keys: dict[str, Any], dtype: str) -> None:
        from megatron.backend import initialize
        from megatron.model import build
        from megatron.neox_arguments.config import RunConfig
        from megatron.trainer.adam import give_to_megatron_core
        from megatron.trainer.setup import TrainingState, wrap

        sequences, tokens = keys["batch"]
        model = {key: value for key, value in keys.items() if key != "batch"}
        self.keys = keys
        self.cfg = RunConfig.model_validate(
            {
                "model": {**model, "seq_length": tokens, "make_vocab_size_divisible_by": 1},
                "precision": {"precision": dtype},
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
        self.backend = initialize(self.cfg.parallel, seed=0)
        give_to_megatron_core()
        built = build(self.cfg, self.backend, keys["vocab_size"], keys["vocab_size"])
        self.state = TrainingState(built, wrap(self.cfg, built))
        self._sequences = random_sequences(keys)
        self._mask_BS, self._ids_B = torch.ones(sequences, tokens), torch.arange(sequences)

    def step(self) -> None:
        from megatron.data.loader import MicroBatch
        from megatron.trainer.step import compute_gradients, reduce_over_ranks, update_weights

        sequences_BS = next(self._sequences)
        batch = MicroBatch(
            sequences_BS[:, :-1].contiguous(), sequences_BS[:, 1:].contiguous(), self._mask_BS, self._ids_B
        )
        loss = compute_gradients(self.state, self.cfg, self.backend, iter([batch]))
        reduce_over_ranks(loss, [], self.backend)
        update_weights(self.state, self.cfg, LR)
        self.state.progress.iteration += 1

    def record(self) -> Any:
        from megatron.checkpointing.record import CheckpointRecord
        from megatron.checkpointing.state import layout_of

        return CheckpointRecord(
            iteration=self.state.progress.iteration,
            sequences_seen=0,
            tokens_seen=0,
            model=self.cfg.model.model_dump(mode="json"),
            vocab_size=self.keys["vocab_size"],
            padded_vocab_size=self.keys["vocab_size"],
            tokenizer_fingerprint="",
            dtype=self.cfg.precision.dtype_name,
            layout=layout_of(self.backend),
            has_optimizer=True,
        )


def steps_with_a_save(training: Training, saver: Any, steps: int) -> dict[str, float]:
    """Seconds of `steps` steps with a save begun after the first; and those in which none could run."""
    started, blocked = time.perf_counter(), 0.0
    for number in range(steps):
        training.step()
        before = time.perf_counter()
        if number == 0:
            saver.begin(training.record(), None, [])
        elif saver.is_busy and saver.is_ready():
            saver.finish()
        blocked += time.perf_counter() - before
    before = time.perf_counter()
    waited = 0.0
    if saver.is_busy:
        saver.finish()
        waited = time.perf_counter() - before
    return {"seconds": time.perf_counter() - started, "blocked": blocked + waited, "waited_at_end": waited}


def measure(training: Training, folder: Path, steps: int, saves: int) -> dict[str, Any]:
    """Medians over `saves` rounds of: no save, a save that is waited for, one in the background."""
    from megatron.checkpointing.saving import Saver

    arguments = (folder, training.state.trainable, training.backend)
    savers = {
        "waiting": Saver(*arguments, in_background=False),
        "background": Saver(*arguments, in_background=True),
    }
    plain: list[float] = []
    found: dict[str, list[dict[str, float]]] = {name: [] for name in savers}
    for number in range(saves + 1):
        started = time.perf_counter()
        for _ in range(steps):
            training.step()
        if number:
            plain.append(time.perf_counter() - started)
        for name, saver in savers.items():
            times = steps_with_a_save(training, saver, steps)
            if number:  # the first round makes the copies' memory and fills caches
                found[name].append(times)
            newest = max(folder.glob("global_step*"), key=lambda path: path.stat().st_mtime)
            size_bytes = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
            for path in folder.glob("global_step*"):
                shutil.rmtree(path)
            gc.collect()
    base = statistics.median(plain)
    row: dict[str, Any] = {"checkpoint_mb": round(size_bytes / 1e6), "step_seconds": round(base / steps, 4)}
    for name, rounds in found.items():
        row[f"{name}_lost_seconds"] = round(statistics.median(r["seconds"] for r in rounds) - base, 3)
        row[f"{name}_blocked_seconds"] = round(statistics.median(r["blocked"] for r in rounds), 3)
        row[f"{name}_waited_at_end_seconds"] = round(statistics.median(r["waited_at_end"] for r in rounds), 3)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--dtype", choices=("fp32", "bfloat16"), default="bfloat16")
    parser.add_argument("--steps", type=int, default=12, help="steps of a round")
    parser.add_argument("--saves", type=int, default=3, help="counted rounds")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written (a temporary folder)")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    training = Training(MODELS[arguments.model], arguments.dtype)
    gc.freeze()  # as the training loop does
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        row = measure(training, Path(folder), arguments.steps, arguments.saves)
    is_gpu = training.backend.device.type == "cuda"
    row = {
        "model": arguments.model,
        "dtype": arguments.dtype,
        "device": torch.cuda.get_device_name() if is_gpu else f"{os.cpu_count()} CPU cores",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        **row,
    }
    print(json.dumps(row, indent=1))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
