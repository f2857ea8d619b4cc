#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Documents to Megatron's token files: `preprocess_data.py --input corpus.jsonl.zst --output-prefix
data/corpus …`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron.data.chat_template import SPECIAL_TOKENS, read_template
from megatron.data.instructions import Conversation, Form, PromptAndAnswer, tokenize_instructions
from megatron.data.readers import Corpus
from megatron.data.shares import share_of
from megatron.data.tokenize_corpus import TokenizerSpec, Wish, tokenize_corpus
from megatron.neox_arguments.errors import UserError, exit_on_user_error
from megatron.tokenizer import TOKENIZER_TYPES
from megatron.tokenizer.hf_tokenizer import special_tokens
from tools.argument_types import at_least


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Tokenise documents into PREFIX_KEY_document.bin, .idx and .json. See docs/data.md."
    )
    text = parser.add_argument_group("text")
    text.add_argument(
        "--input", nargs="+", type=Path, required=True, metavar="PATH",
        help=".jsonl, .jsonl.zst, .jsonl.gz, .parquet or text files, or folders of them",
    )  # fmt: skip
    text.add_argument(
        "--json-key", "--jsonl-keys", "--text-key", default="text", metavar="KEY",
        help="key or column that holds the text (default: text)",
    )  # fmt: skip
    text.add_argument(
        "--prompt-key", metavar="KEY",
        help="key of a prompt that comes before the text: only the text is learnt",
    )  # fmt: skip
    text.add_argument(
        "--chat-key", metavar="KEY",
        help="key of a list of messages with role and content, in place of a text: only what the assistant "
        "says is learnt",
    )  # fmt: skip
    text.add_argument(
        "--chat-template", type=Path, metavar="FILE",
        help="Jinja template that writes the messages (default: headings such as ### User:)",
    )  # fmt: skip
    text.add_argument(
        "--text-suffixes", nargs="+", metavar="SUFFIX",
        help="of the text files in folders, read only those that end so, such as .py .tex",
    )  # fmt: skip
    text.add_argument(
        "--on-bad-line", choices=("stop", "skip"), default="stop",
        help="what a broken line does; either way it is shown with file and line (default: stop)",
    )  # fmt: skip
    tokenizer = parser.add_argument_group("tokenizer")
    tokenizer.add_argument("--tokenizer-type", required=True, choices=TOKENIZER_TYPES)
    tokenizer.add_argument(
        "--vocab-file", type=Path, required=True, metavar="PATH",
        help="tokenizer.model, tokenizer.json or the folder that holds it",
    )  # fmt: skip
    tokenizer.add_argument(
        "--append-eod", action="store_true", help="end each document with the end-of-document id"
    )
    tokenizer.add_argument(
        "--eod-token", metavar="TOKEN",
        help="the token that ends a document (default: the tokenizer's end of sequence; unk0: id 0, as "
        "GPT-NeoX wrote)",
    )  # fmt: skip
    tokenizer.add_argument(
        "--engine", choices=("auto", "library"), default="auto",
        help="auto: gigatoken where its ids are found equal; library: sentencepiece or tokenizers",
    )  # fmt: skip
    output = parser.add_argument_group("output")
    output.add_argument("--output-prefix", type=Path, required=True, metavar="PREFIX")
    output.add_argument(
        "--overwrite", action="store_true", help="replace an existing output, when all is done"
    )
    output.add_argument("--dataset-impl", choices=("mmap",), default="mmap", help="the one format there is")
    output.add_argument(
        "--workers", type=at_least(1), default=len(os.sched_getaffinity(0)), metavar="N",
        help="processes that tokenise (default: the cores of this machine)",
    )  # fmt: skip
    output.add_argument(
        "--share", metavar="I/N",
        help="do the I-th of N shares (from 0), for several nodes that see one disk; auto: as a SLURM array, "
        "deepy.py or MPI tells; mpi: as mpi4py tells. The last to end puts all together",
    )  # fmt: skip
    output.add_argument(
        "--log-interval",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="between two lines of progress (default: 5)",
    )
    return parser


def output_of(prefix: Path, key: str) -> Path:
    """GPT-NeoX's and Megatron-LM's name of a token file: PREFIX_KEY_document; a key's `/` becomes `_`."""
    return prefix.with_name(f"{prefix.name}_{key.replace('/', '_')}_document")


def _form(args: argparse.Namespace) -> Form | None:
    """How examples with answers are written; None for plain documents."""
    if args.chat_template is not None and args.chat_key is None:
        raise UserError(
            f"--chat-template {args.chat_template}: needs --chat-key KEY, the key of the messages"
        )
    if args.chat_key is not None:
        if args.prompt_key is not None:
            raise UserError(f"--chat-key {args.chat_key}: takes the place of --prompt-key; give one of them")
        if args.chat_template is None:
            return Conversation(args.chat_key)
        # With SentencePiece the text of a control token stays text, so that a template must not write any.
        is_hugging_face = args.tokenizer_type == "HFTokenizer"
        folder = args.vocab_file if args.vocab_file.is_dir() else args.vocab_file.parent
        tokens = special_tokens(folder, SPECIAL_TOKENS) if is_hugging_face else {}
        return Conversation(args.chat_key, read_template(args.chat_template), tokens)
    return PromptAndAnswer(args.prompt_key, args.json_key) if args.prompt_key is not None else None


@exit_on_user_error
def main() -> None:
    """The command."""
    args = _parser().parse_args()
    if not args.output_prefix.name:
        raise UserError(
            f"--output-prefix {args.output_prefix}: has no name; give a folder and the beginning of a name"
        )
    try:
        f"{args.output_prefix}{args.json_key}{args.chat_key}{args.prompt_key}".encode()
    except UnicodeEncodeError:
        raise UserError("--output-prefix, --json-key, --prompt-key, --chat-key: must be UTF-8") from None
    # As for Ctrl-C, so that a batch system that ends the job leaves nothing but parts that are done.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if not args.append_eod:
        print(
            "warning: without --append-eod nothing marks where a document ends: "
            "a model trained on this does not learn to stop",
            file=sys.stderr,
        )
    try:
        wish = Wish(
            TokenizerSpec(args.tokenizer_type, args.vocab_file, args.eod_token),
            append_eod=args.append_eod,
            workers=args.workers,
            skip_broken=args.on_bad_line == "skip",
            overwrite=args.overwrite,
            log_interval_seconds=args.log_interval,
            allow_fast=args.engine == "auto",
            share=share_of(args.share, os.environ),
        )
        corpus = Corpus(args.input, args.json_key, args.text_suffixes)
        output = output_of(args.output_prefix, args.chat_key or args.json_key)
        form = _form(args)
        if form is None:
            tokenize_corpus(corpus, output, wish)
        else:
            tokenize_instructions(corpus, output, form, wish)
    except KeyboardInterrupt:
        print(
            "\nstopped: what was there has not changed; "
            "the same command goes on from the parts that are done",
            file=sys.stderr,
        )
        sys.exit(130)


if __name__ == "__main__":
    main()
