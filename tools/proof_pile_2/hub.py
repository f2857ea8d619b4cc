# SPDX-License-Identifier: Apache-2.0
"""`hub`: the released EleutherAI/proof-pile-2, from the Hub or a copy of it, to token files, split by
split.

Each subset and split becomes one token file of tools/preprocess_data.py. A token file that is there and
was made of the same files, by the same tokenizer with the same end of document, is kept; its text is not
downloaded again."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron.data.token_file import TokenFile, TokenizerRecord
from megatron.data.tokenize_corpus import tokenizer_record
from megatron.neox_arguments.errors import UserError
from megatron.tokenizer import build_tokenizer
from tools.argument_types import at_least
from tools.proof_pile_2.command_line import Commands, add_recipe

REPOSITORY = "EleutherAI/proof-pile-2"
SUBSETS = ("arxiv", "open-web-math", "algebraic-stack")
SPLITS = ("train", "validation", "test")
_PREPROCESS = Path(__file__).resolve().parents[1] / "preprocess_data.py"


def add_command(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_recipe(
        commands,
        "hub",
        "the released Proof-Pile-2 to token files",
        run,
        "Writes OUTPUT/SUBSET_SPLIT_text_document.{bin,idx,json} for each subset and split.",
    )
    parser.add_argument(
        "--source",
        default=REPOSITORY,
        metavar="PLACE",
        help="a data set on the Hub (OWNER/NAME, with @REVISION if wanted), or a folder that holds "
        "SUBSET/SPLIT/*.jsonl.zst (default: %(default)s)",
    )
    parser.add_argument(
        "--subsets",
        nargs="+",
        choices=SUBSETS,
        default=SUBSETS,
        metavar="SUBSET",
        help=f"of {', '.join(SUBSETS)} (default: all)",
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=SPLITS,
        default=SPLITS,
        metavar="SPLIT",
        help=f"of {', '.join(SPLITS)} (default: all)",
    )
    parser.add_argument(
        "--keep-downloads",
        action="store_true",
        help="keep OUTPUT/downloads; otherwise a split's files go when its tokens are there",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--workers", type=at_least(1), metavar="N", help="processes that tokenise")
    parser.add_argument("--overwrite", action="store_true", help="replace token files of other text")
    tokenizer = parser.add_argument_group(
        "tokenizer", "as for tools/preprocess_data.py; `</s>` ends each document"
    )
    tokenizer.add_argument("--tokenizer-type", default="SPMTokenizer")
    tokenizer.add_argument("--vocab-file", type=Path, required=True, metavar="PATH")
    tokenizer.add_argument("--eod-token", metavar="TOKEN")


def run(arguments: argparse.Namespace) -> None:
    """The subcommand."""
    arguments.output.mkdir(parents=True, exist_ok=True)
    local = Path(arguments.source)
    tokenizer = build_tokenizer(arguments.tokenizer_type, arguments.vocab_file, arguments.eod_token)
    for subset in arguments.subsets:
        for split in arguments.splits:
            prefix = arguments.output / f"{subset}_{split}"
            downloads = arguments.output / "downloads"
            if not local.is_dir():
                there = _listed(arguments.source, subset, split)
                if is_made_of(prefix, there, tokenizer_record(tokenizer, append_eod=True)):
                    print(f"{prefix}: kept")
                    continue
            root = local if local.is_dir() else _download(arguments.source, subset, split, downloads)
            files = sorted((root / subset / split).glob("*.jsonl.zst"))
            if not files:
                raise UserError(
                    f"--source {arguments.source}: has no {subset}/{split}/*.jsonl.zst; choose --subsets "
                    "and --splits"
                )
            sizes = [(file.name, file.stat().st_size) for file in files]
            if is_made_of(prefix, sizes, tokenizer_record(tokenizer, append_eod=True)):
                print(f"{prefix}: kept")
            else:
                _tokenise(arguments, files, prefix)
            if root == downloads and not arguments.keep_downloads:
                shutil.rmtree(downloads / subset / split)


def is_made_of(prefix: Path, files: Sequence[tuple[str, int]], tokenizer: TokenizerRecord) -> bool:
    """Whether a finished token file says that it was made of these files, by name and bytes, and by this
    tokenizer."""
    try:
        sidecar = TokenFile.open(Path(f"{prefix}_text_document")).sidecar
    except (UserError, OSError):
        return False
    if sidecar is None or sidecar.tokenizer != tokenizer:
        return False
    return list(files) == [(Path(source.path).name, source.bytes) for source in sidecar.sources]


def _tokenise(arguments: argparse.Namespace, files: Sequence[Path], prefix: Path) -> None:
    """One run of the command that turns text into tokens, with its messages and its exit status."""
    command = [
        sys.executable,
        str(_PREPROCESS),
        "--input",
        *map(str, files),
        "--output-prefix",
        str(prefix),
        "--tokenizer-type",
        arguments.tokenizer_type,
        "--vocab-file",
        str(arguments.vocab_file),
        "--append-eod",
    ]
    command += ["--eod-token", arguments.eod_token] if arguments.eod_token else []
    command += ["--workers", str(arguments.workers)] if arguments.workers else []
    command += ["--overwrite"] if arguments.overwrite else []
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


@contextlib.contextmanager
def _hub(source: str, subset: str, split: str) -> Iterator[Any]:
    """The Hub's client. What fails of it, in whatever way, is a `UserError`."""
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise UserError(
            f"--source {source}: needs huggingface_hub; pip install huggingface_hub, or give a folder"
        ) from None
    try:
        yield huggingface_hub
    except Exception as error:  # of the network, the Hub and the disk, each of its own kind
        raise UserError(
            f"--source {source}: {subset}/{split} cannot be downloaded ({type(error).__name__}: "
            f"{str(error)[:200]}); "
            "check the name and the network, or give a folder with a copy"
        ) from None


def _listed(source: str, subset: str, split: str) -> list[tuple[str, int]]:
    """Names and bytes of the files of one split, without their contents."""
    repository, _, revision = source.partition("@")
    with _hub(source, subset, split) as hub:
        entries = hub.HfApi().list_repo_tree(
            repository, f"{subset}/{split}", repo_type="dataset", revision=revision or None
        )
        return sorted(
            (Path(entry.path).name, entry.size) for entry in entries if entry.path.endswith(".jsonl.zst")
        )


def _download(source: str, subset: str, split: str, folder: Path) -> Path:
    """The files of one split, out of the Hub's data set. Errors: `UserError` where they cannot be had."""
    repository, _, revision = source.partition("@")
    with _hub(source, subset, split) as hub:
        hub.snapshot_download(
            repository,
            repo_type="dataset",
            revision=revision or None,
            local_dir=folder,
            allow_patterns=f"{subset}/{split}/*.jsonl.zst",
        )
    return folder
