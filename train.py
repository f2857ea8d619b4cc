#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Trains one rank of a run. `deepy.py train.py a.yml b.yml …` starts all of them."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from deepy import COMMAND_VARIABLE, STARTED_VARIABLE
from megatron.neox_arguments import RunConfig, UserError, exit_on_user_error
from megatron.trainer.interruption import StopRequest
from megatron.trainer.startup import StartUp


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the run as deepy.py froze it (JSON)")
    return parser.parse_args(argv)


def _build_tokenizer(cfg: RunConfig):  # type: ignore[no-untyped-def]
    from megatron.tokenizer import build_tokenizer

    if cfg.tokenizer.vocab_file is None:
        raise UserError("vocab_file: is not set; name the tokenizer's file, e.g. vocab_file: tokenizer.model")
    return build_tokenizer(cfg.tokenizer.tokenizer_type, cfg.tokenizer.vocab_file, cfg.tokenizer.eod_token)


def run_training(cfg: RunConfig, stop: StopRequest, command: str, startup: StartUp) -> None:
    """Builds every room from the ground up, and trains. `command` started the run, as it was typed."""
    from megatron.backend import initialize, shut_down
    from megatron.data.blend import build_blends
    from megatron.monitoring import open_monitor
    from megatron.trainer.fence import Fence
    from megatron.trainer.fitting import settle_recompute
    from megatron.trainer.keeper import Keeper
    from megatron.trainer.loop import train
    from megatron.trainer.run import Run
    from megatron.trainer.setup import prepare
    from megatron.trainer.start import choose_start
    from megatron.trainer.telling import end_once, lost_connection, on_all_ranks
    from megatron.trainer.watchdog import Watchdog

    startup.done("imports")
    backend = initialize(cfg.parallel, cfg.data.seed)
    startup.done("process group")

    def log(line: str) -> None:
        if backend.is_main:
            print(line, file=sys.stderr, flush=True)

    keeper: Keeper | None = None
    try:
        keeper = on_all_ranks(lambda: Keeper(cfg.checkpoint, backend.is_main, log))
        tokenizer = on_all_ranks(functools.partial(_build_tokenizer, cfg))
        shape = cfg.batch.batch_shape(backend.data_parallel_size)
        start = choose_start(cfg, backend, log)
        keeper.add_missing(start.folder if start is not None else None)
        startup.done("tokenizer and choice of a checkpoint")
        done, seen = (start.iteration, start.sequences_seen) if start is not None else (0, 0)
        blends = build_blends(
            cfg,
            tokenizer,
            # What was read before counts, and may have been read in global batches of another size.
            train_sequences=seen + max(0, cfg.schedule.train_iters - done) * shape.global_,
            eval_sequences=cfg.validation.eval_iters * shape.global_,
        )
        for notice in blends.notices:
            log(f"note: {notice}")
        cfg = settle_recompute(cfg, backend, cfg.model.vocab_size or tokenizer.vocab_size, log)
        assert blends.train is not None  # build_blends refuses a run that trains on nothing
        startup.done("data")
        state = prepare(cfg, backend, tokenizer, start, blends.train.describe(), log, startup)
        open_mine = functools.partial(
            open_monitor,
            cfg,
            rank=backend.rank,
            on_gpu=backend.device.type == "cuda",
            resumed_iteration=state.progress.iteration,
        )
        with on_all_ranks(open_mine) as monitor:
            fence = Fence.claim(cfg.checkpoint.save, backend)  # late: a mistake stops no other attempt
            monitor.may_write = fence.may_write
            monitor.event("start", {"iteration": state.progress.iteration})
            watchdog = Watchdog(cfg.recovery, backend, cfg.logging.log_dir, fence.number)
            with watchdog:
                train(
                    Run(
                        cfg, backend, tokenizer, state, blends, monitor, stop, keeper, fence, watchdog, log,
                        command, startup,
                    )
                )  # fmt: skip
        if backend.is_main and cfg.logging.plots:
            _draw(cfg, log)
    except UserError as error:
        if keeper is not None:
            keeper.abandon()
        end_once(error)
    except Exception as error:
        if (why := lost_connection(error)) is None:
            raise
        # Where in a collective this rank was says nothing: the cause is with the rank that is gone.
        print(f"rank {backend.rank}: another rank is gone ({why}), so this one ends too", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        shut_down()
    # Alone on rank 0, when the others have nothing left to do and nobody waits in a collective.
    stop.was_asked = False
    keeper.finish(lambda: stop.was_asked)


def _draw(cfg: RunConfig, log) -> None:  # type: ignore[no-untyped-def]
    from megatron.monitoring.plots import draw_run

    if cfg.logging.log_dir is None:
        return
    try:
        for picture in draw_run(cfg.logging.log_dir, cfg.logging.log_dir):
            log(f"drew {picture}")
    except UserError as error:  # the run itself is done and saved
        log(f"warning: no plots: {error}")


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    startup = StartUp.of_environment(os.environ, STARTED_VARIABLE)
    stop = StopRequest().listen()  # before the imports, which take seconds, and before there are threads
    from megatron.launcher.frozen import read_frozen

    command = os.environ.get(COMMAND_VARIABLE, "the same command")
    cfg = read_frozen(_arguments(argv).config, os.environ)
    startup.done("configuration")
    run_training(cfg, stop, command, startup)


if __name__ == "__main__":
    main()
