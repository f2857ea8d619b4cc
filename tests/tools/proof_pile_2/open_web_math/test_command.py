# SPDX-License-Identifier: Apache-2.0
"""The whole recipe: what each rule keeps and drops, its report, and kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron.neox_arguments.errors import UserError

pytest.importorskip("resiliparse", reason="needs requirements/requirements-data.txt")
pytest.importorskip("warcio", reason="needs requirements/requirements-data.txt")
pytest.importorskip("fasttext", reason="needs requirements/requirements-data.txt")
pytest.importorskip("kenlm", reason="needs requirements/requirements-data.txt")
pytest.importorskip("py3langid", reason="needs requirements/requirements-data.txt")

from tests.tools.proof_pile_2.corpora import read_lines, tree, write_lines
from tests.tools.proof_pile_2.open_web_math.pages import MATHJAX, PROSE, gzipped, math_page, page, record
from tools.proof_pile_2.__main__ import main
from tools.proof_pile_2.documents import Document, Dropped
from tools.proof_pile_2.open_web_math.manual import URL_LIST, ManualRules, read_url_list
from tools.proof_pile_2.open_web_math.page_steps import MathScore, Prefilter
from tools.proof_pile_2.open_web_math.prefilter import (
    COMMON_COMMANDS,
    FirstLook,
    first_look,
    has_common_command,
)

ROOT = Path(__file__).parents[4]
FRENCH = (
    "Soit une fonction continue sur un intervalle fermé. Elle y atteint son maximum, et la preuve en est "
    "simple. "
) * 3


def rule_of(outcome: object) -> str | None:
    return outcome.rule if isinstance(outcome, Dropped) else None


def test_the_prefilter() -> None:
    for word in (
        "MathJax",
        "<math",
        'class="tex"',
        "katex.min.css",
        "latex.php",
        "codecogs",
        "tex.cgi",
        "math-container",
    ):
        assert first_look(f"<p>{word}".encode()) is FirstLook.MATH
    for mark in (
        "<m:math>", "<MATH >", "<script src=ASCIIMathML.js>", "AsciiMath",
        "<img src='https://chart.googleapis.com/chart?cht=tx&chl=%5Cfrac'>",
    ):  # fmt: skip
        assert first_look(mark.encode()) is FirstLook.MATH
    assert first_look(b"<p>maths, <b:mathematician>") is FirstLook.WORDS
    assert first_look(rb"<p>\alpha") is FirstLook.PERHAPS
    assert first_look(rb"<p>\a no") is FirstLook.WORDS
    assert len(set(COMMON_COMMANDS)) == 100
    assert has_common_command(r"so \alpha is")
    assert not has_common_command(r"C:\windows\alphabet")
    plain = Document("<p>words")
    assert rule_of(Prefilter(judged_by_words=False)(plain)) == "no mathematics"
    assert rule_of(Prefilter(judged_by_words=True)(plain)) is None


def test_math_score_without_a_classifier() -> None:
    step = MathScore(None)
    assert rule_of(step(Document("x", {"math": True}))) is None
    assert rule_of(step(Document("x", {"math": False}))) == "no mathematics"


@pytest.mark.parametrize(("text", "url", "rule"), [
    (PROSE, "http://a.org/lemma", None),
    (PROSE, "http://a.org/LOGIN?x", "address on the list"),
    ("short", "", "fewer than 100 characters"),
    ("é" * 4 + "e" * 200, "", "more than 1.5% accented characters"),
    ("é" * 3 + "×" * 10 + "e" * 200, "", None),
])  # fmt: skip
def test_manual_rules(text: str, url: str, rule: str | None) -> None:
    assert rule_of(ManualRules(read_url_list(URL_LIST))(Document(text, {"url": url}))) == rule


def test_the_list_of_addresses(tmp_path: Path) -> None:
    assert 50 <= len(read_url_list(URL_LIST)) <= 80
    (tmp_path / "list.txt").write_text("# all\n/Bad/  # very\n\n")
    assert read_url_list(tmp_path / "list.txt") == ("/bad/",)
    with pytest.raises(UserError, match="--url-list"):
        read_url_list(tmp_path / "absent.txt")


def write_warcs(folder: Path, files: int, pages: int) -> None:
    """Good pages, each with one that a rule drops, and near-duplicates of good ones in the last file."""
    folder.mkdir()
    for file in range(files):
        records = []
        for number in range(file * pages, (file + 1) * pages):
            url = f"http://example.org/{number}"
            records += [
                record(url, math_page(number).encode()),
                record(f"{url}/words", page(f"<p>{PROSE}</p>").encode()),
            ]
        (folder / f"{file}.warc.gz").write_bytes(gzipped(records))
    again = [
        math_page(n).replace("Remark", "remark").replace("Lemma", "The") for n in range(0, files * pages, 3)
    ]
    odd = [
        ("french", page(f"<p>{FRENCH} $x$</p>", MATHJAX)),
        ("short", page("<p>We see that this is $x$ and the other one is not.</p>", MATHJAX)),
        ("login/form", math_page(10_001)),
        ("links", page(MATHJAX + "<a>x</a>" * 3001)),
        ("empty-text", page("<nav>x</nav>", MATHJAX)),
    ]
    last = [record(f"http://again.org/{i}", text.encode()) for i, text in enumerate(again)]
    last += [record(f"http://odd.org/{name}", text.encode()) for name, text in odd]
    (folder / "last.warc.gz").write_bytes(gzipped(last) + b"\x1f\x8b damaged")


def arguments(folder: Path, output: str, *more: str) -> list[str]:
    return [
        "open-web-math",
        "--input",
        str(folder / "in"),
        "--output",
        str(folder / output),
        "--workers",
        "1",
        *more,
    ]


def test_from_pages_to_documents(tmp_path: Path) -> None:
    write_warcs(tmp_path / "in", files=2, pages=6)
    main(arguments(tmp_path, "out"))
    documents = [
        row for file in sorted((tmp_path / "out/final/documents").iterdir()) for row in read_lines(file)
    ]
    assert [row["meta"]["url"] for row in documents] == [f"http://example.org/{i}" for i in range(12)]
    assert documents[3]["text"].startswith("# Lemma 3\n\nLet us consider")
    assert "$x_{3}^2 \\ge 0$" in documents[3]["text"]
    assert documents[3]["meta"] == {
        "url": "http://example.org/3", "date": "2023-01-01T00:00:00Z", "encoding": "utf-8", "title": "A page",
        "formulas": {"delimiters": 1}, "math": True, "english": documents[3]["meta"]["english"],
    }  # fmt: skip
    extracted = json.loads((tmp_path / "out/extracted/report.json").read_text())
    final = json.loads((tmp_path / "out/final/report.json").read_text())
    dropped = {rule: by["all"][0] for rule, by in {**extracted["dropped"], **final["dropped"]}.items()}
    assert dropped == {
        "prefilter: no mathematics": 12,
        "extraction: more than 3,000 links": 1,
        "extraction: no text": 1,
        "language: not English": 1,
        "near-duplicates: like an earlier document": 4,
        "manual rules: address on the list": 1,
        "manual rules: fewer than 100 characters": 1,
    }
    assert extracted["broken"] == {"is damaged gzip data": 1} or len(extracted["broken"]) == 1
    main(arguments(tmp_path, "out"))  # nothing is left to do
    with pytest.raises(SystemExit) as stopped:
        main(arguments(tmp_path, "out", "--least-similarity", "0.9"))
    assert stopped.value.code == 2


def test_with_models_trained_by_the_same_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(1)
    math_words = ["theorem", "proof", "lemma", "remark", "names", "again"]
    positive = [PROSE + " ".join(rng.choices(math_words, k=30)) for _ in range(60)]
    negative = [
        " ".join(rng.choices(["cat", "dog", "news", "sport", "city", "tea"], k=60)) for _ in range(60)
    ]
    with_math = write_lines(tmp_path / "positive.jsonl", positive)
    without = write_lines(tmp_path / "negative.jsonl", negative)
    main(["train-classifier", "--positive", str(with_math), "--negative", str(without),
          "--output", str(tmp_path / "score.bin"), "--buckets", "1000"])  # fmt: skip
    main(["train-lm", "--input", str(with_math), "--order", "3", "--output", str(tmp_path / "lm.arpa")])
    assert json.loads((tmp_path / "lm.arpa.json").read_text())["order"] == 3
    capsys.readouterr()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/math.html").write_text(page(f"<p>{PROSE * 4} So $x$.</p>", MATHJAX))
    (tmp_path / "in/cats.html").write_text(page(f"<p>{'cat dog news sport city tea ' * 10} $x$</p>", MATHJAX))
    (tmp_path / "in/words.html").write_text(page(f"<p>{PROSE * 4}</p>"))
    (tmp_path / "in/few_words.html").write_text(page(f"<p>{PROSE}</p>"))
    models = ["--classifier", str(tmp_path / "score.bin"), "--perplexity-model", str(tmp_path / "lm.arpa")]
    main(arguments(tmp_path, "out", *models, "--least-english", "0"))
    (file,) = (tmp_path / "out/extracted/documents").iterdir()
    documents = {row["meta"]["path"]: row["meta"] for row in read_lines(file)}
    assert documents.keys() == {"math.html", "words.html"}
    assert documents["words.html"]["math_score"] >= 0.8
    assert documents["words.html"]["perplexity"] < 100
    report = json.loads((tmp_path / "out/extracted/report.json").read_text())
    assert report["dropped"].keys() == {
        "MathScore: below 0.17 with mathematics found", "MathScore: no mathematics and at most 500 characters"
    }  # fmt: skip
    main(arguments(tmp_path, "strict", *models, "--most-perplexity", "1"))
    assert "perplexity: above 1" in (tmp_path / "strict/extracted/report.md").read_text()
    with pytest.raises(SystemExit) as stopped:
        main(arguments(tmp_path, "wrong", "--classifier", str(tmp_path / "absent.bin")))
    assert stopped.value.code == 2
    assert "--classifier" in capsys.readouterr().err


def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    write_warcs(tmp_path / "in", files=5, pages=12)
    main(arguments(tmp_path, "whole"))

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, str(ROOT / "tools/proof_pile_2"), *arguments(tmp_path, "killed")]
        return subprocess.Popen(
            command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    rng, kills = random.Random(4), 0
    deadline = time.monotonic() + 60
    while kills < 4 and time.monotonic() < deadline:
        process = start()
        time.sleep(rng.uniform(0.3, 1.6))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        if process.returncode == 0:
            break
    assert kills
    main(arguments(tmp_path, "killed"))
    whole, killed = tree(tmp_path / "whole"), tree(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert {name for name in whole if whole[name] != killed[name]} == set()
