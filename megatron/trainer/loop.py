# SPDX-License-Identifier: Apache-2.0
"""The training loop, top to bottom: batches, steps, log lines, evaluations, checkpoints, and its ends."""

from __future__ import annotations

import gc
import math
import os
from pathlib import Path

from megatron.data.loader import batches
from megatron.monitoring import EvalReport
from megatron.trainer.checkpoints import Checkpoints
from megatron.trainer.interruption import ask_for_requeue, requeue_file, withdraw_requeue
from megatron.trainer.meter import Meter
from megatron.trainer.pace import Pace
from megatron.trainer.recovery import Recovery
from megatron.trainer.run import Run
from megatron.trainer.schedule import learning_rate
from megatron.trainer.step import (
    compute_gradients,
    gradient_norm,
    read_sums,
    sum_over_ranks,
    update_weights,
)
from megatron.trainer.telling import on_all_ranks, on_main_rank
from megatron.trainer.trace import Trace, optimizer_configs, trace_path
from megatron.trainer.validation import evaluate
from megatron.trainer.watchdog import PATIENCE


def train(run: Run) -> None:
    """Trains until `train_iters`, or until asked to stop; saves then and where the configuration says.

    Raises:
        UserError: the run cannot go on, or the last checkpoint cannot be written.
    """
    cfg, backend, state = run.cfg, run.backend, run.state
    progress = state.progress
    shape = cfg.batch.batch_shape(backend.data_parallel_size)
    tokens_per_step = shape.global_ * cfg.model.seq_length
    _withdraw_requeue(run)
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
        pins_memory=backend.device.type == "cuda",
    )
    meter = Meter(cfg, backend, state.built.padded_vocab_size)
    if meter.notice is not None:
        run.log(f"note: {meter.notice}")
    checkpoints = Checkpoints(
        cfg, backend, state, run.tokenizer, run.monitor, meter, run.keeper, run.fence, run.log
    )
    run.watchdog.rescue = checkpoints.rescue
    recovery = Recovery(run, run.blends.train, meter, checkpoints)
    pace, trace = Pace(recovery.own_work, backend, cfg.recovery.slow_rank_ratio), _trace(run)
    run.startup.done("monitor")
    if cfg.validation.eval_at_start and progress.iteration == 0:
        _evaluate(run, meter, recovery)
        run.startup.done("first evaluation")

    # What is there now stays to the end. megatron-core collects garbage in every save, and walking through
    # all that the imports left took 0.3 s of each.
    gc.freeze()
    wants_requeue = False
    while progress.iteration < cfg.schedule.train_iters:
        run.watchdog.begins(f"step {progress.iteration + 1}")
        trace.begins(progress.iteration + 1)
        lr = learning_rate(cfg, progress.iteration + 1)
        with trace.range("data"):
            batch = pace.take_batch(micro_batches, shape.accumulation)
        recovery.own_work.begin()
        local_loss = compute_gradients(state, cfg, backend, run.watchdog.each(batch))
        asked = [run.stop.was_asked, run.stop.wants_requeue, run.fence.is_passed()]
        with trace.range("reduction of the loss"):
            told = sum_over_ranks(local_loss, [*asked, *pace.mine()], backend)
        with trace.range("norm of the gradient"):
            grad_norm = gradient_norm(state)
            loss, sums = read_sums(told, backend)
        stops, wants_requeue, is_passed = (count > 0 for count in sums[: len(asked)])
        pace.heard(sums[len(asked) :])
        if is_passed:
            on_all_ranks(run.fence.check)  # raises, everywhere
        with trace.range("optimizer"):
            grad_norm = update_weights(state, cfg, lr, grad_norm) if math.isfinite(loss) else math.nan
        progress.advance(shape.global_, tokens_per_step)
        meter.step_done(tokens_per_step)
        _say_started(run)
        paused = meter.pause()
        trace.ends(progress.iteration)
        meter.resume(paused)

        is_last = progress.iteration == cfg.schedule.train_iters
        if progress.iteration % cfg.logging.log_interval == 0 or is_last or stops:
            run.monitor.step(
                meter.report(progress.iteration, loss, lr, grad_norm, progress.tokens_seen, pace)
            )
        else:
            run.monitor.tick(progress.iteration)
        recovery.after_step(batch, local_loss, loss, grad_norm)
        if progress.iteration % cfg.validation.eval_interval == 0 or is_last:
            _evaluate(run, meter, recovery)
        if stops or is_last:
            break
        run.watchdog.begins(f"saving after step {progress.iteration}", PATIENCE)
        checkpoints.after_step()

    trace.close()
    run.watchdog.begins("the last save", PATIENCE)
    recovery.before_the_end()
    checkpoints.save(is_final=True)
    if progress.iteration < cfg.schedule.train_iters:
        _say_stopped(run, wants_requeue)
        return
    _withdraw_requeue(run)  # an attempt before may have written it late
    if cfg.validation.do_test and run.blends.test and cfg.validation.eval_iters:
        losses = evaluate(state, cfg, backend, run.blends.test, run.watchdog)
        run.monitor.evaluation(EvalReport(progress.iteration, "test", losses))


def _trace(run: Run) -> Trace:
    """What traces this rank's steps where the configuration asks for it."""
    logging, state, rank = run.cfg.logging, run.state, run.backend.rank
    first, end = logging.profile_step_start, logging.profile_step_stop
    if not logging.profile or rank not in logging.profile_ranks or logging.log_dir is None:
        return Trace(Path(), 0, 0, [], run.log)  # of no step
    if state.progress.iteration >= end - 1:
        run.log(f"note: profile: iterations {first} to {end - 1} are done, so there is nothing to trace")
    configs = [state.config, *optimizer_configs(state.trainable.optimizer)]
    return Trace(trace_path(logging.log_dir, first, end, rank), first, end, configs, run.log)


def _say_started(run: Run) -> None:
    """After the first step of this attempt: how long it took to come here."""
    if run.startup.is_over:
        return
    run.startup.done("first step")
    run.startup.is_over = True
    run.monitor.event("startup", {"iteration": run.state.progress.iteration, **run.startup.report()})


def _evaluate(run: Run, meter: Meter, recovery: Recovery) -> None:
    """Evaluates; again where a loss is not finite, with the weights that `recovery` went back to."""
    if not run.blends.valid or not run.cfg.validation.eval_iters:
        return
    paused = meter.pause()
    while True:
        losses = evaluate(run.state, run.cfg, run.backend, run.blends.valid, run.watchdog)
        run.monitor.evaluation(EvalReport(run.state.progress.iteration, "valid", losses))
        if all(recovery.after_validation(name, loss) for name, loss in losses.items()):
            break
    meter.resume(paused)


def _withdraw_requeue(run: Run) -> None:
    """Rank 0 takes back what the attempt before asked for; `_say_stopped` is where it is asked for again."""
    on_main_rank(lambda: withdraw_requeue(requeue_file(run.cfg.checkpoint.save, os.environ)))


def _say_stopped(run: Run, wants_requeue: bool) -> None:
    iteration, name = run.state.progress.iteration, run.stop.signal_name
    run.log(
        f"stopped by {name or 'another rank'} after iteration {iteration}; the same command goes on from here"
    )
    path = requeue_file(run.cfg.checkpoint.save, os.environ) if wants_requeue else None
    if path is not None and run.backend.is_main:
        ask_for_requeue(path, iteration, name)
        run.log(f"asked to be started again: {path}")
    run.monitor.event("stop", {"iteration": iteration})
