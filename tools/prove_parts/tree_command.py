# SPDX-License-Identifier: Apache-2.0
"""Writes the search tree of a theorem as one HTML page that any browser opens from the disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron.neox_arguments.errors import UserError, shown
from megatron.neox_arguments.whole_files import write_whole
from tools.prove_parts.records import PROOFS, read_proofs
from tools.prove_parts.tree_page import tree_page

SUMMARY = "show the search tree of a theorem as an HTML page"
EPILOG = "example: python tools/prove.py tree proofs/llemma_7b mathd_algebra_478 --output tree.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    parser.add_argument("folder", type=Path, help="the --output of a search")
    parser.add_argument("theorem", help="its name")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the page to write")


def run(args: argparse.Namespace) -> None:
    """The subcommand.

    Raises:
        UserError: the theorem is not there, or the page cannot be written.
    """
    lines = read_proofs(args.folder / PROOFS)
    if args.theorem not in lines:
        raise UserError(
            f"{args.theorem}: is not in {args.folder / PROOFS}; give one of its {len(lines)} theorems"
        )
    line = lines[args.theorem]
    for number, node in enumerate(line["tree"] or []):
        if not _is_node(node, number):
            raise UserError(
                f"{args.folder / PROOFS}: theorem={args.theorem}: tree: node {number} is none "
                f"({shown(node)}); repair or remove the line"
            )
    try:
        write_whole(args.output, tree_page(line))
    except OSError as error:
        raise UserError(
            f"--output={args.output}: cannot be written ({error}); choose another place"
        ) from None
    print(args.output)


def _is_node(node: object, number: int) -> bool:
    """Whether a search can have written it: its parent is an earlier one, and all but the first have one."""
    if not isinstance(node, dict) or not isinstance(node.get("outcome"), str):
        return False
    parent, expanded = node.get("parent"), node.get("expanded", 0)
    if type(node.get("cost")) not in (int, float) or type(expanded) is not int:
        return False
    if number == 0:
        return parent is None
    return type(parent) is int and 0 <= parent < number and isinstance(node.get("tactic"), str)
