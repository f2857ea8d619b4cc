# SPDX-License-Identifier: Apache-2.0
"""arxiv, general, proofsteps and hub as they are typed."""

from __future__ import annotations

import json
import shutil
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.data.token_file import TokenFile
from tests.data.corpora import train_sentencepiece
from tests.tools.proof_pile_2.corpora import read_lines, tree, write_lines
from tools.proof_pile_2.__main__ import main
from tools.proof_pile_2.arxiv import split_of
from tools.proof_pile_2.documents import Document, Dropped
from tools.proof_pile_2.proofsteps import IsabelleSteps


def splits(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        split: [record for path in sorted((folder / split).iterdir()) for record in read_lines(path)]
        for split in ("train", "validation", "test")
    }


@given(lines=st.integers(0, 5000))
def test_the_split_of_a_file(lines: int) -> None:
    found = [split_of(line, lines) for line in range(lines)]
    count = Counter(found)
    assert found == sorted(found, key=("train", "validation", "test").index)
    assert count["train"] == int(lines * 99 / 100)
    assert 0 <= count["test"] - count["validation"] <= 1


def test_arxiv_splits_each_file_by_its_lines(tmp_path: Path) -> None:
    for name, lines in (("arxiv_a.jsonl", 300), ("arxiv_b.jsonl.zst", 200)):
        write_lines(tmp_path / "in" / name, [f"{name} {n}" for n in range(lines)], language="en")
    with open(tmp_path / "in/arxiv_a.jsonl", "a") as file:
        file.write('broken\n{"text": " ", "meta": {}}\n\n')  # lines 301 and 302; a blank one is none
    main(["arxiv", "--input", str(tmp_path / "in"), "--output", str(tmp_path), "--workers", "1"])
    texts = {split: [r["text"] for r in records] for split, records in splits(tmp_path / "arxiv").items()}
    a, b = "arxiv_a.jsonl", "arxiv_b.jsonl.zst"
    assert texts["train"] == [*(f"{a} {n}" for n in range(298)), *(f"{b} {n}" for n in range(198))]
    assert texts["validation"] == [f"{a} 298", f"{a} 299", f"{b} 198"]
    assert texts["test"] == [f"{b} 199"]  # of a, the other half is the broken and the blank line
    report = json.loads((tmp_path / "arxiv/report.json").read_text())
    assert (report["broken"], report["dropped"]["text: blank"]["all"]) == ({"is not JSON": 1}, [1, 1])


def test_general_takes_its_shares(tmp_path: Path) -> None:
    pile = write_lines(tmp_path / "pile.jsonl", [f"document {n}" for n in range(5000)])
    code = write_lines(tmp_path / "code.jsonl.zst", [f"code {n}" for n in range(5000)])
    command = ["general", "--pile", str(pile), "--redpajama-code", str(code), "--workers", "1", "--output"]
    main([*command, str(tmp_path / "a"), "--test", "0.3"])
    main([*command, str(tmp_path / "b"), "--test", "0.3"])
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    counts = {
        name: {split: len(records) for split, records in splits(tmp_path / "a" / name).items()}
        for name in ("pile", "redpajama-code")
    }
    assert 60 < sum(counts["pile"].values()) < 140
    assert 110 < sum(counts["redpajama-code"].values()) < 190
    assert 10 < counts["pile"]["test"] < 50


PROOF = {"statement": 'lemma a: "x = x"', "steps": [{"state": "goal: x = x", "step": "by simp"}]}
THEORY = {"file_name": "A.thy", "translations": [
    ["", "theory A imports Main begin"], ["", 'lemma b: "True"'], ["goal: True", "proof -"],
    ["goal: True", "qed"],
    ["", 'definition "c = 1"'], ["", "ignored"], ["", 'theorem secret: "False"'], ["goal: False", "sorry"],
]}  # fmt: skip


def test_isabelle_proofsteps(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/theory.json").write_text(json.dumps(THEORY))
    (tmp_path / "in/more.jsonl").write_text(json.dumps(PROOF) + "\nno JSON\n[1, {}]\n")
    (tmp_path / "pisa.json").write_text(json.dumps([["thys/A.thy", 'theorem secret:\n "False"']]))
    main(["proofsteps", "isabelle", "--input", str(tmp_path / "in"), "--pisa", str(tmp_path / "pisa.json"),
          "--output", str(tmp_path), "--workers", "1", "--validation", "0", "--test", "0"])  # fmt: skip
    texts = [record["text"] for record in splits(tmp_path / "proofsteps-isabelle")["train"]]
    assert sorted(texts) == [
        '[STATEMENT]\nlemma a: "x = x"\n[PROOF STATE]\ngoal: x = x\n[PROOF STEP]\nby simp\n',
        '[STATEMENT]\nlemma b: "True"\n[PROOF STATE]\ngoal: True\n[PROOF STEP]\nproof -\n'
        "[PROOF STATE]\ngoal: True\n[PROOF STEP]\nqed\n",
    ]
    report = json.loads((tmp_path / "proofsteps-isabelle/report.json").read_text())
    assert {rule: next(iter(count.values()))[0] for rule, count in report["dropped"].items()} == {
        "leakage: holds a test statement": 1, "proof steps: no proof": 1, "proof steps: not JSON": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("value", "outcome"), [
    ({"statement": "corollary c", "steps": [["s", "by simp"]]}, [Dropped("neither lemma nor theorem")]),
    ({"statement": "lemma c", "steps": [1, [], ["s"]]}, [Dropped("no steps")]),
    ({"translations": None}, Dropped("no proof")),
    (3, Dropped("no proof")),
])  # fmt: skip
def test_proofs_that_are_left_out(value: object, outcome: object) -> None:
    assert IsabelleSteps()(Document(json.dumps(value))) == outcome


def test_lean_proofsteps(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, text in (("a.txt", "[STATE]\nx\n"), ("b.txt", " \n"), ("c.txt", "")):
        (tmp_path / "in" / name).write_text(text)
    main(["proofsteps", "lean", "--input", str(tmp_path / "in"), "--output", str(tmp_path), "--workers", "1",
          "--validation", "0", "--test", "0"])  # fmt: skip
    [record] = splits(tmp_path / "proofsteps-lean")["train"]
    assert record == {"text": "[STATE]\nx\n", "meta": {"path": "a.txt", "lang": "lean-proofsteps"}}


def test_hub_to_tokens(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = {"train": ["one two", "three"], "validation": ["four"]}
    for split, of_split in texts.items():
        for number, text in enumerate(of_split):
            write_lines(tmp_path / f"hub/arxiv/{split}/{number}.jsonl.zst", [text])
    model, output = str(train_sentencepiece(tmp_path)), str(tmp_path / "out")
    command = [
        "hub",
        "--source",
        str(tmp_path / "hub"),
        "--subsets",
        "arxiv",
        "--splits",
        "train",
        "validation",
    ]
    command += ["--vocab-file", model, "--workers", "1", "--output", output]
    main(command)
    files = {split: TokenFile.open(tmp_path / f"out/arxiv_{split}_text_document") for split in texts}
    assert {split: file.sidecar.documents for split, file in files.items() if file.sidecar} == {
        "train": 2, "validation": 1,
    }  # fmt: skip
    assert all(file.sidecar is not None and file.sidecar.tokenizer.eod_appended for file in files.values())
    capfd.readouterr()
    main(command)
    assert capfd.readouterr().out.count(": kept") == 2
    with pytest.raises(SystemExit):  # tokens with another end of document are other tokens
        main([*command, "--eod-token", "unk0"])
    assert ": kept" not in capfd.readouterr().out
    write_lines(tmp_path / "hub/arxiv/train/2.jsonl.zst", ["five"])
    with pytest.raises(SystemExit) as ended:  # other text under the same name is refused without --overwrite
        main(command)
    assert ended.value.code == 2


def test_what_is_there_is_not_downloaded_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the Hub's client: a listing with sizes, and a download that counts."""
    import huggingface_hub

    for number, text in enumerate(["one two", "three"]):
        write_lines(tmp_path / f"hub/arxiv/train/{number}.jsonl.zst", [text])
    downloads = []

    class Api:
        def list_repo_tree(self, repository: str, path: str, **_: object) -> list[types.SimpleNamespace]:
            assert repository == "owner/name"
            files = sorted((tmp_path / "hub" / path).iterdir())
            return [types.SimpleNamespace(path=f"{path}/{f.name}", size=f.stat().st_size) for f in files]

    def download(repository: str, local_dir: Path, allow_patterns: str, **_: object) -> None:
        downloads.append(allow_patterns)
        shutil.copytree(tmp_path / "hub", local_dir)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    command = ["hub", "--source", "owner/name", "--subsets", "arxiv", "--splits", "train", "--workers", "1"]
    command += ["--vocab-file", str(train_sentencepiece(tmp_path)), "--output", str(tmp_path / "out")]
    main(command)
    main(command)
    assert capfd.readouterr().out.count(": kept") == 1
    assert downloads == ["arxiv/train/*.jsonl.zst"]
    assert not (tmp_path / "out/downloads/arxiv/train").exists()


def test_hub_refuses_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = train_sentencepiece(tmp_path)
    with pytest.raises(SystemExit):
        main(
            ["hub", "--source", str(tmp_path), "--vocab-file", str(model), "--output", str(tmp_path / "out")]
        )
    assert "has no arxiv/train/*.jsonl.zst" in capsys.readouterr().err
