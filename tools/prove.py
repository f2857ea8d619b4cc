#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Formal proofs: `prove.py search` looks for them tactic by tactic, `prove.py whole` has them written whole.

Every proof is replayed in a fresh prover before it counts. See docs/proving.md."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron.neox_arguments.closed_pipe import exit_when_nobody_reads
from megatron.neox_arguments.errors import exit_on_user_error

# Each is a module with SUMMARY, EPILOG, add_arguments(parser) and run(args).
SUBCOMMANDS = {"search": "search_command", "tree": "tree_command", "whole": "whole_proofs"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Prove formal statements with a language model or a list of tactics.",
        epilog="See docs/proving.md.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module_name in SUBCOMMANDS.items():
        module = importlib.import_module(f"tools.prove_parts.{module_name}")
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.__doc__,
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    args = _parser().parse_args(argv)
    try:
        with exit_when_nobody_reads():
            args.run(args)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
