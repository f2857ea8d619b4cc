# SPDX-License-Identifier: Apache-2.0
"""How fast near-duplicates are found, how many of those planted, and how many of what is dropped are none.

Text files of 1 to 100 kB of the given folders are the documents, in an order drawn by a seed. To every tenth
a copy is added at the end, in which a share of the words, scattered or in one stretch, is replaced. Each
method says which documents go; CPU seconds are counted from texts in memory to that list. Whether a document
that goes is like an earlier one is checked apart, by exact cosines of word 4-gram counts over the whole
collection, which no method uses: precision is the share of what goes with a cosine of at least 0.7, and of at
least 0.5.

Peers: rensa and datasketch, MinHash with 128 permutations of word 3-grams, Jaccard 0.54, which is cosine 0.7
for documents of one length. `pip install rensa==0.5.0 datasketch==2.0.0`

    python benchmarks/near_duplicates.py .venv/lib --megabytes 80 \\
        --json benchmarks/near_duplicates.json --markdown benchmarks/near_duplicates.md
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from tools.proof_pile_2.documents import Broken, Document
from tools.proof_pile_2.keys import find_dropped
from tools.proof_pile_2.open_web_math.near_duplicates import AlikeEnough, NearDuplicateKeys

SUFFIXES = (".py", ".tex", ".txt", ".rst", ".md", ".v", ".pyi", ".h", ".c", ".cpp")
JACCARD = 0.7 / (2 - 0.7)
EDITS = [("scattered", 0.01), ("scattered", 0.02), ("scattered", 0.05), ("scattered", 0.1),
         ("a stretch", 0.05), ("a stretch", 0.1), ("a stretch", 0.2), ("a stretch", 0.3)]  # fmt: skip


@dataclass(frozen=True)
class Collection:
    """Documents, and for each planted one its place, its edit and the place of its original."""

    texts: list[str]
    planted: list[tuple[int, str, int]]


def collect(folders: list[Path], megabytes: float, seed: int) -> Collection:
    """About so many megabytes, copies included."""
    rng = random.Random(seed)
    files = sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in SUFFIXES and path.is_file() and 1_000 <= path.stat().st_size <= 100_000
    )
    rng.shuffle(files)
    texts: list[str] = []
    total = 0
    for path in files:
        if total >= megabytes * 1e6 / 1.1:
            break
        texts.append(path.read_text(encoding="utf-8", errors="replace"))
        total += len(texts[-1])
    planted = []
    for number, original in enumerate(range(0, len(texts), 10)):
        kind, share = EDITS[number % len(EDITS)]
        planted.append((len(texts), f"{share:.0%} of words, {kind}", original))
        texts.append(edited(texts[original], kind, share, rng))
    return Collection(texts, planted)


def edited(text: str, kind: str, share: float, rng: random.Random) -> str:
    """With a share of its words replaced by others of its own kind of length."""
    words = text.split(" ")
    count = max(1, int(len(words) * share))
    start = rng.randrange(max(1, len(words) - count))
    places = rng.sample(range(len(words)), count) if kind == "scattered" else range(start, start + count)
    for place in places:
        words[place] = "".join(rng.choice("abcdefghijklmnop") for _ in range(7))
    return " ".join(words)


@dataclass(frozen=True)
class InMemory:
    """All documents as one shard."""

    texts: list[str]
    name: str = "all"

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.texts))

    def identity(self) -> object:
        return len(self.texts)

    def read(self) -> Iterator[Document | Broken]:
        return map(Document, self.texts)


def by_simhash(texts: list[str]) -> list[int]:
    """Ours, through the disk as in the recipe."""
    with tempfile.TemporaryDirectory() as folder:
        lists = find_dropped(
            NearDuplicateKeys(), AlikeEnough(0.7), lambda: [InMemory(texts)], Path(folder), "near-duplicates",
            log_interval_seconds=1e9,
        )  # fmt: skip
        return sorted(lists.of("all"))


def shingles(text: str) -> list[str]:
    """Word 3-grams."""
    words = text.split()
    return [" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))]


def by_rensa(texts: list[str]) -> list[int]:
    """As its documentation has it, document by document."""
    import rensa

    seen = rensa.RMinHashDeduplicator(threshold=JACCARD, num_perm=128, use_lsh=True, num_bands=32)
    gone = []
    for number, text in enumerate(texts):
        sketch = rensa.RMinHash(num_perm=128, seed=42)
        sketch.update(shingles(text))
        if not seen.add(str(number), sketch):
            gone.append(number)
    return gone


def by_datasketch(texts: list[str]) -> list[int]:
    """MinHashLSH with its own choice of bands."""
    from datasketch import MinHash, MinHashLSH

    index, gone = MinHashLSH(threshold=JACCARD, num_perm=128), []
    for number, text in enumerate(texts):
        sketch = MinHash(num_perm=128)
        sketch.update_batch([shingle.encode() for shingle in set(shingles(text))])
        if index.query(sketch):
            gone.append(number)
        else:
            index.insert(number, sketch)
    return gone


def nearest_before(texts: list[str], wanted: list[int]) -> dict[int, float]:
    """The largest cosine of word 4-gram counts of each wanted document with one before it."""
    import scipy.sparse

    numbers: dict[str, int] = {}
    rows, columns = array("q"), array("q")
    for place, text in enumerate(texts):
        words = text.split()
        for i in range(max(1, len(words) - 3)):
            rows.append(place)
            columns.append(numbers.setdefault(" ".join(words[i : i + 4]), len(numbers)))
    shape = (len(texts), len(numbers))
    matrix = scipy.sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape)
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    matrix = scipy.sparse.diags(1 / np.maximum(norms, 1e-9)) @ matrix
    transposed = matrix.T.tocsc()
    best = {}
    for place in wanted:
        cosines = np.asarray((matrix[place] @ transposed).todense()).ravel()[:place]
        best[place] = float(cosines.max()) if place else 0.0
    return best


def measure(method: Callable[[list[str]], list[int]], collection: Collection) -> tuple[float, list[int]]:
    """CPU seconds and what goes."""
    method(collection.texts[:20])
    start = time.process_time()
    gone = method(collection.texts)
    return time.process_time() - start, gone


def judge(gone: list[int], collection: Collection, nearest: dict[int, float]) -> dict[str, Any]:
    """Recall by edit, and precision."""
    dropped = set(gone)
    recall: dict[str, list[bool]] = {}
    for place, edit, _ in collection.planted:
        recall.setdefault(edit, []).append(place in dropped)
    alike = np.array([nearest[place] for place in gone])
    return {
        "dropped": len(gone),
        "recall": {edit: round(sum(found) / len(found), 3) for edit, found in recall.items()},
        "precision_at_cosine_0.7": round(float(np.mean(alike >= 0.7)), 4),
        "precision_at_cosine_0.5": round(float(np.mean(alike >= 0.5)), 4),
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as tables."""
    methods = result["methods"]
    edits = list(next(iter(methods.values()))["recall"])
    lines = [
        "# Near-duplicates",
        "",
        f"{result['documents']:,} documents, {result['megabytes']:.1f} MB, {result['planted']:,} of them "
        "planted; "
        f"{result['machine']}, Python {result['python']}, {result['date']}.",
        "",
        "| Method | MB per CPU second | Dropped | Precision at cosine 0.7 | at 0.5 |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {row['megabytes_per_cpu_second']:.1f} | {row['dropped']:,} "
            f"| {row['precision_at_cosine_0.7']:.1%} | {row['precision_at_cosine_0.5']:.1%} |"
            for name, row in methods.items()
        ),
        "",
        "Planted copies found, by what was replaced (median cosine of word 4-grams with the original):",
        "",
        "| Replaced | Cosine | " + " | ".join(methods) + " |",
        "|---|---|" + "---|" * len(methods),
        *(
            f"| {edit} | {result['cosines'][edit]:.2f} | "
            + " | ".join(f"{row['recall'][edit]:.1%}" for row in methods.values())
            + " |"
            for edit in edits
        ),
        "",
        f"    {result['command']}",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--megabytes", type=float, default=80.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    collection = collect(arguments.folders, arguments.megabytes, arguments.seed)
    megabytes = sum(len(text.encode("utf-8", "replace")) for text in collection.texts) / 1e6
    methods: dict[str, Callable[[list[str]], list[int]]] = {
        "open-web-math (SimHash)": by_simhash,
        f"rensa {version('rensa')}": by_rensa,
        f"datasketch {version('datasketch')}": by_datasketch,
    }
    measured = {name: measure(method, collection) for name, method in methods.items()}
    wanted = {place for place, _, _ in collection.planted}.union(*(gone for _, gone in measured.values()))
    nearest = nearest_before(collection.texts, sorted(wanted))
    cosines: dict[str, list[float]] = {}
    for place, edit, _ in collection.planted:
        cosines.setdefault(edit, []).append(nearest[place])
    result = {
        "command": "python " + " ".join(["benchmarks/near_duplicates.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "documents": len(collection.texts),
        "planted": len(collection.planted),
        "megabytes": round(megabytes, 1),
        "cosines": {edit: round(float(np.median(values)), 3) for edit, values in cosines.items()},
        "methods": {
            name: {
                "megabytes_per_cpu_second": round(megabytes / seconds, 1),
                **judge(gone, collection, nearest),
            }
            for name, (seconds, gone) in measured.items()
        },
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
