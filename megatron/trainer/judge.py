# SPDX-License-Identifier: Apache-2.0
"""Whether a step was good, by its loss and its gradient's norm; and what of that outlives a resume.

Numbers go in that are equal on every rank, so every rank comes to the same judgement by itself.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from megatron.neox_arguments.config import RecoveryConfig


@dataclass
class Ledger:
    """What went wrong so far; a part of every checkpoint.

    `rollbacks` has for each the iteration after which it was done, the iteration whose weights it went back
    to, and the sequences that were read in between and are left out.
    """

    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    spiking_in_a_row: int = 0
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of the last good steps, newest last

    @staticmethod
    def of_record(content: dict[str, Any]) -> Ledger:
        """The ledger of a checkpoint's record; an empty one of a checkpoint from before there were any."""
        names = {f.name for f in fields(Ledger)}
        return Ledger(**{name: value for name, value in content.items() if name in names})

    def to_record(self) -> dict[str, Any]:
        return asdict(self)

    def weights_of(self, iteration: int) -> int:
        """The iteration whose weights a checkpoint of `iteration` holds: an older one's after a rollback."""
        for rollback in self.rollbacks:
            if rollback["iteration"] == iteration:
                return int(rollback["back_to"])
        return iteration


@dataclass(frozen=True)
class Trouble:
    """A number that a healthy run does not show."""

    iteration: int  # of the step, or of the weights where it is a validation loss
    what: str  # "loss", "gradient norm", "validation loss of NAME"
    value: float
    median: float | None = None  # of the last good losses, where `value` is finite and too large

    @property
    def is_spike(self) -> bool:
        return self.median is not None

    def __str__(self) -> str:
        if self.median is not None:
            above = f"{self.value / self.median:.1f} times the running median {self.median:.4f}"
            return f"{self.what}={self.value:.4f} at iteration {self.iteration}: {above}"
        return f"{self.what}={self.value} at iteration {self.iteration}: must be finite"


def judge(config: RecoveryConfig, ledger: Ledger, iteration: int, loss: float, norm: float) -> Trouble | None:
    """What is wrong with a step, and notes it in the ledger; `norm` is of the gradient."""
    for what, value in (("loss", loss), ("gradient norm", norm)):
        if not math.isfinite(value):
            ledger.skipped_steps += 1
            ledger.skipped_in_a_row += 1
            return Trouble(iteration, what, value)
    ledger.skipped_in_a_row = 0
    median = _median(config, ledger)
    if median is not None and loss > config.loss_spike_ratio * median:
        ledger.spiking_in_a_row += 1
        return Trouble(iteration, "loss", loss, median)
    ledger.spiking_in_a_row = 0
    ledger.losses = [*ledger.losses, loss][-config.loss_spike_window :]
    return None


def _median(config: RecoveryConfig, ledger: Ledger) -> float | None:
    if config.loss_spike_ratio == 0 or len(ledger.losses) < config.loss_spike_window:
        return None
    return statistics.median(ledger.losses)
