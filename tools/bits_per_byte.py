#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Bits per byte of documents under a checkpoint, source by source; tokenizers need not be alike to compare.

A document's tokens are scored one after the other, the first given the end-of-document token that precedes a
document in training:

    bits per byte = - sum over tokens of log2 p(token | end of document, tokens before it) / bytes of the text

Sums run over all documents of a source, so that a long document weighs more. Of a document of more than
`--max-tokens` tokens the beginning is scored, and the bytes are those of exactly that text.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron.neox_arguments.errors import UserError, exit_on_user_error
from megatron.neox_arguments.whole_files import write_whole

if TYPE_CHECKING:
    import torch

    from megatron.checkpointing.inference import OpenedModel
    from megatron.tokenizer import Tokenizer

# Tokens of the documents that go through the model together, padding included: bounds the logits, which take
# 4 bytes an id (2,048 tokens x 49,152 ids: 0.4 GB).
BATCH_TOKENS = 2048
# Byte-level tokens may end inside a character, in some scripts many in a row: so far a cut is moved back.
MAX_STEP_BACK_TOKENS = 64


@dataclass(frozen=True)
class Scored:
    """The part of a document that is scored: its ids, without the leading end of document, and its bytes."""

    ids: list[int]
    text_bytes: int
    is_cut: bool


@dataclass
class Total:
    """Sums over the documents of one source."""

    documents: int = 0
    cut_documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    nats: float = 0.0

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.text_bytes


def beginning(text: str, tokenizer: Tokenizer, max_tokens: int) -> Scored:
    """The first `max_tokens` tokens of a text or fewer, so that they are whole characters.

    Raises:
        UserError: no prefix of the tokens is a beginning of the text, as where a tokenizer rewrites it.
    """
    ids = tokenizer.encode(text)
    if len(ids) <= max_tokens:
        return Scored(ids, len(text.encode("utf-8")), False)
    for end in range(max_tokens, max(0, max_tokens - MAX_STEP_BACK_TOKENS), -1):
        covered = tokenizer.decode(ids[:end])
        if covered and text.startswith(covered):
            return Scored(ids[:end], len(covered.encode("utf-8")), True)
    raise UserError(
        f"--max-tokens={max_tokens}: the tokenizer rewrites the text that begins {text[:40]!r}, so that the "
        "bytes of its first tokens are not known; give a value above the length of the longest document"
    )


def read_texts(path: Path, max_documents: int | None) -> list[str]:
    """The texts of the first `max_documents` documents of a file, as preprocess_data.py reads it.

    Raises:
        UserError: there is none, or the file cannot be read.
    """
    from megatron.data.readers import Broken, read_documents

    texts: list[str] = []
    for record in read_documents([path]):
        if len(texts) == max_documents:
            break
        if isinstance(record, Broken):
            raise UserError(f"{record.where}: {record.reason}; repair the file, or remove the line")
        if record.text:
            texts.append(record.text)
    if not texts:
        raise UserError(f"--documents={path}: holds no document with text; give another file")
    return texts


def batched(documents: Sequence[Scored], batch_tokens: int = BATCH_TOKENS) -> Iterator[list[Scored]]:
    """Documents of like length together, each batch of one or at most `batch_tokens` after padding."""
    batch: list[Scored] = []
    for document in sorted(documents, key=lambda document: len(document.ids)):
        if batch and (len(batch) + 1) * len(document.ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(document)
    if batch:
        yield batch


def nats_of(
    batch: Sequence[Scored], logits_of: Callable[[torch.Tensor], torch.Tensor], eod_id: int
) -> list[float]:
    """The negative log-likelihood of each document of a batch, in nats.

    `logits_of` takes tokens_BS and returns logits_BSV. Attention is causal, so padding at the end changes
    nothing before it.
    """
    import torch

    longest = max(len(document.ids) for document in batch)
    tokens_BS = torch.full((len(batch), longest), eod_id)
    for row, document in enumerate(batch):
        # Shifted by one: the end of document comes first, and the last token has nothing to predict.
        tokens_BS[row, 1 : len(document.ids)] = torch.tensor(document.ids[:-1])
    logits_BSV = logits_of(tokens_BS)
    nats = []
    for row, document in enumerate(batch):
        targets_S = torch.tensor(document.ids, device=logits_BSV.device)
        logits_SV = logits_BSV[row, : len(document.ids)]
        loss_S = torch.nn.functional.cross_entropy(logits_SV, targets_S, reduction="none")
        nats.append(float(loss_S.double().sum()))
    return nats


def measure(opened: OpenedModel, texts: Sequence[str], max_tokens: int) -> Total:
    """Scores the documents of one source.

    Raises:
        UserError: see `beginning`; or the model gives something that is not finite.
    """
    total = Total()
    documents = [beginning(text, opened.tokenizer, max_tokens) for text in texts]
    for batch in batched([document for document in documents if document.ids]):
        for document, nats in zip(batch, nats_of(batch, opened.logits, opened.tokenizer.eod_id), strict=True):
            total.documents += 1
            total.cut_documents += document.is_cut
            total.tokens += len(document.ids)
            total.text_bytes += document.text_bytes
            total.nats += nats
    if not math.isfinite(total.nats):
        raise UserError(f"{opened.folder}: its logits are not finite; measure an earlier checkpoint")
    return total


def parse_documents(arguments: Sequence[str]) -> dict[str, Path]:
    """`name=path` arguments by name, in their order.

    Raises:
        UserError: one has another form, a name comes twice, or a file is not there.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not (name and equals and path):
            raise UserError(f"--documents={argument}: give name=path, such as python=python_valid.jsonl")
        if name in found:
            raise UserError(f"--documents={argument}: the name {name} stands twice; give each source its own")
        if not Path(path).exists():
            raise UserError(f"--documents={argument}: {path} is not there; give a file of documents")
        found[name] = Path(path)
    return found


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure bits per byte of documents under a checkpoint, source by source.",
        epilog="For several ranks: torchrun --nproc-per-node N tools/bits_per_byte.py …, tensor parallel.",
    )
    parser.add_argument("checkpoint", type=Path, help="a run's save folder, or one global_stepN folder")
    parser.add_argument(
        "--documents", nargs="+", required=True, metavar="NAME=PATH",
        help="the documents of a source, in any form that preprocess_data.py reads",
    )  # fmt: skip
    parser.add_argument(
        "--rotary-base", type=float, metavar="X", help="read with another rotary base than its own"
    )
    parser.add_argument("--iteration", type=int, help="of the checkpoint to take, instead of the newest")
    parser.add_argument("--max-documents", type=int, metavar="N", help="the first N of each source")
    parser.add_argument(
        "--max-tokens", type=int, default=1024, metavar="N",
        help="score the beginning of longer documents (default: 1024)",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: float32)"
    )
    parser.add_argument(
        "--layout-invariant", action="store_true",
        help="sum over ranks in the order of one rank, slowly: for comparing layouts",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="OUT", help="write what is printed as JSON, too")
    options = parser.parse_args(argv)
    for name in ("max_documents", "max_tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}={value}: must be at least 1")
    return options


def report(
    opened: OpenedModel, totals: dict[str, Total], options: argparse.Namespace, seconds: float
) -> dict[str, Any]:
    """What was measured, and with what, ready for JSON."""
    tokens = sum(total.tokens for total in totals.values())
    return {
        "checkpoint": str(options.checkpoint),
        "iteration": opened.record.iteration,
        "trained_rotary_base": opened.record.rotary_base,
        "rotary_base": opened.period.run_base,
        "dtype": options.dtype,
        "max_tokens": options.max_tokens,
        "sources": {
            name: {
                "bits_per_byte": total.bits_per_byte,
                "documents": total.documents,
                "cut_documents": total.cut_documents,
                "tokens": total.tokens,
                "bytes": total.text_bytes,
                "nats_per_token": total.nats / total.tokens,
            }
            for name, total in totals.items()
        },
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
    }


def show(content: dict[str, Any]) -> None:
    """The table on the standard output."""
    for name, source in content["sources"].items():
        print(
            f"{name:<12} {source['bits_per_byte']:.4f} bits per byte  ({source['documents']} documents, "
            f"{source['cut_documents']} of them cut at {content['max_tokens']} tokens; "
            f"{source['tokens']:,} tokens, {source['bytes']:,} bytes)"
        )
    print(f"{content['tokens_per_second']:,.0f} tokens/s", file=sys.stderr)


def write_json(path: Path, content: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--json={path}: cannot be written ({error.strerror}); give another file") from None


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    options = _arguments(argv)
    sources = parse_documents(options.documents)
    texts = {name: read_texts(path, options.max_documents) for name, path in sources.items()}
    from megatron.backend import initialize, shut_down
    from megatron.checkpointing.inference import open_model
    from megatron.neox_arguments.config import ParallelConfig
    from megatron.trainer.telling import end_once

    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    backend = initialize(ParallelConfig(model_parallel_size=ranks), seed=1)
    try:
        opened = open_model(
            options.checkpoint,
            backend,
            iteration=options.iteration,
            rotary_base=options.rotary_base,
            dtype=options.dtype,
            layout_invariant=options.layout_invariant,
        )
        if backend.is_main:
            print(opened.period.describe(opened.record.model["head_dim"]), file=sys.stderr)
        started = time.perf_counter()
        totals = {name: measure(opened, of_source, options.max_tokens) for name, of_source in texts.items()}
        content = report(opened, totals, options, time.perf_counter() - started)
    except UserError as error:
        end_once(error)
    finally:
        shut_down()
    if not backend.is_main:
        return
    show(content)
    if options.json is not None:
        write_json(options.json, content)


if __name__ == "__main__":
    main()
