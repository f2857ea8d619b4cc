# SPDX-License-Identifier: Apache-2.0
"""Looks for proofs tactic by tactic: the likeliest first, each goal once, every proof replayed whole.

Defaults are those of the Llemma paper: 32 tactics a state, 100 states and 600 s a theorem.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron.neox_arguments.errors import UserError
from tools.argument_types import at_least
from tools.prove_parts import asking, prover_options, search
from tools.prove_parts.proposers import Proposer, read_tactics
from tools.prove_parts.provers import Prover, Theorem
from tools.prove_parts.records import ProofRun
from tools.prove_parts.report import as_markdown, summary, write_report
from tools.prove_parts.scratch import sweep
from tools.prove_parts.theorems import read_theorems
from tools.prove_parts.workers import records_of

SUMMARY = "look for proofs tactic by tactic"
EPILOG = """\
The same command goes on where it was stopped. See docs/proving.md.

examples:
  python tools/prove.py search --prover coq --theorems minif2f.jsonl --output proofs/coq \\
      --tactics tools/prove_parts/portfolios/coq_arithmetic.txt --max-expansions 1
  python tools/prove.py search --prover lean --lean-repl ~/repl --lean-project ~/mathlib4 --split test \\
      --theorems minif2f.jsonl --header header.lean --hf llemma-7b-hf --output proofs/llemma_7b
  python tools/prove.py tree proofs/llemma_7b mathd_algebra_478 --output tree.html
"""
# Draws in one batch of the engine.
_AT_ONCE = 256
# Places of the engine's KV cache: 32 draws from a prompt of 768 tokens. A 7B without grouped heads takes
# 0.5 MiB for each in bfloat16. Draws wait where there is no room.
_CACHE_TOKENS = 32_768


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    theorems = parser.add_argument_group("theorems")
    theorems.add_argument("--theorems", type=Path, required=True, metavar="FILE", help="JSONL, one a line")
    theorems.add_argument(
        "--name-key", metavar="KEY", help="of a theorem's name (default: name, full_name, …)"
    )
    theorems.add_argument(
        "--statement-key", metavar="KEY", help="of its text (default: statement, formal_statement or source)"
    )
    theorems.add_argument("--split", help="take those with this `split` only")
    theorems.add_argument(
        "--header",
        type=Path,
        metavar="FILE",
        help="text before statements that bring none: imports and the like",
    )
    theorems.add_argument("--limit", type=at_least(1), metavar="N", help="take the first N only")
    prover_options.add_prover_options(parser, prover_options.STEPPING)
    _add_proposer_options(parser)
    _add_search_options(parser)


def _add_proposer_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where tactics come from (one of the first four)")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--tactics", type=Path, metavar="FILE", help="a list, one a line, tried at every state"
    )
    source.add_argument("--native", type=Path, metavar="CHECKPOINT", help="a checkpoint of this program")
    source.add_argument("--hf", type=Path, metavar="FOLDER", help="a Hugging Face model")
    source.add_argument(
        "--endpoint", metavar="URL",
        help="an OpenAI-style server with completions and logprobs, such as http://127.0.0.1:8000/v1; a key "
        "is read from OPENAI_API_KEY",
    )  # fmt: skip
    group.add_argument("--model", help="the model's name at --endpoint")
    group.add_argument("--dtype", choices=("float32", "bfloat16"), help="of --native or --hf")
    group.add_argument(
        "--prompt", type=Path, metavar="FILE",
        help="a text with {goals} in it (default: the paper's three examples for Lean, ours for Coq)",
    )  # fmt: skip
    group.add_argument(
        "--decoding", choices=("beam", "sample"),
        help="beam search, as in the paper, or draws (default: beam, but sample with --endpoint, where beam "
        "needs vLLM's use_beam_search)",
    )  # fmt: skip
    group.add_argument(
        "--candidates", type=at_least(1), default=asking.CANDIDATES, metavar="N",
        help=f"tactics a state (default: {asking.CANDIDATES})",
    )  # fmt: skip
    group.add_argument(
        "--tactic-tokens", type=at_least(1), default=asking.TACTIC_TOKENS, metavar="N",
        help=f"the longest tactic (default: {asking.TACTIC_TOKENS})",
    )  # fmt: skip
    group.add_argument(
        "--cache-tokens", type=at_least(1), default=_CACHE_TOKENS, metavar="N",
        help="room of --native's KV cache; a prompt and its tactic must fit, with beams all its tactics "
        f"(default: {_CACHE_TOKENS})",
    )  # fmt: skip
    group.add_argument("--temperature", type=float, default=1.0, help="of draws (default: 1)")
    group.add_argument("--top-p", type=float, default=1.0, help="of draws (default: 1)")
    group.add_argument("--seed", type=int, default=0, help="of draws (default: 0)")


def _add_search_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("search")
    group.add_argument(
        "--max-expansions", type=at_least(1), default=search.EXPANSIONS, metavar="N",
        help=f"states of a theorem that tactics are tried on (default: {search.EXPANSIONS})",
    )  # fmt: skip
    group.add_argument(
        "--theorem-timeout", type=prover_options.seconds, default=search.THEOREM_SECONDS, metavar="S",
        help=f"seconds for a theorem (default: {search.THEOREM_SECONDS:g})",
    )  # fmt: skip
    group.add_argument(
        "--workers", type=at_least(1), default=1, metavar="N",
        help="theorems at a time, each with a prover of its own (default: 1)",
    )  # fmt: skip
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="gets proofs.jsonl, results.json, results.md",
    )
    output.add_argument("--overwrite", action="store_true", help="begin anew, whatever the folder holds")
    prover_options.add_try_again(output, "theorems")


def run(args: argparse.Namespace) -> None:
    """The subcommand.

    Raises:
        UserError: something of the user's is wrong.
    """
    _check(args)
    theorems = _theorems(args)
    make_prover = prover_options.make_prover(args)
    limits = search.SearchLimits(args.max_expansions, args.theorem_timeout)
    with _proposer(args) as proposer:
        if proposer is None:  # another rank of the model; the first has done all
            return
        settings = _settings(args, proposer)

        def work(prover: Prover, theorem: Theorem, stopped: Callable[[], bool]) -> dict[str, Any]:
            return search.search(prover, theorem, proposer, limits, stopped)

        sweep()
        proof_run = ProofRun(args.output, settings, args.overwrite, args.try_again)
        try:
            remaining = proof_run.remaining(theorems)
            lines = {theorem.name: proof_run.done.get(theorem.name) for theorem in theorems}
            for line in records_of(remaining, make_prover, work, args.workers):
                proof_run.append(line)
                lines[line["theorem"]] = line
                _tell(line, lines)
            found = [line for line in lines.values() if line is not None]
            content = summary(args.theorems.stem, found, settings)
            write_report(args.output, content)
        finally:
            proof_run.close()
    print(as_markdown(content))


def _check(args: argparse.Namespace) -> None:
    if (args.endpoint is None) != (args.model is None):
        raise UserError("--endpoint, --model: belong together; give both or neither")
    if args.dtype is not None and args.native is None and args.hf is None:
        raise UserError(
            f"--dtype={args.dtype}: is of a model in this process; give --native or --hf, or leave it"
        )
    if args.tactics is not None and args.prompt is not None:
        raise UserError("--prompt: asks a model, and --tactics is none; leave one out")
    if not 0 < args.temperature < 100 or not 0 < args.top_p <= 1:
        raise UserError("--temperature, --top-p: must be above 0, and top-p at most 1; draws need both")


def _theorems(args: argparse.Namespace) -> list[Theorem]:
    header = ""
    if args.header is not None:
        try:
            header = args.header.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--header={args.header}: cannot be read ({error})") from None
    elif args.prover == "lean":
        from tools.prove_parts.lean import HEADER

        header = HEADER
    theorems = read_theorems(
        args.theorems, args.prover, name_key=args.name_key, statement_key=args.statement_key,
        split=args.split, header=header,
    )  # fmt: skip
    return theorems[: args.limit]


@contextmanager
def _proposer(args: argparse.Namespace) -> Iterator[Proposer | None]:
    """Where tactics come from; None on a rank that only computes for the first one."""
    if args.native is not None:
        with _native(args) as proposer:
            yield proposer
        return
    if args.tactics is not None:
        proposer = read_tactics(args.tactics)
    elif args.hf is not None:
        from tools.prove_parts.hf_model import HFModel

        proposer = HFModel(args.hf, args.dtype or "bfloat16", _asking(args, "beam"))
    else:
        from tools.prove_parts.endpoint import Endpoint

        proposer = Endpoint(args.endpoint, args.model, _asking(args, "sample"))
    try:
        yield proposer
    finally:
        proposer.close()


@contextmanager
def _native(args: argparse.Namespace) -> Iterator[Proposer | None]:
    from megatron.backend import initialize, shut_down
    from megatron.checkpointing.inference import open_model
    from megatron.neox_arguments.config import ParallelConfig
    from megatron.text_generation import ModelSession
    from megatron.trainer.telling import end_once
    from tools.prove_parts.native_model import NativeModel

    backend = initialize(
        ParallelConfig(model_parallel_size=int(os.environ.get("WORLD_SIZE", "1"))), args.seed
    )
    try:
        opened = open_model(args.native, backend, dtype=args.dtype)
        asked = _asking(args, "beam")
        draws = args.candidates * args.workers if asked.decoding == "sample" else 0
        with ModelSession(
            opened.built,
            backend,
            max_batch_sequences=min(_AT_ONCE, draws),
            max_cache_tokens=args.cache_tokens,
        ) as session:
            if not session.is_first:
                session.follow()
                yield None
            else:
                yield NativeModel(args.native, opened, session, asked, cache_tokens=args.cache_tokens)
    except UserError as error:
        end_once(error)
    finally:
        shut_down()


def _asking(args: argparse.Namespace, usual: asking.Decoding) -> asking.Asking:
    return asking.Asking(
        template=asking.template_of(args.prover, args.prompt),
        decoding=args.decoding or usual,
        candidates=args.candidates,
        tactic_tokens=args.tactic_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
    )


def _settings(args: argparse.Namespace, proposer: Proposer) -> dict[str, Any]:
    """What decides the result. Workers, memory and where programs lie do not."""
    header = b"" if args.header is None else args.header.read_bytes()
    return {
        **prover_options.deciding_settings(args),
        "header_sha256": hashlib.sha256(header).hexdigest(),
        "theorem_seconds": args.theorem_timeout,
        "max_expansions": args.max_expansions,
        **proposer.settings(),
    }


def _tell(line: Mapping[str, Any], lines: Mapping[str, Mapping[str, Any] | None]) -> None:
    """One line of progress."""
    done = [each for each in lines.values() if each is not None]
    proved = sum(each["proved"] for each in done)
    what = (
        line["proof"].replace("\n", " ") if line["proved"] else f"{line['status']} {line['message']}".strip()
    )
    print(
        f"{len(done)}/{len(lines)} ({proved} proved)  {line['theorem']}  {line['seconds']:.1f} s  "
        f"{what[:100]}",
        flush=True,
    )
