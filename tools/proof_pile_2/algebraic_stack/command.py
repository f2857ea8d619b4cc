# SPDX-License-Identifier: Apache-2.0
"""The subcommand `algebraic-stack`."""

from __future__ import annotations

import argparse
import datetime
from dataclasses import replace
from pathlib import Path

from megatron.neox_arguments.errors import UserError
from tools.argument_types import at_least
from tools.proof_pile_2.algebraic_stack import github
from tools.proof_pile_2.algebraic_stack.languages import LANGUAGES, STACK, by_name, table
from tools.proof_pile_2.algebraic_stack.leakage import read_theorems
from tools.proof_pile_2.algebraic_stack.recipe import Recipe, Sources, make, stack_folder
from tools.proof_pile_2.command_line import (
    Commands,
    add_limit_options,
    add_output_options,
    add_recipe,
    limits_of,
    say_result,
    share,
)
from tools.proof_pile_2.places import place_of

NAMES = tuple(language.name for language in LANGUAGES)
TEST_SETS = ("pisa", "leandojo", "minif2f", "proofnet")


def _day(text: str) -> str:
    """A day, as YYYY-MM-DD."""
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day; write it as 2023-04-01") from None


class _ShowRules(argparse.Action):
    """Prints the table and ends, whatever else is given."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print("\n".join(table()))
        parser.exit()


def add_command(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_recipe(
        commands,
        "algebraic-stack",
        "mathematical code in 17 languages",
        run,
        "Writes OUTPUT/algebraic-stack/{train,validation,test}/*.jsonl.zst and OUTPUT/report.md.",
    )
    sources = parser.add_argument_group("sources")
    sources.add_argument(
        "--languages",
        nargs="+",
        choices=NAMES,
        metavar="LANGUAGE",
        help=f"only these (default: all that a source is given for): {', '.join(NAMES)}",
    )
    sources.add_argument(
        "--stack",
        metavar="PLACE",
        help="the-stack-dedup: a folder or URL with data/LANGUAGE/*.parquet, such as "
        "hf://datasets/bigcode/the-stack-dedup@v1.2 (needs huggingface_hub and its terms accepted)",
    )
    for option, value, what in (
        ("--records", "PLACE", "JSON lines or Parquet with the code in `text`: a file, folder or URL"),
        ("--files", "FOLDER", "source files, chosen by the language's suffixes"),
        ("--repositories", "LIST", "a file of clone URLs or paths, one a line; each gives its newest commit"),
    ):
        sources.add_argument(
            option, nargs=2, action="append", default=[], metavar=("LANGUAGE", value), help=what
        )
    sources.add_argument(
        "--before",
        type=_day,
        default=github.BEFORE,
        metavar="DAY",
        help="commits from this day on are not taken (default: %(default)s)",
    )
    sources.add_argument(
        "--max-repository-bytes",
        type=at_least(1),
        default=github.MAX_REPOSITORY_BYTES,
        metavar="BYTES",
        help="a repository with more is left out (default: %(default)s)",
    )
    add_limit_options(sources)
    rules = parser.add_argument_group("rules")
    rules.add_argument(
        "--show-rules", action=_ShowRules, nargs=0, help="print the rules of every language and end"
    )
    for name in TEST_SETS:
        rules.add_argument(
            f"--{name}",
            nargs="+",
            type=Path,
            default=[],
            metavar="FILE",
            help=f"test theorems of {name} to cut out: JSON, JSONL, or a name a line",
        )
    rules.add_argument(
        "--deduplicate",
        choices=("github", "all", "none"),
        default="github",
        help="languages in which documents that share a chunk of 2,048 characters are dropped "
        "(default: those from GitHub; the Stack's are deduplicated already)",
    )
    rules.add_argument("--seed", type=int, default=0, help="of the splits (default: 0)")
    for name in ("validation", "test"):
        rules.add_argument(
            f"--{name}", type=share, default=0.005, metavar="SHARE", help="of the documents (default: 0.005)"
        )
    add_output_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """The subcommand."""
    if arguments.validation + arguments.test > 1:
        raise UserError("--validation and --test: are more than all documents together; give smaller shares")
    sources = _sources(arguments)
    if not sources:
        raise UserError("no source is given; name one with --stack, --records, --files or --repositories")
    recipe = Recipe(
        arguments.output,
        sources,
        {
            name: tuple(theorem for file in getattr(arguments, name) for theorem in read_theorems(file))
            for name in TEST_SETS
        },
        arguments.deduplicate,
        arguments.seed,
        arguments.validation,
        arguments.test,
        arguments.before,
        arguments.max_repository_bytes,
        limits_of(arguments),
    )
    report = make(
        recipe,
        workers=arguments.workers,
        overwrite=arguments.overwrite,
        log_interval_seconds=arguments.log_interval,
    )
    say_result(arguments.output, report)


def _sources(arguments: argparse.Namespace) -> dict[str, Sources]:
    wanted = arguments.languages or NAMES
    sources = dict.fromkeys(wanted, Sources())
    for kind in ("records", "files", "repositories"):
        for language, value in getattr(arguments, kind):
            if language not in by_name():
                raise UserError(
                    f"--{kind} {language}: is no language of the table; use one of {', '.join(NAMES)}"
                )
            if language not in sources:
                raise UserError(f"--{kind} {language}: is not among --languages; add it there")
            sources[language] = _with(sources[language], kind, value)
    if arguments.stack:
        stack = place_of(arguments.stack)
        for language in wanted:
            row = by_name()[language]
            if row.origin == STACK and (arguments.languages or not sources[language]):
                try:
                    sources[language] = replace(sources[language], stack=(stack_folder(stack, row),))
                except UserError:
                    if arguments.languages:
                        raise
                    print(f"{language}: not in {arguments.stack}; left out")
    missing = [language for language in arguments.languages or () if not sources[language]]
    if missing:
        raise UserError(
            f"--languages {' '.join(missing)}: no source is given; add --files, --records or --repositories"
        )
    return {language: of_language for language, of_language in sources.items() if of_language}


def _with(sources: Sources, kind: str, value: str) -> Sources:
    if kind == "repositories":
        return replace(sources, repositories=(*sources.repositories, *github.read_list(Path(value))))
    if kind == "files":
        return replace(sources, files=(*sources.files, Path(value)))
    return replace(sources, records=(*sources.records, place_of(value)))
