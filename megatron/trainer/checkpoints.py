# SPDX-License-Identifier: Apache-2.0
"""When a run saves, and what it says about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from megatron.backend import Backend
from megatron.checkpointing.record import BASE_FILES
from megatron.checkpointing.saving import SaveFailed, Saver
from megatron.monitoring import Monitor
from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import UserError
from megatron.tokenizer import Tokenizer
from megatron.trainer.diagnosis import is_sound
from megatron.trainer.fence import Fence
from megatron.trainer.keeper import Keeper
from megatron.trainer.meter import Meter
from megatron.trainer.setup import TrainingState, record_of
from megatron.trainer.watchdog import Exchange


class Checkpoints:
    """Saves a run. The methods are called on every rank, at the same steps."""

    def __init__(
        self,
        cfg: RunConfig,
        backend: Backend,
        state: TrainingState,
        tokenizer: Tokenizer,
        monitor: Monitor,
        meter: Meter,
        keeper: Keeper,
        fence: Fence,
        log: Callable[[str], None],
    ) -> None:
        self._cfg, self._backend, self._state, self._tokenizer = cfg, backend, state, tokenizer
        self._monitor, self._meter, self._keeper, self._log = monitor, meter, keeper, log
        checkpoint = cfg.checkpoint
        self._begun_at = 0
        self._began_seconds = self._blocked_seconds = 0.0  # of the save that was begun last
        self._saver: Saver | None = None
        if checkpoint.save is not None:
            in_background = checkpoint.async_save
            self._saver = Saver(
                checkpoint.save,
                state.trainable,
                backend,
                in_background=in_background,
                attempt=fence.number,
                guard=fence.check,
            )

    def after_step(self) -> None:
        """Completes what was written in the background, and saves where this iteration is one to save."""
        if self._saver is not None and self._saver.is_busy and self._saver.is_ready():
            self.settle()
        checkpoint, iteration = self._cfg.checkpoint, self._state.progress.iteration
        factor = checkpoint.checkpoint_factor
        is_due = (factor is not None and iteration % factor == 0) or checkpoint.is_milestone(iteration)
        if is_due and self._begun_at != iteration:  # it is where the run has just gone back
            self.save(is_final=False)

    def save(self, *, is_final: bool) -> None:
        """Saves; a failure between is said and the run goes on, a failure at the end is an error.

        Raises:
            UserError: the final checkpoint cannot be written.
        """
        if self._saver is None:
            return
        self.settle()
        paused = self._meter.pause()
        if not is_sound(self._state.trainable, self._backend):
            why = "weights or moments are not finite"
            self._monitor.event(
                "checkpoint left out", {"iteration": self._state.progress.iteration, "why": why}
            )
            self._meter.resume(paused)
            return
        self._begun_at = self._state.progress.iteration
        record = record_of(self._state, self._cfg, self._backend, self._tokenizer)
        self._began_seconds = time.perf_counter()
        try:
            self._saver.begin(record, self._state.base_files, self._tokenizer.files)
        except SaveFailed as failure:
            self._failed(failure, is_final=is_final)
        self._blocked_seconds = time.perf_counter() - self._began_seconds
        self._meter.resume(paused)
        if is_final or not self._cfg.checkpoint.async_save:
            self.settle(is_final=is_final)

    def settle(self, *, is_final: bool = False) -> None:
        """Waits for a save that is begun, if there is one, and completes it."""
        if self._saver is None or not self._saver.is_busy:
            return
        paused, began = self._meter.pause(), time.perf_counter()
        try:
            folder = self._saver.finish()
            self._blocked_seconds += time.perf_counter() - began
            self._done(folder)
        except SaveFailed as failure:
            self._failed(failure, is_final=is_final)
        self._meter.resume(paused)

    def rescue(self, exchange: Exchange) -> str | None:
        """Completes a save in the background where the main threads meet no more; says what became of it.

        Called by the watchdog's threads, on as many ranks as there are left.
        """
        return None if self._saver is None else self._saver.rescue(exchange)

    def _done(self, folder: Path) -> None:
        times = {
            "seconds": round(time.perf_counter() - self._began_seconds, 3),
            "blocked_seconds": round(self._blocked_seconds, 3),
        }
        self._monitor.event("checkpoint", {"iteration": self._begun_at, "folder": str(folder), **times})
        self._state.base_files = folder / BASE_FILES  # the ones this run began with may be removed below
        self._keeper.saved(folder)

    def _failed(self, failure: SaveFailed, *, is_final: bool) -> None:
        self._monitor.event("checkpoint failed", {"iteration": self._begun_at, "why": str(failure)})
        if is_final:
            raise UserError(f"{failure}; put that right and run the same command again") from failure
        self._log(f"warning: {failure}; training goes on, the next one is tried as usual")
