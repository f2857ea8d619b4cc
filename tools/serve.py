#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Serves a checkpoint over HTTP, to clients of OpenAI's and Ollama's APIs: python tools/serve.py CHECKPOINT.

Paths: /v1/completions, /v1/chat/completions, /v1/models, /api/generate, /api/tags, /api/version, /health.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron.neox_arguments.errors import UserError, exit_on_user_error
from tools.serve_parts.llmlean import TACTIC_STOP

if TYPE_CHECKING:
    from megatron.text_generation.session import ModelSession
    from tools.serve_parts.opening import OpenedForServing

KEY_VARIABLE = "SERVE_API_KEY"
# Tokens of the cache unless asked otherwise: in bfloat16 16 GiB for a 7B without shared key heads.
DEFAULT_CACHE_TOKENS = 32_768


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Serve a checkpoint to clients of OpenAI's and Ollama's APIs (docs/serving.md).",
        epilog=f"An API key is read from {KEY_VARIABLE} or --api-key-file, never from the command line. "
        "For several GPUs: torchrun --nproc-per-node N tools/serve.py …, or deepy.py tools/serve.py "
        "--set num_gpus=N -- …; tensor parallel over all of them. SIGTERM ends it when answers are out.",
    )
    parser.add_argument(
        "checkpoint", type=Path, help="a run's save folder, a global_stepN folder, or a Hugging Face folder"
    )
    parser.add_argument(
        "--name", action="append", help="what clients call the model (default: its folder); may be repeated"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, default=8000, help="0 takes a free one (default: 8000; Ollama's is 11434)"
    )
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="keys that clients may have, one a line"
    )
    parser.add_argument("--no-key", action="store_true", help="answer other machines without a key")
    parser.add_argument(
        "--tactic-stop", default=TACTIC_STOP, metavar="TEXT",
        help="also ends a tactic in LLMLean's few-shot requests, no others; '' for nothing (default: ---)",
    )  # fmt: skip
    _model_options(parser.add_argument_group("the model"))
    _limit_options(parser.add_argument_group("limits"))
    return parser.parse_args(argv)


def _model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--iteration", type=int, help="of the checkpoint to take, instead of the newest")
    group.add_argument(
        "--rotary-base", type=float, help="read with another rotary base than the checkpoint's"
    )
    group.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: the checkpoint's")


def _limit_options(group: argparse._ArgumentGroup) -> None:
    def number(name: str, default: int | None, text: str) -> None:
        group.add_argument(name, type=int, default=default, metavar="N", help=text)

    number("--max-context-tokens", None, "prompt and new tokens of a sample (default: the model's positions)")
    number("--max-new-tokens", None, "new tokens of a sample (default: what the context leaves)")
    number("--max-batch-sequences", 32, "samples that are generated at a time (default: 32)")
    number("--max-cache-tokens", None, "tokens of all these together, which is memory: told at the start "
           f"(default: {DEFAULT_CACHE_TOKENS:,}, or one context)")  # fmt: skip
    number("--max-waiting", 256, "samples that wait; beyond, clients are told to come again (default: 256)")
    number("--max-body-bytes", 4 * 2**20, "of a request (default: 4 MiB)")
    group.add_argument("--request-seconds", type=float, default=600.0, metavar="S",
                       help="a request may take, waiting included (default: 600)")  # fmt: skip
    group.add_argument("--drain-seconds", type=float, default=60.0, metavar="S",
                       help="answers under way may take after SIGTERM (default: 60)")  # fmt: skip


def _check(options: argparse.Namespace) -> None:
    """Raises UserError for an option out of its range."""
    least_one = [
        "max_context_tokens",
        "max_new_tokens",
        "max_batch_sequences",
        "max_cache_tokens",
        "max_body_bytes",
    ]
    ranges = [
        (name, getattr(options, name) is None or getattr(options, name) >= 1, "at least 1")
        for name in least_one
    ]
    ranges += [
        ("max_waiting", options.max_waiting >= 0, "0 or more"),
        ("port", 0 <= options.port <= 65535, "from 0 to 65535"),
        ("rotary_base", (options.rotary_base or 2) > 1, "above 1"),
        ("request_seconds", 0 < options.request_seconds < 1e6, "above 0"),
        ("drain_seconds", 0 <= options.drain_seconds < 1e6, "0 or more"),
    ]
    for name, is_right, constraint in ranges:
        if not is_right:
            raise UserError(f"--{name.replace('_', '-')}={getattr(options, name)}: must be {constraint}")
    names = options.name or []
    if any(not name.strip() or not name.isprintable() for name in names) or len(set(names)) < len(names):
        raise UserError(f"--name={','.join(names)}: must be different printable texts")


def read_keys(options: argparse.Namespace) -> tuple[str, ...]:
    """The keys clients may have; none where no key is asked for.

    Raises:
        UserError: a key cannot stand in a header, or the file cannot be read or holds none.
    """
    path = options.api_key_file
    lines, where = [], f"--api-key-file={path}"
    if path is not None:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where}: cannot be read ({error})") from None
        if not any(lines):
            raise UserError(f"{where}: holds no key; write one a line")
    elif KEY_VARIABLE in os.environ:
        lines, where = [os.environ[KEY_VARIABLE].strip()], KEY_VARIABLE
        if not lines[0]:
            raise UserError(f"{KEY_VARIABLE}: is empty; set it to a key, or unset it")
    keys = tuple(line for line in lines if line)
    if any(not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise UserError(
            f"{where}: a key has blanks or letters beyond ASCII, which no header carries; choose another"
        )
    return keys


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only.

    Raises:
        UserError: it is no address of this machine's.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--host={host}: is no address ({error}); use 127.0.0.1, or 0.0.0.0 for all"
        ) from None
    return all(ipaddress.ip_address(str(address[4][0]).partition("%")[0]).is_loopback for address in found)


def bind(host: str, port: int) -> socket.socket:
    """The socket to listen on; nobody can connect before the model is there.

    Raises:
        UserError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"--host={host} --port={port}: {error.strerror}; choose another port, or end what listens there"
        ) from None
    return listener


def _serve(
    options: argparse.Namespace,
    found: OpenedForServing,
    session: ModelSession,
    listener: socket.socket,
    keys: tuple[str, ...],
) -> int:
    """Serves until a signal; returns the exit status."""
    from tools.serve_parts.application import Access, application
    from tools.serve_parts.engine_thread import EngineThread
    from tools.serve_parts.server import Server
    from tools.serve_parts.wanted import Limits, Served

    context = context_tokens(options, found)
    limits = Limits(
        body_bytes=options.max_body_bytes,
        request_seconds=options.request_seconds,
        new_tokens=min(context, options.max_new_tokens or context),
        in_flight=options.max_batch_sequences + options.max_waiting,
    )
    opened = found.opened
    names = tuple(options.name or [options.checkpoint.resolve().name])
    served = Served(names, opened.tokenizer, context, found.stop_ids, opened.record.vocab_size, limits)
    thread = EngineThread(session, limits.in_flight)
    access = Access(keys, only_loopback_names=not keys and is_loopback(options.host))
    app = application(
        served, thread, found.template, access, tactic_stop=options.tactic_stop, model_details=found.details()
    )
    address = listener.getsockname()
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    print(
        f"{opened.period.describe(opened.record.model['head_dim'])}\n"
        f"{', '.join(names)}: context {context:,} tokens, {options.max_batch_sequences} samples at a time, "
        f"cache of {session.engine.max_cache_tokens:,} tokens, {session.engine.cache_bytes / 2**30:.2f} GiB "
        "a rank",
        file=sys.stderr,
    )
    server = Server(app, thread, f"serving at http://{shown}:{address[1]}", options.drain_seconds)
    return server.run_until_told(listener)


def context_tokens(options: argparse.Namespace, found: OpenedForServing) -> int:
    """Prompt and new tokens of a sample together.

    Raises:
        UserError: more was asked for than the model has positions.
    """
    positions = int(found.opened.record.model["max_position_embeddings"])
    asked = options.max_context_tokens or positions
    if asked > positions:
        raise UserError(
            f"--max-context-tokens={asked}: the model has {positions:,} positions; ask for no more"
        )
    return int(asked)


def cache_tokens(options: argparse.Namespace, context: int) -> int:
    """Tokens of the cache.

    Raises:
        UserError: one sample would not fit.
    """
    most = options.max_batch_sequences * context
    asked = options.max_cache_tokens or max(context, min(DEFAULT_CACHE_TOKENS, most))
    if asked < context:
        raise UserError(
            f"--max-cache-tokens={asked}: is less than one context of {context:,} tokens; give more, or a "
            "smaller --max-context-tokens"
        )
    return int(asked)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    options = _arguments(argv)
    _check(options)
    keys = read_keys(options)
    if not (keys or options.no_key or is_loopback(options.host)):
        raise UserError(
            f"--host={options.host}: other machines could ask without a key; give --api-key-file or "
            f"{KEY_VARIABLE}, or --no-key if that is meant"
        )
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{error.name}: is not installed; python -m pip install -r requirements/requirements-eval.txt"
        ) from None
    ranks, is_main = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0") == "0"
    listener = bind(options.host, options.port) if is_main else None
    sys.exit(_run(options, keys, listener, ranks))


def _run(
    options: argparse.Namespace, keys: tuple[str, ...], listener: socket.socket | None, ranks: int
) -> int:
    """Loads the model on every rank and serves on rank 0; returns the exit status."""
    from megatron.backend import initialize, shut_down
    from megatron.neox_arguments.config import ParallelConfig
    from megatron.text_generation.session import ModelSession
    from megatron.trainer.telling import end_once
    from tools.serve_parts.opening import open_for_serving

    backend = initialize(ParallelConfig(model_parallel_size=ranks), seed=1)
    try:
        found = open_for_serving(
            options.checkpoint,
            backend,
            iteration=options.iteration,
            rotary_base=options.rotary_base,
            dtype=options.dtype,
        )
        session = ModelSession(
            found.opened.built,
            backend,
            max_batch_sequences=options.max_batch_sequences,
            max_cache_tokens=cache_tokens(options, context_tokens(options, found)),
        )
        if listener is not None:
            for notice in found.notices:
                print(f"note: {notice}", file=sys.stderr)
            return _serve(options, found, session, listener, keys)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(signum, signal.SIG_IGN)  # rank 0 says when the last answer is out
        session.follow()
        return 0
    except UserError as error:
        end_once(error)
    finally:
        shut_down()


if __name__ == "__main__":
    main()
