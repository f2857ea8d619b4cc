# SPDX-License-Identifier: Apache-2.0
"""`algebraic-stack` as it is typed: from Parquet, records, folders and repositories to deduplicated
splits."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.tools.proof_pile_2.corpora import kill_at_random, read_lines, tree, write_lines
from tools.proof_pile_2.__main__ import main
from tools.proof_pile_2.algebraic_stack.steps import HashSplit
from tools.proof_pile_2.documents import Document

ROOT = Path(__file__).resolve().parents[4]
LONG = "".join(f"(* line {'x' * (n % 40)} *)\n" for n in range(120))


def sources(folder: Path) -> list[str]:
    """Small sources of four languages; the options that name them."""
    rng = random.Random(2)
    names = ["f", "g", "h"]
    agda = [f"module {rng.choice(names)} where -- {'abc'[n % 3] * (n + 1)}" for n in range(60)]
    table = pyarrow.table({
        "content": [*agda, None, "123"], "max_stars_repo_path": [f"{n}.agda" for n in range(62)],
        "size": list(range(62)), "when": [None] * 62,
    })  # fmt: skip
    (folder / "stack/data/agda").mkdir(parents=True)
    pyarrow.parquet.write_table(table, folder / "stack/data/agda/train-00000.parquet", row_group_size=20)
    (folder / "stack/data/agda/train-00001.parquet").write_bytes(b"PAR1 cut off")
    coq = [f"Theorem t{n} : True. Proof. exact I. Qed." for n in range(20)]
    write_lines(
        folder / "coq.jsonl", [*coq, coq[0], f"Theorem x. {LONG}", f"Theorem x. {LONG} tail", "nothing"]
    )
    (folder / "lean/sub").mkdir(parents=True)
    (folder / "lean/a.lean").write_text("theorem mathd_1 : true := trivial\n\ntheorem b : true := trivial\n")
    (folder / "lean/sub/c.lean").write_text("theorem c : true := trivial\n")
    (folder / "lean/link.lean").symlink_to("/etc/passwd")
    (folder / "minif2f.txt").write_text("mathd_1\n")
    notebook = {
        "cells": [{"cell_type": "code", "source": "from sympy import *", "outputs": []}],
        "nbformat": 4,
    }
    (folder / "notebooks").mkdir()
    (folder / "notebooks/a.ipynb").write_text(json.dumps(notebook))
    return [
        "algebraic-stack", "--stack", str(folder / "stack"), "--records", "coq", str(folder / "coq.jsonl"),
        "--files", "lean", str(folder / "lean"), "--files", "jupyter", str(folder / "notebooks"),
        "--minif2f", str(folder / "minif2f.txt"), "--validation", "0.1", "--test", "0.1",
    ]  # fmt: skip


def test_from_sources_to_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*sources(tmp_path), "--output", str(tmp_path / "out"), "--workers", "1"])
    assert "88 documents in, 85 out" in capsys.readouterr().out
    splits = {
        split: [record for path in sorted((tmp_path / "out/algebraic-stack" / split).iterdir())
                for record in read_lines(path)]
        for split in ("train", "validation", "test")
    }  # fmt: skip
    split = HashSplit(0, 0.1, 0.1)
    for name, records in splits.items():
        assert records
        assert {split(Document(record["text"])) for record in records} == {name}
    records = [record for of_split in splits.values() for record in of_split]
    languages = [record["meta"]["lang"] for record in records]
    assert {name: languages.count(name) for name in languages} == {
        "agda": 60,
        "coq": 22,
        "lean": 2,
        "jupyter": 1,
    }
    texts = {record["text"] for record in records if record["meta"]["lang"] in ("lean", "jupyter")}
    assert texts == {"\ntheorem b : true := trivial\n", "theorem c : true := trivial\n",
                     "```python\nfrom sympy import *\n```\n"}  # fmt: skip
    report = json.loads((tmp_path / "out/report.json").read_text())
    dropped = {
        rule: sum(count[0] for count in languages.values()) for rule, languages in report["dropped"].items()
    }
    assert dropped == {
        "rules: digits above 0.5": 1,
        "rules: no Coq": 1,
        "duplicates: shares a chunk with an earlier document": 1,
    }
    assert report["broken"] == {
        "'content' is not text but null": 1,
        "is damaged Parquet data": 1,
        "is a symbolic link, which is not followed": 1,
    }
    assert sum(count[0] for count in report["read"]["documents"].values()) == len(records) + 3
    agda = next(record for record in records if record["meta"]["lang"] == "agda")
    assert set(agda["meta"]) == {"max_stars_repo_path", "size", "when", "lang"}


def test_what_passed_a_stage_is_not_lost_at_the_next(tmp_path: Path) -> None:
    """Text that packs like a bomb, and a file whose JSON line is longer than the limit for files."""
    packed = [json.dumps({"text": f"module m where -- {'x' * 1000}"})] * 60_000
    (tmp_path / "a.jsonl").write_text("\n".join(packed) + "\n")
    (tmp_path / "f").mkdir()
    (tmp_path / "f/b.agda").write_text("module n where\n" + "\n" * 1_000_000)
    main(["algebraic-stack", "--records", "agda", str(tmp_path / "a.jsonl"), "--files", "agda",
          str(tmp_path / "f"), "--output", str(tmp_path / "o"), "--workers", "1",
          "--max-record-bytes", "1500000"])  # fmt: skip
    report = json.loads((tmp_path / "o/report.json").read_text())
    written = [len(read_lines(path)) for path in (tmp_path / "o/algebraic-stack").rglob("*.jsonl.zst")]
    assert (sum(written), report["broken"]) == (60_001, {})


def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    arguments = sources(tmp_path)

    def command(output: str, workers: int) -> list[str]:
        program = [sys.executable, str(ROOT / "tools/proof_pile_2")]
        return [*program, *arguments, "--output", str(tmp_path / output), "--workers", str(workers)]

    started = time.monotonic()
    subprocess.run(command("whole", 1), check=True, timeout=120, capture_output=True)
    seconds = time.monotonic() - started
    kill_at_random(command("killed", 1), tmp_path / "killed", seconds, kills=3, seed=7)
    subprocess.run(command("killed", 2), check=True, timeout=120, capture_output=True)
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "no source is given"),
    (["--languages", "idris", "--stack", "{}"], "has no folder for idris"),
    (["--languages", "coq", "--stack", "{}"], "no source is given"),
    (["--files", "klingon", "{}"], "is no language of the table"),
    (["--files", "coq", "{}/absent"], "does not exist"),
    (["--files", "coq", "{}"], "holds no file that ends in .v"),
    (["--records", "coq", "{}", "--validation", "0.9", "--test", "0.2"], "more than all documents"),
    (["--stack", "nosuch://bucket/x", "--languages", "agda"], "fsspec knows no protocol"),
])  # fmt: skip
def test_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [argument.replace("{}", str(tmp_path)) for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        main(["algebraic-stack", *given, "--output", str(tmp_path / "out"), "--workers", "1"])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_urls_are_read_as_folders_are(tmp_path: Path) -> None:
    sources(tmp_path)
    for name, stack in (("path", str(tmp_path / "stack")), ("url", f"file://{tmp_path}/stack")):
        main(["algebraic-stack", "--languages", "agda", "--stack", stack, "--output", str(tmp_path / name),
              "--workers", "1"])  # fmt: skip
    documents = [
        {
            path: data
            for path, data in tree(tmp_path / name / "algebraic-stack").items()
            if path.endswith(".zst")
        }
        for name in ("path", "url")
    ]
    assert documents[0] == documents[1] != {}


def test_the_rules_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["algebraic-stack", "--show-rules"])
    assert (
        "tex (from Stack, .tex)\n    dropped: blank\n    dropped: more than 10,000,000 bytes"
        in capsys.readouterr().out
    )


def test_it_is_started_by_path_and_as_a_module() -> None:
    environment = {**os.environ, "PYTHONPATH": ""}
    for command in ([str(ROOT / "tools/proof_pile_2")], ["-m", "tools.proof_pile_2"]):
        done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, env=environment, timeout=60,
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert "algebraic-stack" in done.stdout


def test_no_recipe_imports_torch() -> None:
    program = "import sys, tools.proof_pile_2.__main__ as m; m.parser(); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, timeout=60, capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stderr
