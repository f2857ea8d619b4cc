# SPDX-License-Identifier: Apache-2.0
"""The training loop, top to bottom: batches, steps, log lines, evaluations, checkpoints, and its ends."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

from megatron.backend import Backend
from megatron.data.blend import Blends
from megatron.data.loader import batches
from megatron.monitoring import EvalReport, Monitor
from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import UserError
from megatron.tokenizer import Tokenizer
from megatron.trainer.checkpoints import Checkpoints
from megatron.trainer.interruption import StopRequest, ask_for_requeue, requeue_file
from megatron.trainer.meter import Meter
from megatron.trainer.schedule import learning_rate
from megatron.trainer.setup import TrainingState
from megatron.trainer.step import compute_gradients, reduce_over_ranks, update_weights
from megatron.trainer.telling import way_back
from megatron.trainer.validation import evaluate


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
    log: Callable[[str], None]
    command: str  # that started the run, as it was typed


def train(run: Run) -> None:
    """Trains until `train_iters`, or until asked to stop; saves then and where the configuration says.

    Raises:
        UserError: the loss or the gradient is not finite, or the last checkpoint cannot be written.
    """
    cfg, backend, state = run.cfg, run.backend, run.state
    progress = state.progress
    shape = cfg.batch.batch_shape(backend.data_parallel_size)
    tokens_per_step = shape.global_ * cfg.model.seq_length
    if progress.iteration >= cfg.schedule.train_iters:
        run.log(
            f"nothing to do: iteration {progress.iteration} of train_iters={cfg.schedule.train_iters} is done"
        )
        return
    assert run.blends.train is not None  # build_blends refuses a run that trains on nothing
    micro_batches = batches(
        run.blends.train,
        shape,
        backend.data_parallel_rank,
        start_sequence=progress.sequences_seen,
        num_workers=cfg.data.num_workers,
    )
    meter = Meter(cfg, backend, state.built.padded_vocab_size)
    checkpoints = Checkpoints(cfg, backend, state, run.tokenizer, run.monitor, meter, run.log)
    if cfg.validation.eval_at_start and progress.iteration == 0:
        _evaluate(run, meter, checkpoints)

    # What is there now stays to the end. megatron-core collects garbage in every save, and walking through
    # all that the imports left took 0.3 s of each.
    gc.freeze()
    while progress.iteration < cfg.schedule.train_iters:
        lr = learning_rate(cfg, progress.iteration + 1)
        local_loss = compute_gradients(state, cfg, backend, micro_batches)
        loss, stops = reduce_over_ranks(local_loss, run.stop.was_asked, backend)
        _refuse_non_finite(run, checkpoints, "loss", loss, progress.iteration + 1)
        grad_norm = update_weights(state, cfg, lr)
        _refuse_non_finite(run, checkpoints, "gradient norm", grad_norm, progress.iteration + 1)
        progress.iteration += 1
        progress.sequences_seen += shape.global_
        progress.tokens_seen += tokens_per_step
        meter.step_done(tokens_per_step)

        is_last = progress.iteration == cfg.schedule.train_iters
        if progress.iteration % cfg.logging.log_interval == 0 or is_last or stops:
            run.monitor.step(meter.report(progress.iteration, loss, lr, grad_norm, progress.tokens_seen))
        else:
            run.monitor.tick(progress.iteration)
        if progress.iteration % cfg.validation.eval_interval == 0 or is_last:
            _evaluate(run, meter, checkpoints)
        if stops or is_last:
            break
        checkpoints.after_step()

    checkpoints.save(is_final=True)
    if progress.iteration < cfg.schedule.train_iters:
        run.log(f"stopped by {run.stop.signal_name or 'another rank'} after iteration {progress.iteration}; "
                "the same command goes on from here")  # fmt: skip
        run.monitor.event("stop", {"iteration": progress.iteration})
        marker = requeue_file(cfg.checkpoint.save, os.environ)
        # By each rank that a scheduler asked: rank 0 may stop for another's sake before its own signal comes.
        if marker is not None and run.stop.wants_requeue:
            ask_for_requeue(marker, progress.iteration, run.stop.signal_name)
    elif cfg.validation.do_test and run.blends.test and cfg.validation.eval_iters:
        losses = evaluate(state, cfg, backend, run.blends.test)
        run.monitor.evaluation(EvalReport(progress.iteration, "test", losses))


def _evaluate(run: Run, meter: Meter, checkpoints: Checkpoints) -> None:
    if not run.blends.valid or not run.cfg.validation.eval_iters:
        return
    paused = meter.pause()
    losses = evaluate(run.state, run.cfg, run.backend, run.blends.valid)
    run.monitor.evaluation(EvalReport(run.state.progress.iteration, "valid", losses))
    for name, loss in losses.items():
        _refuse_non_finite(run, checkpoints, f"validation loss of {name}", loss, run.state.progress.iteration)
    meter.resume(paused)


def _refuse_non_finite(run: Run, checkpoints: Checkpoints, what: str, value: float, iteration: int) -> None:
    """`iteration` is the one to report; the weights at fault are those the run holds now.

    `value` is equal on every rank, and so all of them come here together.
    """
    if math.isfinite(value):
        return
    checkpoints.settle()  # what is being written was good
    run.monitor.event("not finite", {"iteration": iteration, "what": what, "value": str(value)})
    raise UserError(
        f"{what}={value} at iteration {iteration}: must be finite, so the run stops and saves nothing; "
        + way_back(run.cfg, run.state.progress.iteration, run.command)
    )
