# SPDX-License-Identifier: Apache-2.0
"""Loss on held-out text, each source by its name."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from megatron.backend import Backend
from megatron.data.loader import Sequences, batches
from megatron.neox_arguments.config import RunConfig
from megatron.trainer.setup import TrainingState
from megatron.trainer.step import forward_backward, reduce_over_ranks
from megatron.trainer.watchdog import Watchdog


@torch.no_grad()
def evaluate(
    state: TrainingState,
    cfg: RunConfig,
    backend: Backend,
    datasets: Mapping[str, Sequences],
    watchdog: Watchdog,
) -> dict[str, float]:
    """The mean loss of `eval_iters` global batches of each source, in nats per token.

    Each call reads the same sequences, from the first, so that its numbers can be compared over a run.
    """
    shape = cfg.batch.batch_shape(backend.data_parallel_size)
    state.model.eval()
    losses = {}
    for name, dataset in datasets.items():
        micro_batches = batches(
            dataset,
            shape,
            backend.data_parallel_rank,
            num_workers=cfg.data.num_workers,
            pins_memory=backend.device.type == "cuda",
        )
        total = 0.0
        for number in range(cfg.validation.eval_iters):
            watchdog.begins(f"batch {number + 1} of the evaluation of {name}")
            loss = forward_backward(state, cfg, backend, micro_batches, forward_only=True)
            total += reduce_over_ranks(loss, [], backend)[0]
        losses[name] = total / cfg.validation.eval_iters
    state.model.train()
    return losses
