# SPDX-License-Identifier: Apache-2.0
"""Llemma 7B on the one GPU that is here, against what the plan says it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from megatron.launcher.ports import free_port
from tests.planning.test_recompute import one_gpu
from tests.ranks import ROOT, rank_environment

LARGE_BYTES, LEAST_BYTES = 135 * 2**30, 75 * 2**30


def train_7b(more: tuple[str, ...]) -> dict[str, Any]:
    """Two steps of random tokens with the configuration's own states; bytes as the allocator saw them."""
    import torch

    from megatron.backend import initialize
    from megatron.data.loader import MicroBatch
    from megatron.model import build
    from megatron.planning.memory import choice_of, fullest_stage
    from megatron.trainer.adam import give_to_megatron_core
    from megatron.trainer.fitting import settle_recompute
    from megatron.trainer.setup import TrainingState, wrap
    from megatron.trainer.step import compute_gradients, reduce_over_ranks, update_weights

    cfg = one_gpu(*more)
    cfg = cfg.model_copy(update={"checkpoint": type(cfg.checkpoint)()})  # nothing is written
    backend = initialize(cfg.parallel, seed=1)
    lines: list[str] = []
    cfg = settle_recompute(cfg, backend, 32016, lines.append)
    give_to_megatron_core()
    built = build(cfg, backend, 32016, 32016, initialize=False)
    for parameter in built.module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    state = TrainingState(built, wrap(cfg, built))
    shape = cfg.batch.batch_shape(1)
    tokens_BS = torch.randint(0, 32000, (shape.micro, cfg.model.seq_length + 1))
    batch = MicroBatch(
        tokens_BS[:, :-1].contiguous(), tokens_BS[:, 1:].contiguous(),
        torch.ones(shape.micro, cfg.model.seq_length), torch.arange(shape.micro),
    )  # fmt: skip
    losses = []
    for _ in range(2):
        local = compute_gradients(state, cfg, backend, iter([batch] * shape.accumulation))
        losses.append(reduce_over_ranks(local, [], backend)[0])
        update_weights(state, cfg, lr=1e-5)
    _, planned = fullest_stage(cfg, choice_of(cfg, 1), 32016, 1, shape.accumulation)
    return {
        "losses": losses,
        "lines": lines,
        "recompute": cfg.parallel.recompute,
        "most_bytes": torch.cuda.max_memory_allocated(),
        "planned_bytes": planned.total,
    }


@pytest.mark.gpu
def test_7b_trains_on_one_gpu() -> None:
    import torch

    there = torch.cuda.get_device_properties(0).total_memory
    if there < LEAST_BYTES:
        pytest.skip(f"this GPU has {there / 2**30:.0f} GiB, and 7B needs {LEAST_BYTES / 2**30:.0f}")
    more = () if there >= LARGE_BYTES else ("one_gpu_7b_80gb",)
    program = (
        "import json, sys\n"
        "from tests.trainer.test_one_gpu import train_7b\n"
        "print(json.dumps(train_7b(tuple(sys.argv[1:]))))\n"
    )
    environment = rank_environment(0, 1, free_port())
    del environment["CUDA_VISIBLE_DEVICES"]
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    done = subprocess.run(
        [sys.executable, "-c", program, *more], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    first, second = found["losses"]
    assert 10 < second < first < 12  # of ln(32,016) = 10.4, and the same batch again
    assert found["most_bytes"] == pytest.approx(found["planned_bytes"], rel=0.05)
