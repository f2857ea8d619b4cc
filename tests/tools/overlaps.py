# SPDX-License-Identifier: Apache-2.0
"""The plain definition of a hit, and small corpora with planted ones."""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.data.corpora import latex_texts, python_texts
from tools.overlap import main

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(ROOT / "tools" / "overlap.py")]


def plain_hits(texts: Iterable[str], items: Sequence[str], n: int) -> set[tuple[int, int, str]]:
    """(document, item, n-gram) by sets of joined words, as the definition says."""
    found = set()
    of_items = [grams_of(item, n) for item in items]
    for document, text in enumerate(texts):
        grams = grams_of(text, n)
        found |= {(document, item, gram) for item, of_item in enumerate(of_items) for gram in grams & of_item}
    return found


def grams_of(text: str, n: int) -> set[str]:
    words = text.split()
    return {" ".join(words[start : start + n]) for start in range(len(words) - n + 1)}


def items() -> list[str]:
    """Questions of our own, from 3 words to about 80."""
    generator = random.Random(7)
    words = (
        "how many apples does Janet’s brother buy on day two if each costs $3 and she has half of x^2 left"
    )
    return [
        " ".join(
            generator.choice(words.split()) for _ in range(generator.choice((3, 12, 29, 30, 31, 45, 80)))
        )
        + f" ({number})?"
        for number in range(60)
    ]


def documents(count: int = 120) -> list[str]:
    """Real Python and LaTeX; into every third document some words of an item are put."""
    generator = random.Random(5)
    questions = items()
    texts = [*python_texts(), *latex_texts()]
    made = []
    for number in range(count):
        text = texts[number % len(texts)][: generator.randrange(200, 6000)]
        if number % 3 == 0:
            words = generator.choice(questions).split()
            start = generator.randrange(0, max(1, len(words) - 30))
            part = generator.choice((" ", "\n", "\t ", " \u3000")).join(words[start:])
            cut = generator.randrange(len(text))
            text = f"{text[:cut]} {part} {text[cut:]}"
        made.append(text)
    return made


def write_jsonl(path: Path, texts: Sequence[str], key: str = "text", **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({key: text, "meta": {"n": n, "big": 2**70}, **more}) for n, text in enumerate(texts)]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def arguments(test: Path, output: Path, *corpora: Path, **options: Any) -> list[str]:
    """The command line; an option's `_` is `-`, True is a flag."""
    command = [*COMMAND, "--test", str(test), "--key", "problem", "--output", str(output), "--workers", "1"]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return [*command, "--corpus", *map(str, corpora)]


def run(command: Sequence[str]) -> tuple[int, str]:
    """Runs the command in this process, to save its start; its exit status and what it said of errors."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(command[len(COMMAND) :])
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
    return 0, said.getvalue()


def succeed(command: Sequence[str]) -> None:
    status, said = run(command)
    assert status == 0, said


def fail(command: Sequence[str]) -> str:
    status, said = run(command)
    assert status == 2, said
    return said


def read_hits(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "hits.jsonl").read_text().splitlines()]
