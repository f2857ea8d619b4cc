# SPDX-License-Identifier: Apache-2.0
"""Reports as scalars: the names shared by TensorBoard and W&B, and the TensorBoard sink."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from megatron.monitoring.metrics import EvalReport, Sink, StepReport
from megatron.neox_arguments.errors import UserError


def step_scalars(report: StepReport) -> dict[str, float]:
    """Name → value; the part before the slash is the group the page shows it in."""
    scalars = {
        "train/loss": report.loss,
        "train/learning_rate": report.lr,
        "train/grad_norm": report.grad_norm,
        "train/tokens_seen": float(report.tokens_seen),
        "speed/tokens_per_second": report.tokens_per_second,
        "speed/tokens_per_second_per_gpu": report.tokens_per_second_per_gpu,
        "speed/step_seconds": report.step_seconds,
        "speed/data_wait_seconds": report.data_wait_seconds,
        "speed/memory_bytes": float(report.memory_bytes),
    }
    if report.mfu is not None:
        scalars["speed/mfu"] = report.mfu
    if report.mfu_causal is not None:
        scalars["speed/mfu_causal"] = report.mfu_causal
    return scalars


def evaluation_scalars(report: EvalReport) -> dict[str, float]:
    """`valid/<source>` → loss."""
    return {f"{report.split}/{source}": loss for source, loss in report.losses.items()}


def event_scalars(kind: str, fields: Mapping[str, object]) -> dict[str, float]:
    """The times of an event, as `checkpoint/blocked_seconds`; none where it has none."""
    return {
        f"{kind}/{name}": float(value)
        for name, value in fields.items()
        if isinstance(value, (int, float)) and name != "iteration" and kind in ("checkpoint", "startup")
    }


class TensorBoardSink(Sink):
    """Event files in `log_dir`. What an earlier attempt wrote after `resumed_iteration` is hidden by them.

    Raises:
        UserError: tensorboard is not installed, or the folder cannot be written.
    """

    def __init__(self, log_dir: Path, resumed_iteration: int = 0) -> None:
        self.name = f"TensorBoard's {log_dir}"
        try:
            from torch.utils.tensorboard import SummaryWriter  # imports tensorboard, about a second
        except ImportError as error:
            raise UserError(
                f"tensorboard=True: the package cannot be imported ({error}); pip install tensorboard, or "
                "--set tensorboard=false"
            ) from error
        try:
            log_dir.mkdir(parents=True, exist_ok=True)
            purge_step = resumed_iteration + 1 if resumed_iteration else None
            self._writer = SummaryWriter(str(log_dir), purge_step=purge_step)
        except OSError as error:
            raise UserError(
                f"tensorboard_dir={log_dir}: {error.strerror}; choose a folder that can be written, or "
                "--set tensorboard=false"
            ) from error

    def step(self, report: StepReport) -> None:
        self._add(step_scalars(report), report.iteration)

    def evaluation(self, report: EvalReport) -> None:
        self._add(evaluation_scalars(report), report.iteration)
        self._writer.flush()

    def event(self, kind: str, fields: Mapping[str, object]) -> None:
        iteration = fields.get("iteration")
        if isinstance(iteration, int):
            self._add(event_scalars(kind, fields), iteration)

    def close(self) -> None:
        self._writer.close()

    def _add(self, scalars: dict[str, float], iteration: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, iteration)
