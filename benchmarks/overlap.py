#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Speed of the search for n-grams, against sets of joined n-grams in Python, on one corpus in one run.

    python benchmarks/overlap.py [--test FILE --key question] [--mb 80] [--scale-mb 80 160 320]
        [--output benchmarks/overlap.json]

The corpus is LaTeX and code of this machine: TeX files, the mathematical packages' Python and their
documentation as LaTeX (as the quickstart reads them), then other Python beside them until `--mb` are full.
Into every 40th document an item of the test set is put, so that there are hits to compare.

The peers do what the released tool of the Llemma authors does, written anew here: a document becomes the set
of its n-grams, each 30 words of `str.split()` joined by a space, and

    item by item    the set of each item is intersected with it, so that time grows with the test set;
    one dictionary  all n-grams of the test set are looked up in it at once, the best that plain Python does.

Speed is MB of text per CPU second, of one process that has the texts in memory ("search"); "command" is all
of tools/overlap.py on a `.jsonl` of the same texts: start, reading, JSON, hashes and reports included.
Without `--test` 1,319 items are drawn from the corpus's own words. Hits must be equal, or this ends with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import page
from tools.overlap_parts.items import word_patterns
from tools.overlap_parts.search import WordSearch, hits_of
from tools.quickstart_parts.corpus import TEX_FOLDERS, package_documents, tex_documents

ROOT = Path(__file__).resolve().parents[1]
NGRAM = 30
CHUNK_BYTES = 1 << 20
Hits = set[tuple[int, int, str]]


def installed_texts(most_bytes: int) -> Iterator[tuple[str, str]]:
    """(kind, text) of what is installed, LaTeX first, up to `most_bytes`."""
    total = 0
    for kind, text in _texts():
        if total >= most_bytes:
            return
        total += len(text.encode("utf-8", "surrogatepass"))
        yield kind, text


def _texts() -> Iterator[tuple[str, str]]:
    for document in tex_documents(TEX_FOLDERS):
        yield "latex", document.text
    for document in package_documents():
        yield document.source, document.text
    seen = {"sympy", "mpmath", "networkx", "scipy", "numpy"}
    for folder in site.getsitepackages():
        for path in sorted(Path(folder).rglob("*.py")):
            if path.relative_to(folder).parts[0] not in seen:
                text = path.read_text(encoding="utf-8", errors="ignore")
                if text:
                    yield "other python", text


def drawn_items(texts: Sequence[str], count: int = 1319) -> list[str]:
    """Items of 8 to 90 words, as long as school questions are, of words that the corpus has."""
    generator = random.Random(1)
    words = [word for text in texts[:: max(1, len(texts) // 50)] for word in text.split()[:400]]
    return [" ".join(generator.choices(words, k=generator.randrange(8, 90))) for _ in range(count)]


def planted(texts: Sequence[str], items: Sequence[str]) -> list[str]:
    """The texts, into every 40th of which an item was put, with other white space."""
    made = list(texts)
    for number in range(0, len(made), 40):
        item = items[number // 40 % len(items)].split()
        half = len(made[number]) // 2
        made[number] = f"{made[number][:half]}\n{'  '.join(item)}\n{made[number][half:]}"
    return made


def ours(texts: Sequence[str], items: Sequence[str]) -> tuple[float, Hits]:
    """CPU seconds and hits, in stretches of about 1 MB as the command has them."""
    search = WordSearch(word_patterns(items, NGRAM, None))
    list(search.occurrences(["compiled or read from the disk"]))
    hits: Hits = set()
    started = time.process_time()
    for first, stretch in _stretches(texts):
        for hit in hits_of(search, search.occurrences(stretch)):
            hits |= {(first + hit.document, item, hit.gram) for item in hit.items}
    return time.process_time() - started, hits


def _stretches(texts: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    first = size = 0
    for number, text in enumerate(texts):
        size += len(text)
        if size >= CHUNK_BYTES:
            yield first, texts[first : number + 1]
            first, size = number + 1, 0
    yield first, texts[first:]


def _grams(text: str) -> set[str]:
    words = text.split()
    return {" ".join(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)}


def item_by_item(texts: Sequence[str], items: Sequence[str]) -> tuple[float, Hits]:
    """CPU seconds and hits of the released tool's way."""
    of_items = [_grams(item) for item in items]
    hits: Hits = set()
    started = time.process_time()
    for document, text in enumerate(texts):
        grams = _grams(text)
        for item, of_item in enumerate(of_items):
            common = of_item & grams
            if common:
                hits |= {(document, item, gram) for gram in common}
    return time.process_time() - started, hits


def one_dictionary(texts: Sequence[str], items: Sequence[str]) -> tuple[float, Hits]:
    """CPU seconds and hits where n-grams lead to their items."""
    known: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        for gram in _grams(item):
            known.setdefault(gram, []).append(number)
    hits: Hits = set()
    started = time.process_time()
    for document, text in enumerate(texts):
        for gram in _grams(text) & known.keys():
            hits |= {(document, item, gram) for item in known[gram]}
    return time.process_time() - started, hits


def command(folder: Path, texts: Sequence[str], items: Sequence[str], most_bytes: int) -> dict[str, Any]:
    """tools/overlap.py with one worker on a JSONL file of `most_bytes` of text, the texts repeated."""
    corpus, test, output = folder / "corpus.jsonl", folder / "test.jsonl", folder / "output"
    size = 0
    with open(corpus, "w", encoding="utf-8") as file:
        while size < most_bytes:
            for text in texts:
                if size >= most_bytes:
                    break
                size += len(text.encode("utf-8", "surrogatepass"))
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    test.write_text("".join(json.dumps({"problem": item}) + "\n" for item in items), encoding="utf-8")
    started = time.perf_counter()
    process = subprocess.Popen(
        [
            sys.executable, str(ROOT / "tools" / "overlap.py"), "--test", str(test), "--key", "problem",
            "--corpus", str(corpus), "--output", str(output), "--workers", "1", "--overwrite",
        ],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    if status:
        raise SystemExit("tools/overlap.py failed; what it said stands above")
    seconds = usage.ru_utime + usage.ru_stime
    return {
        "text_mb": round(size / 1e6, 1),
        "cpu_seconds": round(seconds, 2),
        "wall_seconds": round(time.perf_counter() - started, 2),
        "mb_per_cpu_second": round(size / 1e6 / seconds, 1),
        "peak_mb": round(usage.ru_maxrss / 1024, 1),
    }


def first_compilation() -> float:
    """CPU seconds of a first start on this machine, less those of a second one: what compiling costs."""
    program = (
        "import time; from tools.overlap_parts.search import *\n"
        "search = WordSearch(word_patterns(['a b c d e f'], 5, None))\n"
        "list(search.occurrences(['a']))\nprint(time.process_time())"
    )
    with tempfile.TemporaryDirectory() as cache:
        seconds = []
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "NUMBA_CACHE_DIR": cache},
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            seconds.append(float(done.stdout))
    return round(seconds[0] - seconds[1], 2)


def _beyond_the_start(first: dict[str, Any], last: dict[str, Any]) -> list[str]:
    """What the last of several sizes takes more than the first."""
    seconds, mb = last["cpu_seconds"] - first["cpu_seconds"], last["text_mb"] - first["text_mb"]
    if seconds <= 0:
        return []
    return [f"From the first row to the last: {mb / seconds:,.1f} MB per CPU second.", ""]


def markdown(result: dict[str, Any]) -> str:
    """The table for people."""
    kinds = ", ".join(f"{kind} {mb} MB" for kind, mb in result["corpus"]["kinds"].items())
    lines = [
        "# Overlap with a test set",
        "",
        f"`{result['command']}` on {result['machine']}, Python {result['python']}. "
        f"{result['corpus']['mb']} MB of text ({kinds}) in "
        f"{result['corpus']['documents']:,} documents; {result['items']:,} items, {result['short_items']:,} "
        f"of them below {NGRAM} words; {result['hits']:,} hits, equal for all.",
        "",
        "| Way | MB per CPU second | ours is faster by |",
        "|---|---|---|",
    ]
    speed = result["mb_per_cpu_second"]
    for way, value in speed.items():
        lines.append(f"| {way} | {value:,.1f} | {speed['ours, search'] / value:,.1f} |")
    first, last = result["command_scaling"][0], result["command_scaling"][-1]
    lines += [
        "",
        f"The first start on a machine compiles for {result['compile_cpu_seconds']} CPU seconds; later ones "
        "read the result from the disk.",
        "",
        "The whole command, one worker:",
        "",
        "| Text, MB | CPU seconds | wall seconds | MB per CPU second | peak memory, MB |",
        "|---|---|---|---|---|",
        *(
            f"| {row['text_mb']:,} | {row['cpu_seconds']} | {row['wall_seconds']} | "
            f"{row['mb_per_cpu_second']} | {row['peak_mb']:,} |"
            for row in result["command_scaling"]
        ),
        "",
        *_beyond_the_start(first, last),
    ]
    return "\n".join(lines)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything; ends the program where hits differ."""
    pairs = list(installed_texts(args.mb * 1_000_000))
    kinds = {kind: sum(len(text.encode("utf-8", "surrogatepass")) for k, text in pairs if k == kind) / 1e6
             for kind in dict.fromkeys(kind for kind, _ in pairs)}  # fmt: skip
    texts = [text for _, text in pairs]
    if args.test is None:
        items = drawn_items(texts)
    else:
        lines = args.test.read_text(encoding="utf-8").splitlines()
        items = [json.loads(line)[args.key] for line in lines]
    texts = planted(texts, items)
    mb = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) / 1e6
    ways: dict[str, Callable[[Sequence[str], Sequence[str]], tuple[float, Hits]]] = {
        "ours, search": ours,
        "released tool's way: sets of joined n-grams, item by item": item_by_item,
        "sets of joined n-grams, one dictionary": one_dictionary,
    }
    speed, hits = {}, {}
    for way, run in ways.items():
        seconds, hits[way] = run(texts, items)
        speed[way] = round(mb / seconds, 1)
        print(f"{way}: {speed[way]} MB per CPU second, {len(hits[way]):,} hits", file=sys.stderr, flush=True)
    if len({frozenset(found) for found in hits.values()}) != 1:
        raise SystemExit("the hits differ")
    with tempfile.TemporaryDirectory() as folder:
        scaling = [command(Path(folder), texts, items, size * 1_000_000) for size in args.scale_mb]
    return {
        # Files by their names: where they lie on this machine says nothing elsewhere.
        "command": " ".join(["python benchmarks/overlap.py", *(Path(word).name for word in sys.argv[1:])]),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "python": platform.python_version(),
        "corpus": {
            "mb": round(mb, 1),
            "documents": len(texts),
            "kinds": {kind: round(of_kind, 1) for kind, of_kind in kinds.items()},
        },
        "items": len(items),
        "short_items": sum(len(item.split()) < NGRAM for item in items),
        "hits": len(hits["ours, search"]),
        "mb_per_cpu_second": speed,
        "compile_cpu_seconds": first_compilation(),
        "command_scaling": scaling,
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description="Measure the search for n-grams against plain Python.")
    parser.add_argument("--test", type=Path, help="JSONL of items (default: items drawn from the corpus)")
    parser.add_argument("--key", default="question", help="of an item's text (default: question)")
    parser.add_argument("--mb", type=int, default=80, help="of text (default: 80)")
    parser.add_argument(
        "--scale-mb",
        type=int,
        nargs="*",
        default=[80, 160, 320],
        help="sizes for the whole command; 2000 too",
    )
    parser.add_argument("--output", type=Path, help="JSON; the table goes beside it as .md")
    args = parser.parse_args()
    result = measure(args)
    print(markdown(result))
    if args.output is not None:
        page.write(args.output, result, markdown(result))


if __name__ == "__main__":
    main()
