#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Writes text with a checkpoint: python generate.py CHECKPOINT --prompt "The derivative of x^2 is"."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron.neox_arguments import UserError, exit_on_user_error

if TYPE_CHECKING:
    from megatron.checkpointing.inference import OpenedModel
    from megatron.text_generation import ModelSession, Request

# Prompts that are continued at a time; more of them wait.
MAX_BATCH = 32


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write text with a checkpoint of this program.",
        epilog="A checkpoint is a run's save folder (its newest is taken) or one global_stepN folder. "
        "All prompts are continued together. "
        "For several ranks: torchrun --nproc-per-node N generate.py …, tensor parallel over all of them.",
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prompt", action="append", help="a text to go on from; may be given several times")
    parser.add_argument("--prompt-file", type=Path, help="a file whose content is the prompt")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)"
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="draw among the likeliest ids that reach this"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the draws, with a temperature; the next prompts have the next seeds",
    )
    parser.add_argument("--stop", action="append", default=[], help="end before this text; may be repeated")
    parser.add_argument("--iteration", type=int, help="of the checkpoint to take, instead of the newest")
    parser.add_argument(
        "--rotary-base", type=float, help="read with another rotary base than the checkpoint's"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: the checkpoint's")
    return parser.parse_args(argv)


def _check(options: argparse.Namespace) -> list[str]:
    """Returns the prompts.

    Raises:
        UserError: an option is out of its range, or there is no prompt.
    """
    ranges = [
        ("--max-new-tokens", options.max_new_tokens, options.max_new_tokens >= 1, "at least 1"),
        ("--temperature", options.temperature, options.temperature >= 0, "0 or more"),
        ("--top-p", options.top_p, 0 < options.top_p <= 1, "above 0 and at most 1"),
        ("--seed", options.seed, -(2**63) <= options.seed < 2**63, f"of 64 bits, at most {2**63 - 1}"),
        ("--rotary-base", options.rotary_base, (options.rotary_base or 2) > 1, "above 1"),
        ("--stop", options.stop, all(options.stop), "some text"),
    ]
    for name, value, is_right, constraint in ranges:
        if not is_right:
            raise UserError(f"{name}={value}: must be {constraint}")
    prompts = list(options.prompt or [])
    if options.prompt_file is not None:
        try:
            prompts.append(options.prompt_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompt-file={options.prompt_file}: cannot be read ({error})") from None
    if not prompts:
        raise UserError('--prompt: is not set, and neither is --prompt-file; give --prompt "some text"')
    return prompts


def _requests(opened: OpenedModel, prompts: Sequence[str], options: argparse.Namespace) -> list[Request]:
    """What is asked of the engine, one request a prompt; each has a seed of its own."""
    from megatron.text_generation import Request

    tokenizer = opened.tokenizer
    return [
        Request(
            # A document starts after an end of document in training; an empty prompt does here too.
            prompt_ids=tokenizer.encode(prompt) or [tokenizer.eod_id],
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed + place,
            stop_ids=(tokenizer.eod_id,),
        )
        for place, prompt in enumerate(prompts)
    ]


def _write(
    session: ModelSession, opened: OpenedModel, requests: Sequence[Request], stops: Sequence[str]
) -> tuple[list[str], int]:
    """Returns what follows each prompt, and the number of new tokens."""
    from megatron.text_generation import TextStream

    batch, longest = min(len(requests), MAX_BATCH), max(request.most_tokens for request in requests)
    session.open_engine(max_batch_sequences=batch, max_cache_tokens=batch * longest)
    streams = {
        session.add(request): TextStream(opened.tokenizer, request.prompt_ids, stops) for request in requests
    }
    tokens = 0
    while not session.idle:
        for token in session.step():
            stream = streams[token.request]
            if token.finish_reason != "stop":
                tokens += 1
                stream.feed([token.token_id])
            if token.finish_reason is not None:
                stream.finish()
            elif stream.stopped_by is not None:
                session.cancel(token.request)
    return [stream.text for stream in streams.values()], tokens


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    options = _arguments(argv)
    prompts = _check(options)
    from megatron.backend import initialize, shut_down
    from megatron.checkpointing.inference import open_model
    from megatron.neox_arguments.config import ParallelConfig
    from megatron.text_generation import ModelSession
    from megatron.trainer.telling import end_once

    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    backend = initialize(ParallelConfig(model_parallel_size=ranks), options.seed)
    try:
        opened = open_model(
            options.checkpoint,
            backend,
            iteration=options.iteration,
            rotary_base=options.rotary_base,
            dtype=options.dtype,
        )
        if backend.is_main:
            print(opened.period.describe(opened.record.model["head_dim"]), file=sys.stderr)
        session = ModelSession(opened.built, backend)
        if not backend.is_main:
            session.follow()
            return
        with session:
            started = time.perf_counter()
            texts, tokens = _write(session, opened, _requests(opened, prompts, options), options.stop)
            seconds = time.perf_counter() - started
        for prompt, text in zip(prompts, texts, strict=True):
            print(prompt + text, flush=True)
        print(f"{tokens} tokens, {tokens / seconds:.1f} tokens/s, {session.products}", file=sys.stderr)
    except UserError as error:
        end_once(error)
    finally:
        shut_down()


if __name__ == "__main__":
    main()
