#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""The training time that a checkpoint costs: written while the run waits, and in the background.

    python benchmarks/save_time.py [--model small|smollm2] [--steps 12] [--saves 3] [--output FILE]

One process trains, on a GPU where there is one. The seconds of `--steps` steps are taken without a save and
with one begun after the first of them: the difference is what the save cost ("lost"). "blocked" is the part
of it in which no step could run: beginning, which copies, and finishing. A background write that outlasts
the steps is waited for at their end, which is given by itself; take more steps then. Writes FILE.json and
FILE.md.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import page
from benchmarks.machine import describe
from benchmarks.train_cpu import BATCH
from benchmarks.training_sides.engine_side import Training
from benchmarks.training_sides.shapes import SHAPES
from benchmarks.training_sides.sides import Order


class Run(Training):
    """Training on random tokens, which counts its steps."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self._size = (1, order.micro, order.shape.tokens + 1)
        self._order, self._generator = order, torch.Generator().manual_seed(0)
        self.iteration = 0

    def advance(self) -> None:
        tokens = torch.randint(0, self._order.shape.vocab, self._size, generator=self._generator)
        self.step(tokens.to(self._order.device))
        self.iteration += 1

    def record(self) -> Any:
        """The record of a checkpoint written now."""
        from megatron.checkpointing.record import CheckpointRecord
        from megatron.checkpointing.state import layout_of

        return CheckpointRecord(
            iteration=self.iteration,
            sequences_seen=0,
            tokens_seen=0,
            model=self.cfg.model.model_dump(mode="json"),
            vocab_size=self.built.vocab_size,
            padded_vocab_size=self.built.padded_vocab_size,
            tokenizer_fingerprint="",
            dtype=self.cfg.precision.dtype_name,
            layout=layout_of(self.backend),
            has_optimizer=True,
        )


def steps_with_a_save(training: Run, saver: Any, steps: int) -> dict[str, float]:
    """Seconds of `steps` steps with a save begun after the first; and those in which none could run."""
    started, blocked = time.perf_counter(), 0.0
    for number in range(steps):
        training.advance()
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


def measure(training: Run, folder: Path, steps: int, saves: int) -> dict[str, Any]:
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
            training.advance()
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


def markdown(content: dict[str, Any]) -> str:
    """The page beside the JSON."""
    ways = {"the run waits": "waiting", "in the background": "background"}
    kinds = ("lost", "blocked", "waited_at_end")
    cells = [
        (name, *(f"{content[f'{way}_{kind}_seconds']:.3f}" for kind in kinds)) for name, way in ways.items()
    ]
    head = ("Written while", "Lost, s a save", "No step could run, s", "Waited at the end, s")
    return page.text(
        f"What a checkpoint costs: {SHAPES[content['model']].name}",
        content["machine"],
        f"A checkpoint of {content['checkpoint_mb']} MB, steps of {content['step_seconds']:.3f} s in "
        f"{content['dtype']}; medians of {content['saves']} rounds of {content['steps']} steps, after "
        "one that is dropped.",
        head,
        cells,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=BATCH, default="small")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--steps", type=int, default=12, help="steps of a round")
    parser.add_argument("--saves", type=int, default=3, help="counted rounds")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written (a temporary folder)")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = Run(Order(SHAPES[arguments.model], device, BATCH[arguments.model], 1, arguments.dtype))
    gc.freeze()  # as the training loop does
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        row = measure(training, Path(folder), arguments.steps, arguments.saves)
    settings = {"model": arguments.model, "dtype": arguments.dtype, "steps": arguments.steps}
    content = {"machine": describe(), **settings, "saves": arguments.saves, **row}
    print(markdown(content))
    if arguments.output is not None:
        page.write(arguments.output, content, markdown(content))


if __name__ == "__main__":
    main()
