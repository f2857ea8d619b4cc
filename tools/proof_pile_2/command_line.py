# SPDX-License-Identifier: Apache-2.0
"""Options that all recipes share, and how a recipe becomes a subcommand."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from tools.argument_types import at_least
from tools.proof_pile_2.reports import Report
from tools.proof_pile_2.run import Stage, run_stage
from tools.proof_pile_2.shards import Limits, Shard

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def share(text: str) -> float:
    """An argument that is a number from 0 to 1."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{number} is not between 0 and 1")
    return number


def add_recipe(
    commands: Commands, name: str, summary: str, run: Callable[[argparse.Namespace], None], details: str = ""
) -> argparse.ArgumentParser:
    """A subcommand that calls `run`; its own options are added to what is returned."""
    parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}. {details}".strip()
    )
    parser.set_defaults(run=run)
    return parser


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """--output, --workers and what else every recipe has."""
    group = parser.add_argument_group("output")
    group.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    group.add_argument(
        "--workers",
        type=at_least(1),
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes, each with a shard of its own (default: the cores of this machine)",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="make anew what was made with other options or inputs; without it, that is refused",
    )
    group.add_argument(
        "--log-interval",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="between two lines of progress (default: 5)",
    )


def add_limit_options(parser: argparse._ActionsContainer) -> None:
    """What a single record or archive may take."""
    parser.add_argument(
        "--max-record-bytes",
        type=at_least(1),
        default=Limits().max_record_bytes,
        metavar="BYTES",
        help="a line, row or file that is larger is counted as broken (default: %(default)s)",
    )


def limits_of(arguments: argparse.Namespace) -> Limits:
    """The limits that were asked for."""
    return Limits(max_record_bytes=arguments.max_record_bytes)


def run_recipe_stage(
    stage: Stage, plan: Callable[[], Iterable[Shard]], folder: Path, arguments: argparse.Namespace
) -> Report:
    """Run a stage as the options say, and say what came out."""
    report = run_stage(
        stage, plan, folder, workers=arguments.workers, overwrite=arguments.overwrite,
        log_interval_seconds=arguments.log_interval,
    )  # fmt: skip
    say_result(folder, report)
    return report


def say_result(folder: Path, report: Report) -> None:
    """One line: what came in, what went out."""
    read, written = report.total("read"), report.total("written")
    print(
        f"{folder}: {read.documents:,} documents in, {written.documents:,} out "
        f"({written.text_bytes / 1e6:,.1f} MB), {sum(report.broken.values()):,} broken; see report.md"
    )
