#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Which documents share an n-gram with a test set: `overlap.py --test T.jsonl --key problem --corpus C…
--output O`.

An n-gram is 30 whitespace words of a test item, or token ids; each hit is compared exactly."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron.neox_arguments.errors import UserError, exit_on_user_error
from megatron.tokenizer import TOKENIZER_TYPES
from tools.argument_types import at_least

EPILOG = """\
The same command goes on where it was killed. See docs/overlap.md.

examples:
  python tools/overlap.py --test math_test.jsonl --key problem --corpus proof-pile-2/arxiv corpus.jsonl.zst \\
      --output overlap/math --results samples_minerva_math.jsonl
  python tools/overlap.py --test gsm8k.jsonl --key question --corpus data/math_text_document --unit tokens \\
      --tokenizer-type SPMTokenizer --vocab-file tokenizer.model --output overlap/gsm8k
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Find the documents that share an n-gram with a test set, and report them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    test = parser.add_argument_group("test set")
    test.add_argument("--test", type=Path, required=True, metavar="FILE", help="JSONL, one item a line")
    test.add_argument("--key", required=True, help="key of an item's text, such as problem or solution")
    test.add_argument("--id-key", metavar="KEY", help="key of an item's id (default: its number from 0)")
    test.add_argument("--level-key", default="level", metavar="KEY", help="(default: level)")
    test.add_argument(
        "--ngram", type=at_least(2), default=30, metavar="N", help="units of an n-gram (default: 30)"
    )
    test.add_argument(
        "--match-short-from", type=at_least(2), metavar="N",
        help="match items of N units up to an n-gram's length whole (default: they are only counted)",
    )  # fmt: skip
    test.add_argument(
        "--unit", choices=("words", "tokens"), default="words", help="what n counts (default: words)"
    )
    test.add_argument("--tokenizer-type", choices=TOKENIZER_TYPES, help="with --unit tokens")
    test.add_argument(
        "--vocab-file", type=Path, metavar="PATH", help="tokenizer.model, tokenizer.json or their folder"
    )
    _add_corpus_options(parser)
    _add_output_options(parser)
    return parser


def _add_corpus_options(parser: argparse.ArgumentParser) -> None:
    corpus = parser.add_argument_group("corpora")
    corpus.add_argument(
        "--corpus", nargs="+", type=Path, required=True, metavar="PATH",
        help=".jsonl, .jsonl.zst, .jsonl.gz, .parquet or text files, folders of them, or with --unit tokens "
        "prefixes of .bin and .idx",
    )  # fmt: skip
    corpus.add_argument(
        "--json-key", default="text", metavar="KEY", help="of the text in a corpus (default: text)"
    )
    corpus.add_argument("--text-suffixes", nargs="+", metavar="SUFFIX", help="as in preprocess_data.py")
    corpus.add_argument(
        "--on-bad-line", choices=("stop", "skip"), default="stop",
        help="what a broken place does; either way it is counted and shown (default: stop)",
    )  # fmt: skip


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER",
        help="gets hits.jsonl, report.json and report.html",
    )  # fmt: skip
    output.add_argument("--overwrite", action="store_true", help="begin anew, whatever the folder holds")
    output.add_argument(
        "--results", nargs="+", type=Path, metavar="FILE",
        help="lm-eval samples, or JSONL with the item's text or id and correct: adds accuracy with and "
        "without hits, by level",
    )  # fmt: skip
    output.add_argument("--metric", metavar="KEY", help="of --results that says right (1) or wrong (0)")
    output.add_argument(
        "--write-clean", type=Path, metavar="FOLDER", help="write the corpora without what was hit"
    )
    output.add_argument(
        "--clean", choices=("drop", "mask"), default="drop",
        help="leave hit documents out, or put --mask-text in place of the words (default: drop)",
    )  # fmt: skip
    output.add_argument("--mask-text", default="[masked]", metavar="TEXT", help="(default: [masked])")
    output.add_argument(
        "--workers", type=at_least(1), default=len(os.sched_getaffinity(0)), metavar="N",
        help="processes that search (default: the cores of this machine)",
    )  # fmt: skip


def check(args: argparse.Namespace) -> None:
    """What must hold between options.

    Raises:
        UserError: it does not.
    """
    given = [args.tokenizer_type is not None, args.vocab_file is not None]
    if args.unit == "tokens" and not all(given):
        raise UserError("--unit=tokens: needs the tokenizer; add --tokenizer-type and --vocab-file")
    if args.unit == "words" and any(given):
        raise UserError("--tokenizer-type, --vocab-file: words need no tokenizer; add --unit tokens")
    if args.match_short_from is not None and args.match_short_from >= args.ngram:
        raise UserError(
            f"--match-short-from={args.match_short_from}: must be below --ngram={args.ngram}, from where on "
            "items have n-grams"
        )
    if args.metric is not None and args.results is None:
        raise UserError(f"--metric={args.metric}: is a key of --results; add them")


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    args = _parser().parse_args(argv)
    check(args)
    try:
        search(args)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def search(args: argparse.Namespace) -> None:
    """Searches, cleans and reports.

    Raises:
        UserError: something of the user's is wrong.
    """
    from tools.overlap_parts import clean, report, results, scan
    from tools.overlap_parts.corpus import places_of
    from tools.overlap_parts.items import Spec, read_items
    from tools.overlap_parts.search import build_search

    spec = Spec(
        args.test, args.key, args.ngram, args.id_key, args.level_key, args.match_short_from, args.unit,
        args.tokenizer_type, args.vocab_file,
    )  # fmt: skip
    suffixes = None if args.text_suffixes is None else tuple(args.text_suffixes)
    job = scan.Job(
        spec, tuple(places_of(args.corpus, args.unit)), args.json_key, suffixes, args.output,
        args.on_bad_line == "skip", args.workers,
    )  # fmt: skip
    items = read_items(spec.test, spec.key, spec.id_key, spec.level_key)
    wanted = None
    if args.write_clean is not None:
        wanted = clean.Wanted(args.write_clean, args.mask_text if args.clean == "mask" else None)
        clean.check_wanted(job, wanted)
    if args.results is not None:  # a wrong file is found before the search, not after it
        results.table_of(args.results, items, spec.key, spec.level_key, args.metric, set())
    with scan.sole_writer(args.output):
        state = scan.run_search(job, args.overwrite)
        patterns = build_search(spec).by.patterns
        content = report.collect(
            spec, items, patterns.short_items, patterns.unmatched_items, state,
            [place.name for place in job.places], args.output,
        )  # fmt: skip
        if wanted is not None:
            content["clean"] = clean.as_json(clean.write_clean(job, wanted), wanted)
        table = None
        if args.results is not None:
            hit = report.hit_items(content)
            table = results.table_of(args.results, items, spec.key, spec.level_key, args.metric, hit)
        report.write_reports(content, table, items, args.output)
    documents = sum(counts.hit_documents for counts in state.counts)
    print(
        f"{args.output / 'report.html'}: {content['items_with_hits']:,} of {len(items):,} items hit in "
        f"{documents:,} of {sum(counts.documents for counts in state.counts):,} documents; "
        f"{content['items_too_short']:,} items are too short for an n-gram"
    )


if __name__ == "__main__":
    main()
