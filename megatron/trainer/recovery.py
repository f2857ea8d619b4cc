# SPDX-License-Identifier: Apache-2.0
"""What a run does about numbers that it should not have: skip the step, go back, or stop; and its report.

A step whose loss or gradient is not finite changes nothing: the optimizer does not see it. After
`max_skipped_steps` of them in a row, at once where the weights are at fault, or after a spike of the loss,
the weights and the optimizer go back to the last good checkpoint, and the run goes on with the data that
come next: what was read since that checkpoint is left out. Iterations and the place in the data go on
counting, so that learning rate and data stay together. The state is saved at once, which makes a later
resume leave out the same.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megatron.checkpointing import folders
from megatron.checkpointing.record import CheckpointRecord
from megatron.checkpointing.state import gather_weights, load_all
from megatron.data.loader import MicroBatch
from megatron.model.compiled import without_compilation
from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.whole_files import write_whole
from megatron.trainer.checkpoints import Checkpoints
from megatron.trainer.diagnosis import Diagnosis, diagnose, is_sound
from megatron.trainer.judge import Trouble, judge
from megatron.trainer.meter import Meter
from megatron.trainer.own_work import OwnWork
from megatron.trainer.run import Run
from megatron.trainer.start import find_whole
from megatron.trainer.telling import on_all_ranks, way_back
from megatron.trainer.watchdog import PATIENCE

if TYPE_CHECKING:
    from megatron.data.mcore_datasets import SequenceOrder

REPORTS = "recovery"  # the folder in log_dir
# After so many rollbacks to the same weights that led to bad numbers again, one more would too.
_MOST_TIMES_TO_THE_SAME = 3


class Recovery:
    """Called on every rank, with numbers that are equal on all."""

    def __init__(self, run: Run, data: SequenceOrder, meter: Meter, checkpoints: Checkpoints) -> None:
        self._run, self._data, self._meter, self._checkpoints = run, data, meter, checkpoints
        self._cfg, self._backend, self._state = run.cfg, run.backend, run.state
        self.own_work = OwnWork(run.state.model, run.backend)

    def after_step(
        self, batch: Sequence[MicroBatch], own_loss: torch.Tensor, loss: float, grad_norm: float
    ) -> None:
        """Judges the step that gave the last iteration, and does what is to be done.

        Raises:
            UserError: the run cannot go on.
        """
        ledger, limits = self._state.ledger, self._cfg.recovery
        trouble = judge(limits, ledger, self._state.progress.iteration, loss, grad_norm)
        if trouble is None:
            return
        paused = self._meter.pause()
        self._run.watchdog.begins(f"looking into step {trouble.iteration}", PATIENCE)
        gather_weights(self._state.model)  # here, and not by the first rank that computes with them alone
        goes_back = ledger.skipped_in_a_row > limits.max_skipped_steps
        goes_back = goes_back or ledger.spiking_in_a_row >= limits.loss_spike_steps
        with without_compilation(self._cfg):
            found = diagnose(
                self._state, self._cfg, self._backend, self._data, batch, own_loss, self.own_work
            )
        if trouble.is_spike:
            found = found.of_a_spike()
        if goes_back or found.cause.is_hopeless:
            self._go_back(trouble, found)
        else:
            self._report(trouble, found, "spike" if trouble.is_spike else "skipped")
        self._meter.resume(paused)

    def after_validation(self, name: str, loss: float) -> bool:
        """Whether a validation loss is good; where it is not, the run has gone back when this returns.

        Raises:
            UserError: the run cannot go on.
        """
        if math.isfinite(loss):
            return True
        iteration = self._state.progress.iteration
        self._go_back(Trouble(iteration, f"validation loss of {name}", loss), None)
        return False

    def before_the_end(self) -> None:
        """What is saved last must be sound: goes back where the last steps spoilt the weights.

        Raises:
            UserError: it is not, and nothing is there to go back to.
        """
        if not is_sound(self._state.trainable, self._backend):
            self._go_back(Trouble(self._state.progress.iteration, "largest weight", math.nan), None)

    def _go_back(self, trouble: Trouble, diagnosis: Diagnosis | None) -> None:
        self._checkpoints.settle()  # what is being written was good
        ledger, progress = self._state.ledger, self._state.progress
        done, most = len(ledger.rollbacks), self._cfg.recovery.max_rollbacks
        if done >= most:
            raise self._give_up(trouble, diagnosis, f"it has gone back {done} times (max_rollbacks={most})")
        found = self._last_good(trouble, diagnosis)
        if found is None:
            raise self._give_up(trouble, diagnosis, self._why_nothing_is_left())
        folder, record = found
        back_to = ledger.weights_of(record.iteration)
        self._run.watchdog.begins(f"going back to {folder}", PATIENCE)
        load_all(folder, self._state.trainable, record, self._backend)
        rollback = {
            "iteration": progress.iteration,
            "back_to": back_to,
            "first_sequence": record.sequences_seen,
            "end_sequence": progress.sequences_seen,
            "why": str(trouble),
        }
        ledger.rollbacks.append(rollback)
        ledger.skipped_in_a_row = ledger.spiking_in_a_row = 0
        ledger.losses = list(record.recovery.get("losses", []))
        self._report(trouble, diagnosis, "rollback", rollback)
        self._run.log(
            f"warning: {trouble}; the weights and the optimizer are those of iteration {back_to} again "
            f"(from {folder}), and sequences {record.sequences_seen:,} to {progress.sequences_seen - 1:,} "
            f"are left out (rollback {done + 1} of at most {most})"
        )
        self._checkpoints.save(is_final=False)

    def _last_good(
        self, trouble: Trouble, diagnosis: Diagnosis | None
    ) -> tuple[Path, CheckpointRecord] | None:
        """The newest whole checkpoint from before the trouble, of weights that were not gone back to yet.

        Where there is none of these any more, the newest of those that were not gone back to too often.
        """
        save, ledger = self._cfg.checkpoint.save, self._state.ledger
        if save is None:
            return None
        newest = trouble.iteration - max(1, ledger.skipped_in_a_row, ledger.spiking_in_a_row)
        if diagnosis is not None and not diagnosis.cause.ranks:
            newest -= 1  # of its weights, as they were saved, the first bad step was made
        there = [
            step
            for step in on_all_ranks(lambda: folders.iterations_in(save))
            if step <= newest and not any(r["back_to"] < step < r["iteration"] for r in ledger.rollbacks)
        ]
        times = self._times_gone_back_to()
        fresh = [step for step in there if not times[ledger.weights_of(step)]]
        used = [step for step in there if 0 < times[ledger.weights_of(step)] < _MOST_TIMES_TO_THE_SAME]
        for iteration in [*reversed(fresh), *reversed(used)]:
            folder = save / folders.step_name(iteration)
            found = find_whole(folder, self._cfg, self._backend, self._run.log)
            if isinstance(found, CheckpointRecord):
                return folder, found
            self._run.log(f"warning: {folder} is damaged and not used: {found}")
        return None

    def _times_gone_back_to(self) -> Counter[int]:
        """How often, by the iteration that the weights are of."""
        return Counter(rollback["back_to"] for rollback in self._state.ledger.rollbacks)

    def _why_nothing_is_left(self) -> str:
        for iteration, times in self._times_gone_back_to().items():
            if times >= _MOST_TIMES_TO_THE_SAME:
                return f"{times} times it went back to the weights of iteration {iteration}, for no good"
        return "there is no good checkpoint to go back to"

    def _give_up(self, trouble: Trouble, diagnosis: Diagnosis | None, why: str) -> UserError:
        path = self._report(trouble, diagnosis, "given up")
        cause = f" ({diagnosis.cause.text})" if diagnosis is not None else ""
        report = f"; the report is {path}" if path is not None else ""
        updates = trouble.iteration - (1 if diagnosis is not None else 0)
        return UserError(
            f"{trouble}, so the run stops and saves nothing{cause}; {why}{report}; "
            + way_back(self._cfg, updates, self._run.command)
        )

    def _report(
        self,
        trouble: Trouble,
        diagnosis: Diagnosis | None,
        action: str,
        rollback: dict[str, Any] | None = None,
    ) -> Path | None:
        """A line in the record, and all that is known in a file, whose path is returned, in log_dir."""
        folder = self._cfg.logging.log_dir
        path = folder / REPORTS / f"iteration{trouble.iteration}.json" if folder is not None else None
        ledger = self._state.ledger
        event: dict[str, object] = {"iteration": trouble.iteration, "what": trouble.what}
        event["value"] = str(trouble.value)
        if diagnosis is not None:
            event["cause"] = diagnosis.cause.kind
            event["because"] = diagnosis.cause.text
        if rollback is not None:
            event["back_to"] = rollback["back_to"]
        event["skipped_steps"], event["rollbacks"] = ledger.skipped_steps, len(ledger.rollbacks)
        if path is not None:
            event["report"] = str(path)
            if self._backend.is_main:
                self._write(path, {**event, "action": action, "trouble": str(trouble)}, diagnosis, rollback)
        self._run.monitor.event(action, event)
        return path

    def _write(
        self,
        path: Path,
        head: dict[str, object],
        diagnosis: Diagnosis | None,
        rollback: dict[str, Any] | None,
    ) -> None:
        found: dict[str, Any] = {**head, "rollback": rollback}
        if diagnosis is not None:
            end = self._state.progress.sequences_seen
            shape = self._cfg.batch.batch_shape(self._backend.data_parallel_size)
            losses, good = diagnosis.losses(), diagnosis.good_gradients()
            found["samples"] = [
                {
                    "id": i,
                    "source": self._data.source_of(i),
                    "loss_computed_again": losses.get(i),
                    "gradient_is_finite": good.get(i),
                }
                for i in range(end - shape.global_, end)
            ]
            found.update(diagnosis.to_json())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(in_json(found), indent=1, default=str) + "\n")
        except OSError as error:
            self._run.log(f"warning: {path} cannot be written: {error.strerror}; training goes on")


def in_json(value: Any) -> Any:
    """`value` with numbers that are not finite in words, "nan" or "inf": JSON has none."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: in_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [in_json(item) for item in value]
    return value
