#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a token file holds: counts, tokenizer, sources, lengths, text of documents and of training samples.

inspect_dataset.py data/math_text_document
inspect_dataset.py data/math_text_document --document 17 --vocab-file tokenizer.model
inspect_dataset.py --config configs/run.yml --sample 0
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt

from megatron.data.token_file import TokenFile
from megatron.neox_arguments.closed_pipe import exit_when_nobody_reads
from megatron.neox_arguments.errors import UserError, exit_on_user_error
from megatron.tokenizer import TOKENIZER_TYPES, Tokenizer, build_tokenizer

_PERCENTILES = (1, 10, 50, 90, 99)
_SAMPLED_DOCUMENTS = 5_000_000
_BLOCK_DOCUMENTS = 1 << 22


def describe(file: TokenFile) -> dict[str, Any]:
    """The facts of a token file, as JSON has them. Percentiles of many documents are those of a sample."""
    sample_D = file.lengths_D[:: max(1, file.documents // _SAMPLED_DOCUMENTS)]
    values = np.percentile(sample_D, _PERCENTILES)
    return {
        "prefix": str(file.prefix),
        "documents": file.documents,
        "tokens": file.tokens,
        "dtype": file.dtype.name,
        "bin_bytes": file.tokens * file.dtype.itemsize,
        "document_tokens": {
            "mean": file.tokens / file.documents,
            "shortest": int(file.lengths_D.min()),
            "longest": int(file.lengths_D.max()),
            "percentiles": {str(at): int(value) for at, value in zip(_PERCENTILES, values, strict=True)},
        },
        "sidecar": None if file.sidecar is None else file.sidecar.model_dump(),
    }


def in_words(facts: dict[str, Any]) -> str:
    """The same for people."""
    sizes = facts["document_tokens"]
    percentiles = ", ".join(f"{at}%: {value:,}" for at, value in sizes["percentiles"].items())
    lines = [
        facts["prefix"],
        f"  documents  {facts['documents']:,}",
        f"  tokens     {facts['tokens']:,} ({facts['dtype']}, {facts['bin_bytes'] / 1e6:,.1f} MB)",
        f"  lengths    {sizes['mean']:,.1f} tokens on average, {sizes['shortest']:,} to {sizes['longest']:,}",
        f"             {percentiles}",
    ]
    if facts["sidecar"] is None:
        return "\n".join([*lines, "  tokenizer  not known: there is no .json beside it"])
    return "\n".join([*lines, *_of_sidecar(facts["sidecar"], facts["tokens"])])


def _of_sidecar(sidecar: dict[str, Any], tokens: int) -> list[str]:
    tokenizer, text_bytes = sidecar["tokenizer"], sidecar["text_bytes"]
    end = f"id {tokenizer['eod_id']} ends each" if tokenizer["eod_appended"] else "nothing marks its end"
    sources = [
        f"  source     {one['path']} ({one['files']:,} files, {one['bytes'] / 1e6:,.1f} MB)"
        for one in sidecar["sources"]
    ]
    return [
        f"  tokenizer  {tokenizer['type']} {tokenizer['fingerprint'][:12]}, {tokenizer['vocab_size']:,} ids",
        f"  document   {end}",
        f"  text       {text_bytes / 1e6:,.1f} MB, {text_bytes / tokens:.2f} bytes a token",
        f"  left out   {sidecar['empty_documents']:,} empty documents, "
        f"{sidecar['broken_lines']:,} broken lines",
        f"  encoder    {sidecar['engine'] or 'not recorded'}; checked on {sidecar['checked_documents']:,} "
        f"documents; {sidecar['reference_documents']:,} by the tokenizer's own library",
        *sources,
    ]


def document_of(file: TokenFile, number: int) -> npt.NDArray[Any]:
    """The ids of a document; negative numbers count from the end.

    Raises:
        UserError: there is none of this number.
    """
    if not -file.documents <= number < file.documents:
        raise UserError(
            f"--document={number}: {file.prefix} has documents 0 to {file.documents - 1}; give one of them"
        )
    return file.document(number % file.documents)


def tokenizer_for(file: TokenFile, tokenizer_type: str | None, vocab_file: Path | None) -> Tokenizer:
    """The tokenizer that wrote a file.

    Raises:
        UserError: it is not given, or another one.
    """
    record = None if file.sidecar is None else file.sidecar.tokenizer
    if vocab_file is None:
        raise UserError("--document: give the tokenizer that wrote the file as --vocab-file")
    kind = tokenizer_type or (record.type if record is not None else None)
    if kind is None:
        raise UserError(f"{file.prefix}: has no .json; give --tokenizer-type too")
    tokenizer = build_tokenizer(kind, vocab_file)
    if record is not None and record.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"--vocab-file={vocab_file}: is not the tokenizer that wrote {file.prefix} (fingerprint "
            f"{tokenizer.fingerprint[:12]}, and there {record.fingerprint[:12]}); give that one"
        )
    return tokenizer


def text_of(tokenizer: Tokenizer, ids: list[int], what: str) -> str:
    """The text of ids.

    Raises:
        UserError: the tokenizer does not have one of them.
    """
    bad = [one for one in ids if not 0 <= one < tokenizer.vocab_size]
    if bad:
        raise UserError(
            f"{what}: holds id {bad[0]}, which the tokenizer with {tokenizer.vocab_size} ids does not have; "
            "the file is damaged: copy it again, or tokenise again (or give the tokenizer that wrote it)"
        )
    return tokenizer.decode(ids)


def sample_of(configs: list[Path], number: int, use: str, data_parallel_size: int) -> dict[str, Any]:
    """A sequence of a run in the order in which the run reads it: source, ids and text.

    Raises:
        UserError: the run is wrong, or has no such sequence.
    """
    from megatron import backend  # noqa: F401  (before megatron.core)
    from megatron.data.blend import build_blends
    from megatron.neox_arguments import load_config

    cfg, _ = load_config(configs)
    if cfg.tokenizer.vocab_file is None:
        raise UserError("vocab_file: is not set; the run must name its tokenizer")
    tokenizer = build_tokenizer(
        cfg.tokenizer.tokenizer_type, cfg.tokenizer.vocab_file, cfg.tokenizer.eod_token
    )
    sequences = cfg.batch.batch_shape(data_parallel_size).global_
    blends = build_blends(
        cfg, tokenizer, cfg.schedule.train_iters * sequences, cfg.validation.eval_iters * sequences
    )
    sets = {"train": blends.train, **blends.valid, **blends.test}
    order = sets.get(use)
    if order is None:
        raise UserError(f"--of={use}: is no set of the run; use one of {', '.join(sets)}")
    if number >= len(order):
        raise UserError(f"--sample={number}: the run reads sequences 0 to {len(order) - 1} of {use}")
    ids = order[number].tokens_S.tolist()
    text = text_of(tokenizer, ids, f"sequence {number} of {use}")
    return {"sample": number, "source": order.source_of(number), "ids": ids, "text": text}


def draw_lengths(file: TokenFile, path: Path) -> None:
    """A histogram of document lengths, both axes logarithmic, as PNG."""
    import matplotlib

    matplotlib.use("Agg")  # no display is needed, and none is opened
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    longest = int(file.lengths_D.max())
    edges = np.unique(np.geomspace(1, longest + 1, 60).astype(np.int64))
    edges = np.append(edges, longest + 2)
    counts = np.zeros(len(edges) - 1, dtype=np.int64)
    for begin in range(0, file.documents, _BLOCK_DOCUMENTS):
        counts += np.histogram(file.lengths_D[begin : begin + _BLOCK_DOCUMENTS], bins=edges)[0]
    axes.stairs(counts, edges, fill=True, color="#0072B2")
    axes.set(xscale="log", yscale="log", xlabel="tokens of a document", ylabel="documents")
    axes.set_title(f"{file.prefix.name}: {file.documents:,} documents, {file.tokens:,} tokens")
    axes.grid(color="#e4e6ea")
    try:
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise UserError(f"--histogram {path}: cannot be written ({error.strerror or error})") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Show what a token file holds. See docs/data.md.")
    parser.add_argument("prefix", type=Path, nargs="?", help="the token file, without .bin and .idx")
    parser.add_argument("--document", type=int, metavar="N", help="show document N (from 0; -1 is the last)")
    parser.add_argument("--vocab-file", type=Path, metavar="PATH", help="the tokenizer, to show text")
    parser.add_argument("--tokenizer-type", choices=TOKENIZER_TYPES, help="default: what the .json says")
    parser.add_argument("--histogram", type=Path, metavar="PNG", help="draw the lengths of the documents")
    parser.add_argument("--config", nargs="+", type=Path, metavar="YML", help="a run, for --sample")
    parser.add_argument("--sample", type=int, metavar="N", help="show sequence N of the run's order (from 0)")
    parser.add_argument(
        "--of", default="train", metavar="SET", help="train, or a validation set (default: train)"
    )
    parser.add_argument(
        "--data-parallel-size", type=int, default=1, metavar="N",
        help="of the run, where its train_batch_size is not set; the order of several passes depends on it",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="JSON instead of words")
    return parser


def _check(args: argparse.Namespace) -> None:
    if (args.sample is None) != (args.config is None):
        raise UserError("--sample needs --config, the run whose order is meant, and --config needs --sample")
    if args.prefix is None and args.config is None:
        raise UserError("give a token file (its path without .bin and .idx), or --config and --sample")
    if args.sample is not None and args.sample < 0:
        raise UserError(f"--sample={args.sample}: is negative; sequences are counted from 0")
    if args.prefix is None and (args.document is not None or args.histogram is not None):
        raise UserError("--document and --histogram are about a token file; give one")


def show(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Everything that was asked for."""
    found: dict[str, Any] = {}
    if args.prefix is not None:
        file = TokenFile.open(args.prefix)
        found = describe(file)
        if not args.json:
            say(in_words(found))
        if args.histogram is not None:
            draw_lengths(file, args.histogram)
        if args.document is not None:
            ids = document_of(file, args.document).tolist()
            tokenizer = tokenizer_for(file, args.tokenizer_type, args.vocab_file)
            text = text_of(tokenizer, ids, f"document {args.document % file.documents} of {file.prefix}")
            found["document"] = {"number": args.document % file.documents, "ids": ids, "text": text}
            if not args.json:
                say(f"\ndocument {args.document % file.documents}: {len(ids):,} tokens\n{text}")
    if args.sample is not None:
        found["sample"] = sample_of(args.config, args.sample, args.of, args.data_parallel_size)
        if not args.json:
            one = found["sample"]
            say(f"sample {one['sample']} of {args.of}, from {one['source']}: {len(one['ids']):,} tokens")
            say(one["text"])
    if args.json:
        say(json.dumps(found, indent=1, ensure_ascii=False))


@exit_on_user_error
def main() -> None:
    """The command."""
    args = _parser().parse_args()
    _check(args)
    with exit_when_nobody_reads():
        show(args, print)


if __name__ == "__main__":
    main()
