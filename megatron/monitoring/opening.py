# SPDX-License-Identifier: Apache-2.0
"""From a configuration to an open `Monitor`: which sinks a run has, and where they write."""

from __future__ import annotations

import json
from pathlib import Path

from megatron.monitoring.metrics import Monitor, Sink
from megatron.neox_arguments.config import RunConfig


def open_monitor(cfg: RunConfig, *, rank: int, on_gpu: bool, resumed_iteration: int = 0) -> Monitor:
    """Opens the sinks of rank 0; other ranks get a monitor without any.

    Args:
        rank: this process's rank in the run.
        on_gpu: rates are given per GPU; otherwise per rank.
        resumed_iteration: the iteration the run goes on from. What was recorded after it is superseded.

    Raises:
        UserError: a folder cannot be written, or a sink's package is missing; the message has the remedy.
    """
    if rank != 0:
        return Monitor()
    from megatron.monitoring.console import Console

    sinks: list[Sink] = [Console(cfg.schedule.train_iters, device="GPU" if on_gpu else "rank")]
    folder = cfg.logging.log_dir  # None where the run saves nothing: it keeps no record then
    if folder is not None:
        sinks += _file_sinks(cfg, folder, resumed_iteration)
    if cfg.logging.use_wandb:
        sinks.append(_wandb_sink(cfg, folder or Path()))
    return Monitor(sinks)


def _file_sinks(cfg: RunConfig, folder: Path, resumed_iteration: int) -> list[Sink]:
    from megatron.monitoring.jsonl import FILE_NAME, JsonlSink
    from megatron.monitoring.tensorboard import TensorBoardSink

    sinks: list[Sink] = [JsonlSink(folder / FILE_NAME)]
    if cfg.logging.tensorboard:
        sinks.append(
            TensorBoardSink(cfg.logging.tensorboard_dir or folder / "tensorboard", resumed_iteration)
        )
    return sinks


def _wandb_sink(cfg: RunConfig, folder: Path) -> Sink:
    from megatron.monitoring.wandb import WandbSink

    return WandbSink(
        folder,
        mode=cfg.logging.wandb_mode,
        project=cfg.logging.wandb_project,
        group=cfg.logging.wandb_group,
        team=cfg.logging.wandb_team,
        host=cfg.logging.wandb_host,
        run_config=json.loads(cfg.model_dump_json()),
    )
