# SPDX-License-Identifier: Apache-2.0
"""How a run survives: numbers that are not finite, loss spikes, ranks that hang, die or are slow."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .fields import Concern, NonNegative, Positive, key


class RecoveryConfig(Concern):
    """What is done where a step, a rank or the loss goes wrong."""

    max_skipped_steps: NonNegative = key(
        4,
        "Steps in a row that may be skipped because their loss or gradient is not finite; one more rolls the "
        "run back to the last good checkpoint.",
    )
    max_rollbacks: Annotated[NonNegative, Field(le=1000)] = key(
        5, "Times that a run may be rolled back, over all its resumes; one more stops it with a report."
    )
    loss_spike_ratio: float = key(
        3.0,
        "Loss, as a multiple of the running median, from which a step counts as part of a spike; 0 "
        "switches the watch for spikes off.",
        ge=0,
    )
    loss_spike_window: Positive = key(
        64, "Steps that the running median is taken over; before as many are done there are no spikes."
    )
    loss_spike_steps: Positive = key(
        4, "Steps in a row above loss_spike_ratio that make a spike, which rolls the run back."
    )
    hang_timeout_seconds: float = key(
        480.0,
        "Seconds without a micro-batch or a step done (four times as many while saving or going back) after "
        "which the ranks report where each is and end the run for a restart; 0 switches it off.",
        ge=0,
    )
    dead_rank_timeout_seconds: float = key(
        60.0,
        "Seconds without a sign of life of a rank's process after which the others end the run for a "
        "restart; 0 switches it off.",
        ge=0,
    )
    slow_rank_ratio: float = key(
        1.5,
        "A rank's own computing time, as a multiple of the median over ranks, from which the log line names "
        "it; 0 switches it off.",
        ge=0,
    )
