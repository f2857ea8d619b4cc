#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The recipes' command: `python tools/proof_pile_2 RECIPE …` (or `python -m tools.proof_pile_2 RECIPE …`)."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started by path: this folder stands first, and would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from megatron.neox_arguments.errors import exit_on_user_error
from tools.proof_pile_2.command_line import Commands

RECIPES: tuple[str, ...] = (
    "algebraic_stack.command",
    "proofsteps",
    "arxiv",
    "open_web_math.command",
    "sampling",
    "hub",
)
"""Modules with a function `add_command(commands)`, in the order of --help."""


def parser() -> argparse.ArgumentParser:
    """The command's options and subcommands."""
    import importlib

    command = argparse.ArgumentParser(
        prog="proof_pile_2",
        description="Make a mathematical corpus by the rules of Proof-Pile-2. See docs/proof_pile_2.md.",
    )
    commands: Commands = command.add_subparsers(title="recipes", metavar="RECIPE", required=True)
    for name in RECIPES:
        importlib.import_module(f"tools.proof_pile_2.{name}").add_command(commands)
    return command


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = parser().parse_args(argv)
    # As for Ctrl-C, so that a batch system that ends the job leaves no partial files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        print("\nstopped; start the same command again: what is finished is kept", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
