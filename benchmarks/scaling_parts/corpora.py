# SPDX-License-Identifier: Apache-2.0
"""Commands over text as it grows: tools/preprocess_data.py and tools/overlap.py on up to 2 GB."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.overlap import drawn_items, installed_texts
from benchmarks.scaling_parts.lines import Page

ROOT = Path(__file__).resolve().parents[2]
_BASE_BYTES = 80_000_000


def texts_of(sizes_mb: Sequence[int]) -> tuple[list[str], str]:
    """The machine's own texts, as many as there are up to 80 MB, and what they are in words."""
    most = min(_BASE_BYTES, max(sizes_mb) * 1_000_000)
    texts = [text for _, text in installed_texts(most)]
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) / 1e6
    return texts, (
        f"The text: {size:.0f} MB of LaTeX and Python of this machine, repeated with a number of the round "
        "after each ` = ` and ` the `, one document a line."
    )


def endless(texts: Sequence[str]) -> Iterator[str]:
    """The texts over and over, each time with other words in between."""
    turn = 0
    while True:
        for text in texts:
            yield text if turn == 0 else text.replace(" = ", f" = {turn} ").replace(" the ", f" the {turn} ")
        turn += 1


def write_corpus(path: Path, texts: Sequence[str], size_mb: int) -> float:
    """A JSONL file of `size_mb` of text; the MB that it came to."""
    size = 0
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:
        for text in endless(texts):
            if size >= size_mb * 1_000_000:
                break
            size += len(text.encode("utf-8", "surrogatepass"))
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return size / 1e6


def run_command(arguments: Sequence[object]) -> dict[str, float]:
    """Wall and CPU seconds of a command with all its processes."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, arguments)], stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    if status:
        raise SystemExit(f"{arguments[0]} failed; what it said stands above")
    return {
        "wall_seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }


COLUMNS = {
    "text_mb": "Text, MB",
    "wall_seconds": "s",
    "cpu_seconds": "CPU s",
    "mb_per_cpu_second": "MB per CPU s",
    "turns": "Turns",
    "slowest_cpu_seconds": "the slowest, CPU s",
}


def _measure(
    page: Page, options: argparse.Namespace, arguments: Callable[[Path, Path], list[object]]
) -> Page:
    texts, what = texts_of(options.sizes)
    page.notes.append(what)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:  # compiles what is compiled once
        corpus = Path(name) / "corpus.jsonl"
        write_corpus(corpus, texts, 1)
        run_command(arguments(corpus, Path(name)))
    turns: dict[int, list[dict[str, float]]] = {size: [] for size in options.sizes}
    began = time.perf_counter()
    # Size after size and not turn after turn, so that a slow minute of the machine meets one turn of a size.
    for _, size in itertools.product(range(options.rounds), options.sizes):
        if time.perf_counter() - began > options.limit_seconds:
            break
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            corpus = Path(name) / "corpus.jsonl"
            text_mb = write_corpus(corpus, texts, size)
            turn = {"text_mb": round(text_mb, 1), **run_command(arguments(corpus, Path(name)))}
        turns[size].append(turn)
        print(
            f"{size} MB: {turn['wall_seconds']:.1f} s, CPU {turn['cpu_seconds']:.1f} s",
            file=sys.stderr,
            flush=True,
        )
    page.rows += [summary(found) for found in turns.values() if found]
    for size, found in turns.items():
        if len(found) < options.rounds:
            page.found.append(
                f"{size} MB: {len(found)} of {options.rounds} turns, then the time given "
                f"({options.limit_seconds:.0f} s) was over."
            )
    return page


def summary(turns: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The turn with the least CPU time: what others do on the machine only adds to it."""
    best = min(turns, key=lambda turn: turn["cpu_seconds"])
    return {
        **best,
        "mb_per_cpu_second": best["text_mb"] / best["cpu_seconds"],
        "slowest_cpu_seconds": max(turn["cpu_seconds"] for turn in turns),
        "turns": len(turns),
    }


def _page(title: str, note: str) -> Page:
    return Page(
        title, "text_mb", "MB of text", {"cpu_seconds": "CPU seconds"}, "seconds",
        COLUMNS, [note],
    )  # fmt: skip


def tokenizing(options: argparse.Namespace) -> Page:
    """Text to token files."""
    if options.model is None:
        raise SystemExit("error: --model: give a SentencePiece model, such as Llama 2's tokenizer.model")
    page = _page(
        "Tokenising by size of the text", f"tools/preprocess_data.py with {options.workers} worker(s)."
    )

    def arguments(corpus: Path, folder: Path) -> list[object]:
        return [
            "tools/preprocess_data.py", "--input", corpus, "--output-prefix", folder / "out",
            "--tokenizer-type", "SPMTokenizer",
            "--vocab-file", options.model, "--append-eod", "--workers", options.workers,
        ]  # fmt: skip

    return _measure(page, options, arguments)


def overlapping(options: argparse.Namespace) -> Page:
    """The search for 30-grams of a test set of 1,319 items."""
    page = _page(
        "Overlap by size of the text", f"tools/overlap.py with {options.workers} worker(s), 30 words."
    )

    def arguments(corpus: Path, folder: Path) -> list[object]:
        test = folder / "test.jsonl"
        items = drawn_items([text for _, text in installed_texts(4_000_000)])
        test.write_text("".join(json.dumps({"problem": item}) + "\n" for item in items), encoding="utf-8")
        return [
            "tools/overlap.py", "--test", test, "--key", "problem", "--corpus", corpus,
            "--output", folder / "out", "--workers", options.workers,
        ]  # fmt: skip

    return _measure(page, options, arguments)
