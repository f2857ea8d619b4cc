# SPDX-License-Identifier: Apache-2.0
"""Everything that a training loop works with, handed over as one object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from megatron.backend import Backend
from megatron.data.blend import Blends
from megatron.monitoring import Monitor
from megatron.neox_arguments.config import RunConfig
from megatron.tokenizer import Tokenizer
from megatron.trainer.fence import Fence
from megatron.trainer.interruption import StopRequest
from megatron.trainer.keeper import Keeper
from megatron.trainer.setup import TrainingState
from megatron.trainer.startup import StartUp
from megatron.trainer.watchdog import Watchdog


@dataclass
class Run:
    """What a loop works with; each part comes finished from its own room."""

    cfg: RunConfig
    backend: Backend
    tokenizer: Tokenizer
    state: TrainingState
    blends: Blends
    monitor: Monitor
    stop: StopRequest
    keeper: Keeper
    fence: Fence
    watchdog: Watchdog
    log: Callable[[str], None]
    command: str  # that started the run, as it was typed
    startup: StartUp
