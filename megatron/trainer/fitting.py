# SPDX-License-Identifier: Apache-2.0
"""What a run leaves to the GPUs it finds: `recompute: auto`, settled once, before anything is built."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from megatron.backend import Backend
from megatron.launcher.frozen import freeze
from megatron.neox_arguments.config import RunConfig
from megatron.planning.machine import USED_SHARE
from megatron.planning.recompute import settle, without_recompute
from megatron.trainer.telling import on_main_rank


def settle_recompute(
    cfg: RunConfig, backend: Backend, vocab_size: int, log: Callable[[str], None]
) -> RunConfig:
    """`cfg` with what `recompute: auto` becomes on these ranks, the same on all of them.

    Ranks decide by arithmetic on the memory of the smallest GPU. What it became is logged, and frozen beside
    the configuration that the run was started with, so that `--frozen` repeats it.
    """
    if cfg.parallel.recompute != "auto":
        return cfg
    if backend.device.type == "cpu":
        log("recompute auto: none, on a CPU")
        settled = without_recompute(cfg)
    else:
        most_bytes = int(USED_SHARE * least_memory_bytes(backend))
        settled, why = settle(cfg, backend.world_size, vocab_size, most_bytes)
        log(why.in_words())
    if cfg.checkpoint.save is not None:
        log(f"recompute auto: settled in {on_main_rank(lambda: freeze(settled).path)}")
    return settled


def least_memory_bytes(backend: Backend) -> int:
    """Bytes of the GPU with the least memory of all ranks."""
    here = torch.cuda.get_device_properties(backend.device).total_memory
    least = torch.tensor(here, dtype=torch.int64, device=backend.device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)
