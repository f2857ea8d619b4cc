# SPDX-License-Identifier: Apache-2.0
"""The recipe `open-web-math`, and the training of its two models: `train-classifier` and `train-lm`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron.neox_arguments.errors import UserError
from tools.argument_types import at_least
from tools.proof_pile_2.command_line import Commands, add_output_options, add_recipe, share
from tools.proof_pile_2.documents import Broken, Step
from tools.proof_pile_2.keys import find_dropped
from tools.proof_pile_2.open_web_math.guard import PageLimits
from tools.proof_pile_2.open_web_math.manual import (
    FEWEST_CHARACTERS,
    MOST_ACCENTED,
    URL_LIST,
    ManualRules,
    read_url_list,
)
from tools.proof_pile_2.open_web_math.math_score import TrainingOptions, load_classifier, train_classifier
from tools.proof_pile_2.open_web_math.near_duplicates import AlikeEnough, NearDuplicateKeys
from tools.proof_pile_2.open_web_math.page_steps import (
    LEAST_ENGLISH,
    LEAST_SCORE_WITH_MATH,
    LEAST_SCORE_WITHOUT_MATH,
    MOST_PERPLEXITY,
    English,
    Extract,
    MathScore,
    Perplexity,
    Prefilter,
    file_sha256,
)
from tools.proof_pile_2.open_web_math.perplexity import load_model, train_model
from tools.proof_pile_2.open_web_math.web_pages import PageOptions, plan_pages
from tools.proof_pile_2.outputs import stage_shards
from tools.proof_pile_2.places import place_of
from tools.proof_pile_2.reports import write_json
from tools.proof_pile_2.run import DOCUMENTS, Stage, run_stage
from tools.proof_pile_2.shards import ReadOptions, Shard, plan_shards

LEAST_SIMILARITY = 0.7


def add_command(commands: Commands) -> None:
    """`open-web-math`, `train-classifier` and `train-lm`."""
    _add_recipe(commands)
    _add_train_classifier(commands)
    _add_train_lm(commands)


def _add_recipe(commands: Commands) -> None:
    parser = add_recipe(
        commands, "open-web-math", "web pages to text with their mathematics as LaTeX", _run,
        "Prefilter, extraction, language, MathScore, perplexity, near-duplicates, manual rules. Documents "
        "are in OUTPUT/final/documents, what each step did in the report.md of extracted/ and final/. "
        "See docs/open_web_math.md.",
    )  # fmt: skip
    parser.add_argument(
        "--input", type=place_of, nargs="+", required=True, metavar="PATH",
        help=".warc, .warc.gz and .warc.zst files (also at URLs: s3://…), HTML files, folders of both, and "
        ".jsonl(.gz, .zst) or .parquet with HTML",
    )  # fmt: skip
    pages = parser.add_argument_group("pages")
    pages.add_argument("--html-key", default="html", metavar="KEY",
                       help="where JSON lines and Parquet have the HTML (default: html)")  # fmt: skip
    pages.add_argument("--max-page-bytes", type=at_least(1), metavar="BYTES",
                       default=PageOptions().max_page_bytes,
                       help="a page that is larger is counted as broken (default: %(default)s)")  # fmt: skip
    pages.add_argument("--page-cpu-seconds", type=float, metavar="SECONDS", default=PageLimits().cpu_seconds,
                       help="a page that takes more is dropped (default: %(default)s)")  # fmt: skip
    pages.add_argument("--page-memory-bytes", type=at_least(1), metavar="BYTES",
                       default=PageLimits().memory_bytes,
                       help="of the process that extracts (default: %(default)s)")  # fmt: skip
    rules = parser.add_argument_group("rules")
    rules.add_argument("--language-model", type=Path, metavar="FILE",
                       help="fastText's lid.176.bin or the like (default: py3langid)")  # fmt: skip
    rules.add_argument("--least-english", type=share, default=LEAST_ENGLISH, metavar="P")
    rules.add_argument("--classifier", type=Path, metavar="FILE",
                       help="from train-classifier; without it, a page needs mathematics in it")  # fmt: skip
    rules.add_argument("--least-score-with-math", type=share, default=LEAST_SCORE_WITH_MATH, metavar="P")
    rules.add_argument(
        "--least-score-without-math", type=share, default=LEAST_SCORE_WITHOUT_MATH, metavar="P"
    )
    rules.add_argument("--perplexity-model", type=Path, metavar="FILE",
                       help="from train-lm, or any of KenLM's; without it, any text passes")  # fmt: skip
    rules.add_argument("--most-perplexity", type=float, default=MOST_PERPLEXITY, metavar="P")
    rules.add_argument("--least-similarity", type=share, default=LEAST_SIMILARITY, metavar="S",
                       help="of near-duplicates, a cosine (default: %(default)s)")  # fmt: skip
    rules.add_argument("--url-list", type=Path, default=URL_LIST, metavar="FILE",
                       help="parts of addresses to leave out, one a line (default: our list)")  # fmt: skip
    rules.add_argument("--fewest-characters", type=int, default=FEWEST_CHARACTERS, metavar="N")
    rules.add_argument("--most-accented", type=share, default=MOST_ACCENTED, metavar="SHARE")
    add_output_options(parser)


def _run(arguments: argparse.Namespace) -> None:
    """Pages to text, near-duplicates, and the documents that stay."""
    options = PageOptions(arguments.max_page_bytes, arguments.html_key)
    inputs = list(dict.fromkeys(arguments.input))
    stage = Stage("open-web-math: pages to text", tuple(_page_steps(arguments)))
    common = {"workers": arguments.workers, "log_interval_seconds": arguments.log_interval}

    def pages() -> Iterator[Shard]:
        return plan_pages(inputs, options)

    def extracted() -> Iterator[Shard]:
        return stage_shards(arguments.output / "extracted", DOCUMENTS, (shard.name for shard in pages()))

    manual = ManualRules(
        read_url_list(arguments.url_list), arguments.fewest_characters, arguments.most_accented
    )
    run_stage(stage, pages, arguments.output / "extracted", overwrite=arguments.overwrite, **common)
    near = find_dropped(
        NearDuplicateKeys(), AlikeEnough(arguments.least_similarity), extracted, arguments.output /
        "near_duplicates", "near-duplicates: like an earlier document", **common,
    )  # fmt: skip
    final = Stage(
        "open-web-math: documents",
        (manual,),
        {"least_similarity": arguments.least_similarity},
        omissions=(near,),
    )
    run_stage(final, extracted, arguments.output / "final", overwrite=arguments.overwrite, **common)


def _page_steps(arguments: argparse.Namespace) -> Iterator[Step]:
    """The steps of the first stage. Models are loaded here once, so that a wrong file is said at once."""
    yield Prefilter(judged_by_words=arguments.classifier is not None)
    yield Extract(PageLimits(arguments.page_cpu_seconds, arguments.page_memory_bytes))
    language, hashed = _model(arguments.language_model, "--language-model")
    yield English(arguments.least_english, language, hashed)
    classifier, hashed = _model(arguments.classifier, "--classifier")
    if classifier is None:
        print("--classifier is not given: pages count if mathematics is found in them", file=sys.stderr)
    else:
        load_classifier(classifier)
    yield MathScore(classifier, hashed, arguments.least_score_with_math, arguments.least_score_without_math)
    perplexity, hashed = _model(arguments.perplexity_model, "--perplexity-model")
    if perplexity is None:
        print("--perplexity-model is not given: texts are kept whatever their perplexity", file=sys.stderr)
    else:
        load_model(perplexity)
        yield Perplexity(perplexity, hashed, arguments.most_perplexity)


def _model(path: Path | None, option: str) -> tuple[Path | None, str]:
    return (None, "") if path is None else (path.resolve(), file_sha256(path, option))


def _add_train_classifier(commands: Commands) -> None:
    parser = add_recipe(
        commands, "train-classifier", "train MathScore's classifier on texts with and without mathematics",
        _run_train_classifier, "The report beside it says what held-out texts score.",
    )  # fmt: skip
    for side in ("positive", "negative"):
        parser.add_argument(f"--{side}", type=Path, nargs="+", required=True, metavar="PATH",
                            help=".jsonl(.gz, .zst), .parquet, text files, folders of them")  # fmt: skip
    parser.add_argument("--text-key", default="text", metavar="KEY")
    defaults = TrainingOptions()
    parser.add_argument("--epochs", type=at_least(1), default=defaults.epochs, metavar="N")
    parser.add_argument("--dimensions", type=at_least(1), default=defaults.dimensions, metavar="N")
    parser.add_argument("--buckets", type=at_least(1), default=defaults.buckets, metavar="N",
                        help="for pairs of words; the model has 4 bytes for each and each dimension "
                             "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="such as math_score.bin")


def _run_train_classifier(arguments: argparse.Namespace) -> None:
    positive = _texts(arguments.positive, arguments.text_key, "--positive")
    negative = _texts(arguments.negative, arguments.text_key, "--negative")
    options = TrainingOptions(arguments.epochs, arguments.dimensions, buckets=arguments.buckets)
    report = train_classifier(positive, negative, arguments.output, options)
    _tell(arguments.output, report)


def _add_train_lm(commands: Commands) -> None:
    parser = add_recipe(
        commands, "train-lm", "train the n-gram model whose perplexity decides", _run_train_lm,
        "Interpolated modified Kneser-Ney, written as ARPA for KenLM. The report beside it has the "
        "perplexity of held-out texts: choose --most-perplexity by it.",
    )  # fmt: skip
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="PATH",
                        help="texts: .jsonl(.gz, .zst), .parquet, text files, folders of them")  # fmt: skip
    parser.add_argument("--text-key", default="text", metavar="KEY")
    parser.add_argument(
        "--order", type=int, choices=range(2, 7), default=5, help="words of an n-gram (default: 5)"
    )
    parser.add_argument("--keep-singletons", action="store_true",
                        help="keep n-grams of three words and more that were seen once")  # fmt: skip
    parser.add_argument("--max-words", type=at_least(1), default=20_000_000, metavar="N",
                        help="of the training text; each takes about 200 bytes of memory "
                             "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="such as math.arpa")


def _run_train_lm(arguments: argparse.Namespace) -> None:
    texts = _texts(arguments.input, arguments.text_key, "--input")
    report = train_model(
        texts, arguments.output, arguments.order, not arguments.keep_singletons, arguments.max_words
    )
    _tell(arguments.output, report)


def _texts(inputs: Sequence[Path], text_key: str, option: str) -> Iterator[str]:
    """All texts of the inputs; what is broken is said and passed over."""
    broken, first = 0, ""
    for shard in plan_shards(inputs, ReadOptions(text_key=text_key)):
        for item in shard.read():
            if isinstance(item, Broken):
                broken += 1
                first = first or f"{item.where} {item.reason}"
            else:
                yield item.text
    if broken:
        print(f"{option}: {broken} broken records were passed over, the first: {first}", file=sys.stderr)


def _tell(output: Path, report: dict[str, Any]) -> None:
    """The report beside the model, and on the screen."""
    try:
        write_json(output.with_name(f"{output.name}.json"), report)
    except OSError as error:
        raise UserError(f"--output {output}: its report cannot be written ({error.strerror})") from None
    print(json.dumps(report, indent=2))
