#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Problems, generations, verdicts and proofs as a page to browse: `explorer.py RESULTS… --output DIR`.

The page is a folder of plain files that opens from the disk and loads nothing from elsewhere."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron.neox_arguments.errors import UserError, exit_on_user_error

EPILOG = """\
RESULTS is a folder that evaluate.py or tools/prove.py wrote, or a JSONL file: generations (problem,
generation, and as far as known reference, correct, task, item, level, subject, model) or proofs (theorem,
statement, proved, proof).
NAME=RESULTS names the model. See docs/explorer.md.

examples:
  python tools/explorer.py results/llemma_7b results/llemma_34b --output explorer
  python tools/explorer.py 7b=runs/a/proofs.jsonl portfolio=runs/b/proofs.jsonl --output proofs
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Make a page to browse samples, verdicts and proofs, offline.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "results", nargs="+", metavar="RESULTS", help="results folder or JSONL file, or NAME=RESULTS"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of the page; open index.html"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the explorer that the folder holds")
    parser.add_argument("--title", default="Sample Explorer", help="of the page (default: Sample Explorer)")
    parser.add_argument(
        "--html", action="store_true", help="undo HTML entities in the texts (&lt; and the like)"
    )
    parser.add_argument(
        "--max-samples", type=int, metavar="N",
        help="show at most the first N samples of an item and model; verdicts and votes are of all "
        "(default: all)",
    )  # fmt: skip
    return parser


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    args = _parser().parse_args(argv)
    if args.max_samples is not None and args.max_samples < 1:
        raise UserError(f"--max-samples={args.max_samples}: must be at least 1")
    try:
        explore(args)
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        sys.exit(130)


def explore(args: argparse.Namespace) -> None:
    """Reads everything, then writes the page.

    Raises:
        UserError: something of the user's is wrong. The output folder is as it was.
    """
    from tools.explorer_parts import folder, records, sources
    from tools.explorer_parts.gather import Gathering
    from tools.explorer_parts.page_data import Writer

    files, results = sources.parse(args.results)
    folder.check(args.output, args.overwrite)
    with folder.drafted(args.output) as draft:
        database = draft / "facts.sqlite"
        gathering = Gathering(database)
        try:
            of_model: dict[str, list[str]] = {}
            without_lines: list[sources.Source] = []
            for source in files:
                count = 0
                for count, fact in enumerate(records.read(source, args.html), 1):  # noqa: B007
                    gathering.add(fact)
                    names = of_model.setdefault(fact.model, [])
                    if source.origin not in names:
                        names.append(source.origin)
                if not count:
                    without_lines.append(source)
            if not gathering.models:
                raise UserError(
                    f"{args.results[0]}: holds no sample and no proof; give results that have some"
                )
            (draft / "data").mkdir()
            writer = Writer(draft / "data", gathering.models, args.max_samples)
            for item in gathering.items():
                writer.add(item)
            writer.finish(args.title, of_model, gathering.task_kinds(), results)
        finally:
            gathering.close()
        database.unlink()
        folder.copy_page(draft)
    for source in without_lines:
        lost = "" if source.model in of_model else f", and the page is without the model {source.model}"
        print(f"note: {source.path}: holds no whole line{lost}", file=sys.stderr)
    print(
        f"{args.output / 'index.html'}: {writer.items:,} items, {writer.samples:,} samples and proofs of "
        f"{', '.join(gathering.models)}"
    )


if __name__ == "__main__":
    main()
