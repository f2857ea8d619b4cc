# SPDX-License-Identifier: Apache-2.0
"""`general`: samples of general text and code, so that the model forgets less of them.

Llemma's mixture has 2% of the Pile and 3% of RedPajama's code, which are its training weights 0.147368 and
0.221053 beside 2, 4 and 1 for arXiv, web and code. The same shares of their documents are taken here
unless told otherwise; what a run sees of them is decided by the weights."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from megatron.neox_arguments.errors import UserError
from tools.proof_pile_2.algebraic_stack.steps import HashSplit, place_of_text
from tools.proof_pile_2.command_line import (
    Commands,
    add_limit_options,
    add_output_options,
    add_recipe,
    limits_of,
    run_recipe_stage,
    share,
)
from tools.proof_pile_2.documents import Document, Dropped, version_of
from tools.proof_pile_2.places import Place, place_of
from tools.proof_pile_2.run import Stage
from tools.proof_pile_2.shards import ReadOptions, plan_shards

SOURCES = {"pile": 0.02, "redpajama-code": 0.03}


@dataclass(frozen=True)
class Sample:
    """Keeps a share of the documents, chosen by a hash of their text."""

    share: float
    seed: int
    name: str = "sample"

    @property
    def version(self) -> str:
        """Changes with the share and the seed."""
        return version_of(1, self.share, self.seed)

    def __call__(self, document: Document) -> Document | Dropped:
        """By the hash. The number before the seed keeps this choice apart from that of the split."""
        chosen = place_of_text(self.seed, "sample\0" + document.text) < self.share
        return document if chosen else Dropped("not in the sample")


def add_command(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_recipe(
        commands,
        "general",
        "samples of the Pile and of RedPajama's code",
        run,
        "Writes OUTPUT/{pile,redpajama-code}/{train,validation,test}/*.jsonl.zst.",
    )
    sources = parser.add_argument_group("sources")
    for name, default in SOURCES.items():
        sources.add_argument(
            f"--{name}",
            nargs="+",
            default=[],
            metavar="PLACE",
            help="JSON lines or Parquet: files, folders or URLs",
        )
        sources.add_argument(
            f"--{name}-share",
            type=share,
            default=default,
            metavar="SHARE",
            help=f"of its documents (default: {default:g})",
        )
    sources.add_argument("--text-key", default="text", help="key or column of the text (default: text)")
    add_limit_options(sources)
    sources.add_argument("--seed", type=int, default=0, help="of the sample and the splits (default: 0)")
    for name in ("validation", "test"):
        sources.add_argument(
            f"--{name}",
            type=share,
            default=0.005,
            metavar="SHARE",
            help="of the documents in the sample (default: 0.005)",
        )
    add_output_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """The subcommand."""
    given = {name: getattr(arguments, name.replace("-", "_")) for name in SOURCES}
    if not any(given.values()):
        raise UserError("no source is given; name one with " + " or ".join(f"--{name}" for name in SOURCES))
    for name, places in given.items():
        if places:
            _sample(arguments, name, [place_of(place) for place in places])


def _sample(arguments: argparse.Namespace, name: str, places: list[Place]) -> None:
    kept = getattr(arguments, f"{name.replace('-', '_')}_share")
    split = HashSplit(arguments.seed, arguments.validation, arguments.test)
    options = {"share": kept, "seed": arguments.seed, "validation": split.validation, "test": split.test}
    stage = Stage(name, (Sample(kept, arguments.seed),), options, split)
    read = ReadOptions(text_key=arguments.text_key, limits=limits_of(arguments))
    folder: Path = arguments.output / name
    run_recipe_stage(stage, lambda: plan_shards(places, read, f"{name}-"), folder, arguments)
