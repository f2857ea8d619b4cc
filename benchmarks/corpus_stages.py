#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A recipe's stage against datatrove's pipeline: the same rules over the same JSON lines, one process
each.

    python benchmarks/corpus_stages.py [--megabytes 100] [--output benchmarks/corpus_stages.json]

The text is the Python source of sympy, scipy and networkx as installed, again and again with a number at
the end, in records with a little meta. Both sides read JSON lines, apply AlgebraicStack's rules for Python
(the same code), and write zstd. Ours also counts by rule and language, chooses examples, hashes and syncs.
CPU seconds are of a process of its own, start included; memory is its peak. Ours is run on a quarter of
the text too, to see whether memory grows.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import page

PACKAGES = ("sympy", "scipy", "networkx")


def write_corpus(path: Path, nbytes: int) -> int:
    """About so many bytes of JSON lines; returns how many."""
    texts = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        texts += [
            file.read_text("utf-8", "replace") for file in sorted(Path(spec.origin).parent.rglob("*.py"))
        ]
    with open(path, "wb") as out:
        for round_ in itertools.count():
            for number, text in enumerate(texts):
                if out.tell() >= nbytes:
                    return out.tell()
                record = {"text": f"{text}# {round_}\n", "meta": {"lang": "python", "path": f"{number}.py"}}
                out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    raise AssertionError


def ours(corpus: Path, output: Path) -> None:
    """Our stage."""
    from tools.proof_pile_2.algebraic_stack.languages import by_name
    from tools.proof_pile_2.algebraic_stack.steps import LanguageRules
    from tools.proof_pile_2.pipeline import ReadOptions, Stage, plan_shards, run_stage

    stage = Stage("Python", (LanguageRules(by_name()["python"]),))
    run_stage(stage, lambda: plan_shards([corpus], ReadOptions()), output, log_interval_seconds=60)


def theirs(corpus: Path, output: Path) -> None:
    """datatrove's reader, filter and writer."""
    from datatrove.data import Document as DatatroveDocument
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.filters import LambdaFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    from tools.proof_pile_2.algebraic_stack.languages import by_name
    from tools.proof_pile_2.documents import Document

    conditions = by_name()["python"].conditions

    def keep(document: DatatroveDocument) -> bool:
        given = Document(document.text, document.metadata)
        return all(condition.holds(given) for condition in conditions)

    blocks = [
        JsonlReader(str(corpus.parent), glob_pattern=corpus.name, compression=None),
        LambdaFilter(keep),
        JsonlWriter(str(output), compression="zstd"),
    ]
    LocalPipelineExecutor(blocks, tasks=1, logging_dir=f"{output}-logs").run()


def measured(side: str, corpus: Path, folder: Path) -> dict[str, Any]:
    """One side in a process of its own."""
    output, megabytes = folder / f"{side}-{corpus.stem}", corpus.stat().st_size / 1e6
    command = [sys.executable, __file__, "--side", side, str(corpus), str(output)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    taken: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    rate = round(megabytes / taken["cpu_seconds"], 1)
    return {"side": side, "megabytes": round(megabytes, 1), "kept": documents(output), "rate": rate, **taken}


def documents(folder: Path) -> int:
    """Lines in the compressed files of a folder."""
    count = 0
    for file in folder.rglob("*.jsonl.zst"):
        with zstandard.open(file, "rb") as stream:
            count += sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))
    return count


def run_side(side: str, corpus: Path, output: Path) -> None:
    """In the process of one side: do it, and print what it took."""
    (ours if side == "ours" else theirs)(corpus, output)
    used = resource.getrusage(resource.RUSAGE_SELF)
    taken = {
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_megabytes": round(used.ru_maxrss / 1024),
    }
    print(json.dumps(taken))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="A recipe's stage against datatrove's pipeline.")
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="the table goes beside it")
    parser.add_argument("--side", nargs=3, metavar=("SIDE", "CORPUS", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run_side(arguments.side[0], Path(arguments.side[1]), Path(arguments.side[2]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_corpus(folder / "quarter.jsonl", arguments.megabytes * 250_000)
        write_corpus(folder / "whole.jsonl", arguments.megabytes * 1_000_000)
        rows = [
            measured(side, folder / name, folder)
            for side, name in (
                ("ours", "quarter.jsonl"),
                ("ours", "whole.jsonl"),
                ("datatrove", "whole.jsonl"),
            )
        ]
    heads = {"side": "Side", "megabytes": "MB in", "kept": "Documents kept", "cpu_seconds": "CPU seconds",
             "rate": "MB per CPU second", "peak_megabytes": "Peak MB"}  # fmt: skip
    table = page.table(list(heads.values()), ([str(row[key]) for key in heads] for row in rows))
    print(table)
    if arguments.output:
        command = f"python benchmarks/corpus_stages.py --megabytes {arguments.megabytes} --output FILE.json"
        text = (
            "# A recipe's stage against datatrove's pipeline\n\nThe same rules for Python over the same "
            "JSON lines, "
            f"one process each. Made with\n\n    {command}\n\n{table}"
        )
        page.write(arguments.output, {"rows": rows}, text)


if __name__ == "__main__":
    main()
