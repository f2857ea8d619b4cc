# SPDX-License-Identifier: Apache-2.0
"""The Weights & Biases sink, online or offline. The package is imported only when a run asks for it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.monitoring.metrics import EvalReport, Sink, StepReport
from megatron.monitoring.tensorboard import evaluation_scalars, event_scalars, step_scalars
from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.whole_files import write_whole


class WandbSink(Sink):
    """One W&B run over all resumes: its id lies in `log_dir/wandb_id.txt`.

    Raises:
        UserError: wandb is not installed, or does not let the run begin (no key, no connection).
    """

    name = "W&B"

    def __init__(
        self,
        log_dir: Path,
        *,
        mode: str = "online",
        project: str | None = None,
        group: str | None = None,
        team: str | None = None,
        host: str | None = None,
        run_config: Mapping[str, object] | None = None,
    ) -> None:
        try:
            wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise UserError(
                f"use_wandb=True: the package wandb cannot be imported ({error}); pip install wandb, or "
                "--set use_wandb=false"
            ) from error
        try:
            log_dir.mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                id=_run_id(log_dir),
                resume="allow",
                dir=str(log_dir),
                mode=mode,
                project=project,
                group=group,
                entity=team,
                config=dict(run_config or {}),
                # console="off": W&B would put itself between the run and its terminal
                settings=wandb.Settings(console="off", **({"base_url": host} if host else {})),
            )
        except (OSError, wandb.errors.Error) as error:
            raise UserError(
                f"use_wandb=True: W&B did not start: {error}; run `wandb login`, or --set "
                "wandb_mode=offline, or --set use_wandb=false"
            ) from error

    def step(self, report: StepReport) -> None:
        self._run.log(step_scalars(report), step=report.iteration)

    def evaluation(self, report: EvalReport) -> None:
        self._run.log(evaluation_scalars(report), step=report.iteration)

    def event(self, kind: str, fields: Mapping[str, object]) -> None:
        scalars, iteration = event_scalars(kind, fields), fields.get("iteration")
        if scalars and isinstance(iteration, int):
            self._run.log(scalars, step=iteration)

    def close(self) -> None:
        self._run.finish()


def _run_id(log_dir: Path) -> str:
    path = log_dir / "wandb_id.txt"
    if path.exists() and (known := path.read_text().strip()):
        return known
    new = os.urandom(6).hex()
    write_whole(path, new + "\n")
    return new
