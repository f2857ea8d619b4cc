# SPDX-License-Identifier: Apache-2.0
"""Small made-up corpora, steps to run over them, and ways to look at what came out."""

from __future__ import annotations

import io
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from tools.proof_pile_2.pipeline import Document, Dropped, Stage, version_of

WORDS = ["let", "a", "group", "of", "ideals", "ring", "prime", "∫", "Γ", "naïve", "compact"]


def sentences(seed: int, documents: int) -> list[str]:
    """Made-up texts, a few of them equal, empty or odd."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(3, 40))) for _ in range(documents)]
    texts[documents // 3] = ""
    texts[documents // 2] = texts[0]
    return texts


def write_lines(file: Path, texts: Iterable[str], **meta: Any) -> Path:
    """A `.jsonl` or `.jsonl.zst` file of documents with `meta`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(json.dumps({"text": text, "meta": {"n": n, **meta}}).encode() + b"\n"
                    for n, text in enumerate(texts))  # fmt: skip
    file.write_bytes(zstandard.compress(data) if file.suffix == ".zst" else data)
    return file


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All records of a `.jsonl.zst` file, read with the library's stream reader."""
    with zstandard.open(path, "rb") as stream:
        return [json.loads(line) for line in io.TextIOWrapper(stream, "utf-8", newline="\n")]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for the lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def kill_at_random(command: list[str], output: Path, seconds: float, kills: int, seed: int) -> None:
    """Start a command, which takes about so many seconds and writes `output`, and kill it at a random
    moment, so many times; one that finished first is no kill, and what it made is removed."""
    rng, done, attempts = random.Random(seed), 0, 0
    while done < kills:
        attempts += 1
        assert attempts < 10 * kills, "it always finished first"
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 0.95) * seconds)
        if process.poll() is None:
            done += 1
        else:
            seconds *= 0.8
            shutil.rmtree(output)
        process.send_signal(signal.SIGKILL)
        process.wait(60)


@dataclass(frozen=True)
class AtLeast:
    """Drops short texts."""

    words: int
    name: str = "length"

    @property
    def version(self) -> str:
        return version_of(1, self.words)

    def __call__(self, document: Document) -> Document | Dropped:
        if not document.text:
            return Dropped("empty")
        return document if len(document.text.split()) >= self.words else Dropped("too short")


@dataclass(frozen=True)
class Halves:
    """Cuts each text in two."""

    name: str = "halves"
    version: str = "1"

    def __call__(self, document: Document) -> list[Document | Dropped]:
        middle = len(document.text) // 2
        return [document.with_text(document.text[:middle]), document.with_text(document.text[middle:])]


@dataclass(frozen=True)
class Fails:
    """Raises on some texts."""

    name: str = "fails"
    version: str = "1"

    def __call__(self, document: Document) -> Document:
        if document.text.startswith("let"):
            raise ValueError("begins with let")
        return document


def stage(words: int = 8, **options: Any) -> Stage:
    """A stage that drops short texts."""
    return Stage("Test", (AtLeast(words),), options)
