# SPDX-License-Identifier: Apache-2.0
"""Which prover, where it lies and what it may use: options that all subcommands of tools/prove.py share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from megatron.neox_arguments.errors import UserError
from tools.argument_types import at_least
from tools.prove_parts.provers import Limits, MakeChecker, MakeProver

STEPPING = ("coq", "lean")
CHECKING = (*STEPPING, "isabelle")


def seconds(text: str) -> float:
    """An argparse type: a time above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e7:
        raise argparse.ArgumentTypeError(f"{text}: is no number of seconds above 0")
    return value


def add_prover_options(parser: argparse.ArgumentParser, choices: tuple[str, ...]) -> None:
    """Adds them; `make_prover` and `make_checker` read them."""
    defaults = Limits()
    prover = parser.add_argument_group("prover")
    prover.add_argument("--prover", choices=choices, required=True)
    prover.add_argument(
        "--coq-bin", type=Path, metavar="FOLDER", help="where coqtop and coqc lie (default: on PATH)"
    )
    prover.add_argument(
        "--coq-option", action="append", default=[], metavar="OPTION",
        help="handed to coqtop and coqc, such as --coq-option='-R theories Lib'; may be repeated",
    )  # fmt: skip
    prover.add_argument(
        "--lean-repl", type=Path, metavar="FOLDER", help="a built checkout of leanprover-community/repl"
    )
    prover.add_argument(
        "--lean-project",
        type=Path,
        metavar="FOLDER",
        help="a built Lean project whose libraries are imported",
    )
    prover.add_argument("--lake", type=Path, default=Path("lake"), metavar="PROGRAM", help="(default: lake)")
    if "isabelle" in choices:
        _add_isabelle_options(prover)
    prover.add_argument(
        "--allow-axiom", action="append", default=[], metavar="NAME",
        help="full name of an axiom that proofs may rest on, beside the standard library's; may be repeated",
    )  # fmt: skip
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--tactic-timeout", type=seconds, default=defaults.tactic_seconds, metavar="S",
        help=f"seconds for one tactic (default: {defaults.tactic_seconds:g})",
    )  # fmt: skip
    limits.add_argument(
        "--start-timeout", type=seconds, default=defaults.start_seconds, metavar="S",
        help=f"seconds for a prover's start, imports included (default: {defaults.start_seconds:g})",
    )  # fmt: skip
    limits.add_argument(
        "--check-timeout", type=seconds, default=defaults.check_seconds, metavar="S",
        help=f"seconds for the replay of a whole proof (default: {defaults.check_seconds:g})",
    )  # fmt: skip
    limits.add_argument(
        "--prover-memory-gib", type=at_least(1), default=defaults.memory_bytes >> 30, metavar="N",
        help=f"address space of a prover's process (default: {defaults.memory_bytes >> 30})",
    )  # fmt: skip


def _add_isabelle_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--isabelle-server", type=Path, metavar="FILE", help="what `isabelle server` printed when it started"
    )
    group.add_argument(
        "--isabelle-session", default="HOL", metavar="NAME", help="image to build theories on (default: HOL)"
    )
    group.add_argument(
        "--isabelle-folder", action="append", default=[], metavar="FOLDER",
        help="with further sessions, such as the Archive of Formal Proofs; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--hammer-timeout", type=float, default=120.0, metavar="S",
        help="seconds for a call of sledgehammer, 0 for none (default: 120)",
    )  # fmt: skip


def add_try_again(group: argparse._ArgumentGroup, what: str) -> None:
    """The option that has unsettled lines of a folder tried again."""
    group.add_argument(
        "--try-again", action="store_true",
        help=f"go on with the folder, and try {what} again that a time limit or a prover's death has left "
        "without a proof; time limits may be larger than before",
    )  # fmt: skip


def deciding_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_prover_options` that decide verdicts, as a run's settings have them."""
    settings: dict[str, Any] = {
        "prover": args.prover,
        "allowed_axioms": sorted(args.allow_axiom),
        "tactic_seconds": args.tactic_timeout,
        "start_seconds": args.start_timeout,
        "check_seconds": args.check_timeout,
    }
    if args.prover == "coq":
        settings["coq_options"] = args.coq_option
    return settings


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits that the options say."""
    return Limits(
        tactic_seconds=args.tactic_timeout,
        start_seconds=args.start_timeout,
        check_seconds=args.check_timeout,
        memory_bytes=args.prover_memory_gib << 30,
    )


def make_prover(args: argparse.Namespace) -> MakeProver:
    """What starts provers that go step by step.

    Raises:
        UserError: it is not installed, or something of it is missing.
    """
    limits, axioms = limits_of(args), tuple(args.allow_axiom)
    if args.prover == "coq":
        from tools.prove_parts.confinement import find_bubblewrap
        from tools.prove_parts.coq import CoqProver, find_coq

        programs = find_coq(args.coq_bin, args.coq_option)
        if programs.bubblewrap is None:
            print(f"note: Coq is not confined: {find_bubblewrap()[1]}; see docs/proving.md", file=sys.stderr)
        return lambda: CoqProver(programs, limits, axioms)
    if args.prover == "lean":
        from tools.prove_parts.lean import LeanProver, find_lean

        config = find_lean(args.lean_repl, args.lean_project, args.lake, limits)
        return lambda: LeanProver(config, limits, axioms)
    raise UserError(f"--prover={args.prover}: checks whole proofs only; use it with `prove.py whole`")


def make_checker(args: argparse.Namespace) -> MakeChecker:
    """What starts checkers of whole proofs.

    Raises:
        UserError: it is not installed, or something of it is missing.
    """
    if args.prover == "isabelle":
        from tools.prove_parts.isabelle import IsabelleChecker, find_isabelle

        server = find_isabelle(
            args.isabelle_server, args.isabelle_session, args.isabelle_folder, args.hammer_timeout
        )
        limits = limits_of(args)
        return lambda: IsabelleChecker(server, limits)
    return make_prover(args)
