# SPDX-License-Identifier: Apache-2.0
"""`arxiv`: RedPajama's arXiv files and Proof-Pile-2's split of them.

Of each file the first 99% of the lines train; of the rest the first half validates and the other half
tests. Nothing is shuffled: lines of a file are papers of neighbouring months, and so held-out papers are
late ones."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from megatron.neox_arguments.errors import UserError
from tools.proof_pile_2.algebraic_stack.steps import SPLITS
from tools.proof_pile_2.command_line import (
    Commands,
    add_limit_options,
    add_output_options,
    add_recipe,
    limits_of,
    run_recipe_stage,
)
from tools.proof_pile_2.documents import Broken, Document, Dropped
from tools.proof_pile_2.places import Place, place_of
from tools.proof_pile_2.run import OwnRoute, Stage
from tools.proof_pile_2.shards import JsonLinesShard, ReadOptions, Shard, plan_shards

# Per hundred lines; a whole number, because 0.99 is none in binary.
TRAIN_PERCENT = 99


def split_of(line: int, lines: int) -> str:
    """The split of line `line` (from 0) of a file with so many."""
    train = lines * TRAIN_PERCENT // 100
    if line < train:
        return "train"
    return "validation" if line < train + (lines - train) // 2 else "test"


@dataclass(frozen=True)
class ArxivShard:
    """One file, with the split of each line by its place. The file is read twice, first to count."""

    lines: JsonLinesShard

    @property
    def name(self) -> str:
        """That of the lines."""
        return self.lines.name

    @property
    def size_bytes(self) -> int:
        """That of the lines."""
        return self.lines.size_bytes

    def identity(self) -> object:
        """That of the lines."""
        return ["arxiv", self.lines.identity()]

    def read(self) -> Iterator[Document | Broken]:
        """The documents; broken lines have their places too."""
        total = sum(1 for _ in self._raw().read())
        for line, item in enumerate(self.lines.read()):
            yield replace(item, route=split_of(line, total)) if isinstance(item, Document) else item

    def _raw(self) -> JsonLinesShard:
        return replace(self.lines, options=replace(self.lines.options, raw_lines=True))


@dataclass(frozen=True)
class HasText:
    """A paper without text is dropped."""

    name: str = "text"
    version: str = "1"

    def __call__(self, document: Document) -> Document | Dropped:
        """Look for a character that is not blank."""
        return document if document.text.strip() else Dropped("blank")


def add_command(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_recipe(
        commands,
        "arxiv",
        "RedPajama's arXiv files, split as Proof-Pile-2 splits them",
        run,
        "Writes OUTPUT/arxiv/{train,validation,test}/*.jsonl.zst and OUTPUT/arxiv/report.md.",
    )
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PLACE",
        help=".jsonl, .jsonl.zst or .jsonl.gz: files, folders or URLs",
    )
    add_limit_options(parser)
    add_output_options(parser)


def plan(places: Sequence[Place], options: ReadOptions) -> Iterator[Shard]:
    """One shard a file. Errors: `UserError` for what is not JSON lines."""
    for shard in plan_shards(places, options, "arxiv-"):
        if not isinstance(shard, JsonLinesShard):
            raise UserError("--input: holds files that are not JSON lines; give RedPajama's arXiv files only")
        yield ArxivShard(shard)


def run(arguments: argparse.Namespace) -> None:
    """The subcommand."""
    places = [place_of(place) for place in arguments.input]
    options = ReadOptions(cut_bytes=1 << 62, limits=limits_of(arguments))
    stage = Stage("arXiv", (HasText(),), {"train_percent": TRAIN_PERCENT}, OwnRoute(SPLITS))
    folder = arguments.output / "arxiv"
    run_recipe_stage(stage, lambda: plan(places, options), folder, arguments)
