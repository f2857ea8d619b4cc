# SPDX-License-Identifier: Apache-2.0
"""`proofsteps lean` and `proofsteps isabelle`: what extractors print of proofs, step by step, as
documents.

Lean: a document is what lean-training-data prints for one module, a file or a JSON line with `text`.
Isabelle: a document is one lemma or theorem, `[STATEMENT]` and then `[PROOF STATE]` and `[PROOF STEP]` by
turns. The extractor's output is JSON, a file or line for each theory or theorem, in either of two forms:

    {"statement": "lemma a: …", "steps": [{"state": "…", "step": "…"}, …]}

    {"translations": [["state", "step"], …]}

The second is how PISA writes a theory: a step that states a lemma or theorem begins it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tools.proof_pile_2.algebraic_stack.leakage import DropStatements, Theorem, read_theorems
from tools.proof_pile_2.algebraic_stack.steps import HashSplit
from tools.proof_pile_2.arxiv import HasText
from tools.proof_pile_2.command_line import (
    Commands,
    add_limit_options,
    add_output_options,
    add_recipe,
    limits_of,
    run_recipe_stage,
    share,
)
from tools.proof_pile_2.documents import Document, Dropped, Step
from tools.proof_pile_2.places import place_of
from tools.proof_pile_2.run import Stage
from tools.proof_pile_2.shards import ReadOptions, plan_shards

_STATES = re.compile(r"\s*(?:lemma|theorem)\b")
_ENDS = re.compile(
    r"\s*(?:corollary|proposition|definition|fun|function|primrec|datatype|locale|class|instance|abbreviation|"
    r"inductive|record|section|subsection|chapter|text|end|declare|lemmas|context|interpretation|theory)\b"
)


@dataclass(frozen=True)
class IsabelleSteps:
    """An extractor's JSON to documents, one a lemma or theorem."""

    name: str = "proof steps"
    version: str = "1"

    def __call__(self, document: Document) -> Document | Dropped | list[Document | Dropped]:
        """Read the JSON; other statements (corollaries, definitions) are left out."""
        try:
            value = orjson.loads(document.text)
        except orjson.JSONDecodeError:
            return Dropped("not JSON")
        proofs = list(_proofs(value))
        if not proofs:
            return Dropped("no proof")
        return [self._document(document, statement, steps) for statement, steps in proofs]

    @staticmethod
    def _document(source: Document, statement: str, steps: list[tuple[str, str]]) -> Document | Dropped:
        if not _STATES.match(statement):
            return Dropped("neither lemma nor theorem")
        if not steps:
            return Dropped("no steps")
        parts = [f"[STATEMENT]\n{statement.strip()}\n"]
        parts += [f"[PROOF STATE]\n{state.strip()}\n[PROOF STEP]\n{step.strip()}\n" for state, step in steps]
        return source.with_text("".join(parts))


def _proofs(value: object) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(statement, steps) of each proof in an extractor's value."""
    if isinstance(value, list):
        for part in value:
            yield from _proofs(part)
    elif isinstance(value, dict) and isinstance(value.get("statement"), str):
        yield value["statement"], list(_pairs(value.get("steps")))
    elif isinstance(value, dict):
        statement, steps = "", list[tuple[str, str]]()
        for state, step in _pairs(value.get("translations")):
            if _STATES.match(step) or _ENDS.match(step):
                if statement:
                    yield statement, steps
                statement, steps = step if _STATES.match(step) else "", []
            elif statement:
                steps.append((state, step))
        if statement:
            yield statement, steps


def _pairs(value: Any) -> Iterator[tuple[str, str]]:
    for part in value if isinstance(value, list) else []:
        pair = [part.get("state"), part.get("step")] if isinstance(part, dict) else part
        if (
            isinstance(pair, list)
            and len(pair) >= 2
            and isinstance(pair[0], str)
            and isinstance(pair[1], str)
        ):
            yield pair[0], pair[1]


def add_command(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_recipe(
        commands,
        "proofsteps",
        "proof steps of Lean or Isabelle, from their extractors' output",
        run,
        "Writes OUTPUT/proofsteps-{lean,isabelle}/{train,validation,test}/*.jsonl.zst.",
    )
    parser.add_argument("system", choices=("lean", "isabelle"))
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PLACE",
        help="the extractor's files, folders of them, or JSON lines",
    )
    parser.add_argument(
        "--pisa",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="test theorems; a proof of one of their statements is dropped",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the splits (default: 0)")
    for name in ("validation", "test"):
        parser.add_argument(
            f"--{name}", type=share, default=0.005, metavar="SHARE", help="of the documents (default: 0.005)"
        )
    add_limit_options(parser)
    add_output_options(parser)


def steps_for(system: str, theorems: tuple[Theorem, ...]) -> tuple[Step, ...]:
    """What an extractor's output goes through."""
    leakage = (DropStatements(theorems),) if theorems else ()
    return (HasText(), *leakage) if system == "lean" else (IsabelleSteps(), *leakage)


def run(arguments: argparse.Namespace) -> None:
    """The subcommand."""
    system = arguments.system
    places = [place_of(place) for place in arguments.input]
    theorems = tuple(theorem for file in arguments.pisa for theorem in read_theorems(file))
    split = HashSplit(arguments.seed, arguments.validation, arguments.test)
    options = {"seed": split.seed, "validation": split.validation, "test": split.test}
    stage = Stage(f"Proof steps, {system}", steps_for(system, theorems), options, split)
    read = ReadOptions(
        raw_lines=system == "isabelle", meta=(("lang", f"{system}-proofsteps"),), limits=limits_of(arguments)
    )
    folder = arguments.output / f"proofsteps-{system}"
    run_recipe_stage(stage, lambda: plan_shards(places, read, f"{system}-proofsteps-"), folder, arguments)
