#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Seconds from the command to the first step, by phase and by size of the corpus.

    python benchmarks/startup.py [--documents 1000 … 10000000] [--rounds 2] [--folder DIR]
        [--output benchmarks/startup.json]

For each number of documents a token file of random ids is made, 16 tokens a document on average, and
`deepy.py train.py` takes one step of a tiny model on it: first with the order of the data to be laid out,
then `--rounds` times with the order in its cache. The phases are those that a run tells (docs/profiling.md).
FILE.md and FILE.png are written beside FILE.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import yaml

from benchmarks import machine
from benchmarks.scaling_parts.lines import Page
from megatron.data.token_file import Provenance, TokenFileWriter, TokenizerRecord
from megatron.monitoring.jsonl import FILE_NAME, read_history
from megatron.tokenizer import build_tokenizer

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = 1000
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
_BLOCK_DOCUMENTS = 500_000


def write_tokenizer(path: Path) -> None:
    """A tokenizer of words w0, w1, …: what a run checks its token files against."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    words = {"<eod>": 0, "<unk>": 1} | {f"w{number}": number for number in range(2, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken("<eod>", special=True)])
    tokenizer.save(str(path))


def write_tokens(prefix: Path, documents: int, vocab_file: Path) -> None:
    """`documents` documents of 1 to 31 random ids."""
    tokenizer = build_tokenizer("HFTokenizer", vocab_file, "<eod>")
    record = TokenizerRecord(
        type=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eod_id=tokenizer.eod_id,
        eod_appended=True,
    )
    generator = np.random.default_rng(documents)
    with TokenFileWriter(prefix, tokenizer.vocab_size) as writer:
        for first in range(0, documents, _BLOCK_DOCUMENTS):
            lengths_D = generator.integers(1, 32, min(_BLOCK_DOCUMENTS, documents - first))
            writer.add_documents(generator.integers(2, VOCABULARY, int(lengths_D.sum())), lengths_D)
        writer.finalize(
            Provenance(tokenizer=record, text_bytes=0, empty_documents=0, broken_lines=0, sources=[])
        )


def write_configuration(folder: Path, prefix: Path, vocab_file: Path) -> Path:
    """One step of a model that costs nothing, over all of the token file in a run's time."""
    keys: dict[str, Any] = {
        "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 176,
        "seq_length": 128, "max_position_embeddings": 128, "rotary_emb_base": 10000,
        "make_vocab_size_divisible_by": 1, "precision": "fp32", "train_micro_batch_size_per_gpu": 1,
        "lr": 1e-3, "train_iters": 1, "eval_iters": 0, "do_test": False, "log_dir": str(folder / "logs"),
        "tensorboard": False, "plots": False, "train_data_paths": [str(prefix)],
        "tokenizer_type": "HFTokenizer",
        "vocab_file": str(vocab_file), "eod_token": "<eod>", "data_cache_path": str(folder / "cache"),
    }  # fmt: skip
    path = folder / "run.yml"
    path.write_text(yaml.safe_dump(keys))
    return path


def start(folder: Path, configuration: Path) -> dict[str, float]:
    """The phases of one start."""
    log = folder / "logs" / FILE_NAME
    log.unlink(missing_ok=True)
    has_gpu = bool(os.environ.get("CUDA_VISIBLE_DEVICES", "")) or Path("/dev/nvidia0").exists()
    command = [sys.executable, "deepy.py", "train.py", str(configuration)]
    command += [] if has_gpu else ["--cpu-ranks", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"deepy.py ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    [event] = [event for event in read_history(log).events if event["kind"] == "startup"]
    return {name: value for name, value in event.items() if name not in ("kind", "iteration", "time")}


def measure(options: argparse.Namespace) -> Page:
    """A row for each number of documents."""
    page = Page(
        "Start-up by size of the corpus", "documents", "documents",
        {"first_data_seconds": "laying out the order, first start", "data_seconds": "data, later starts",
         "seconds": "command to first step, later starts"},
        "seconds",
        {"documents": "Documents", "first_data_seconds": "Data, first start, s",
         "data_seconds": "Data, later, s",
         "imports_seconds": "Imports, s", "rest_seconds": "All else, s", "seconds": "To the first step, s"},
        [f"Later starts: the fastest of {options.rounds}."],
        is_logarithmic=True,
    )  # fmt: skip
    for documents in options.documents:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)
            write_tokenizer(folder / "tokenizer.json")
            write_tokens(folder / "tokens", documents, folder / "tokenizer.json")
            configuration = write_configuration(folder, folder / "tokens", folder / "tokenizer.json")
            first = start(folder, configuration)
            starts = [start(folder, configuration) for _ in range(options.rounds)]
            later = min(starts, key=lambda phases: phases["seconds"])
        page.rows.append(
            {
                "documents": documents,
                "first_data_seconds": first["data"],
                "data_seconds": later["data"],
                "imports_seconds": later["imports"],
                "rest_seconds": later["seconds"] - later["imports"] - later["data"],
                "seconds": later["seconds"],
                "first": first,
                "later": later,
            }
        )
        print(
            json.dumps({"documents": documents, "first": first, "later": later}), file=sys.stderr, flush=True
        )
    page.found.append(
        "Laying out the order (a shuffle of the documents, once for a corpus, length and seed) grows with "
        "the documents; later starts map its file, and read the documents' lengths once."
    )
    return page


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to write, about 1 GB for ten million documents")
    parser.add_argument("--output", type=Path, help="JSON; the page and the picture go beside it")
    options = parser.parse_args()
    page, where = measure(options), machine.describe()
    print(page.markdown(where, "…"))
    if options.output is not None:
        page.write(where, options.output)


if __name__ == "__main__":
    main()
