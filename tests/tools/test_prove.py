# SPDX-License-Identifier: Apache-2.0
"""tools/prove.py as it is typed: theorems in, records out, stopped and gone on with, shown as a page."""

from __future__ import annotations

import html.parser
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron.neox_arguments.errors import UserError
from tests.tools import repl_stand_in
from tools import prove
from tools.prove_parts import prover_options
from tools.prove_parts.proposers import read_tactics
from tools.prove_parts.records import read_proofs
from tools.prove_parts.report import as_markdown, summary
from tools.prove_parts.theorems import read_theorems
from tools.prove_parts.tree_page import tree_page

ROOT = Path(__file__).parents[2]
TACTICS = ["no", "step", "left", "finish"]


def records(count: int) -> list[dict[str, Any]]:
    """Theorems of which every third has no proof, and the others a longer one each."""
    made = []
    for number in range(count):
        goals = [f"n : ℕ\n⊢ n + {number} = {step}" for step in range(number % 4 + 1)]
        last = "" if number % 3 else f"⊢ {number} is open"
        steps = [[goal, "step", after] for goal, after in itertools.pairwise(goals)]
        steps += [[goals[0], "left", f"⊢ {number} astray"], [goals[-1], "finish", last]]
        made.append({"statement": f"theorem t{number} (n : ℕ) : n = n", "root": goals[0], "steps": steps})
    return made


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options of a search for twelve theorems in the stand-in, without --output."""
    lean_interact = pytest.importorskip("lean_interact", reason="needs requirements-eval.txt")
    # It collects garbage after each REPL, which takes its time where all of torch is loaded.
    monkeypatch.setattr(lean_interact.server.gc, "collect", lambda: 0)
    made = records(12)
    rows = [{"full_name": f"t{n}", "statement": record["statement"]} for n, record in enumerate(made)]
    (tmp_path / "theorems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tactics.txt").write_text("# a comment\n" + "\n\n".join(TACTICS))
    options = repl_stand_in.install(tmp_path, made)
    return [
        "search", *options, "--theorems", str(tmp_path / "theorems.jsonl"), "--tactics",
        str(tmp_path / "tactics.txt"),
        "--tactic-timeout", "60",
    ]  # fmt: skip


def comparable(folder: Path) -> dict[str, dict[str, Any]]:
    lines = read_proofs(folder / "proofs.jsonl")
    return {name: {**line, "seconds": 0} for name, line in sorted(lines.items())}


def start(place: list[str], output: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "tools" / "prove.py"), *place, "--output", str(output), *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_killed_again_and_again_it_comes_to_the_same(place: list[str], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(place, whole)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "8 of 12 proved, 66.7%" in out
    draws, kills = random.Random(5), 0
    for _ in range(200):
        process = start(place, killed, "--workers", "2")
        lines_before = (
            len((killed / "proofs.jsonl").read_bytes()) if (killed / "proofs.jsonl").exists() else 0
        )
        end = time.monotonic() + 120
        # Let it get somewhere, then kill it at any moment: between two lines, at the start of a prover.
        while process.poll() is None and time.monotonic() < end and kills < 4:
            path = killed / "proofs.jsonl"
            if path.exists() and path.stat().st_size > lines_before and draws.random() < 0.3:
                break
            time.sleep(0.01)
        if process.poll() is not None or kills == 4:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        kills += 1
        with (killed / "proofs.jsonl").open("rb+") as file:  # and some kills come within a write
            size = file.seek(0, os.SEEK_END)
            if draws.random() < 0.5 and size > lines_before + 10:
                file.truncate(size - 7)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert kills >= 2
    assert comparable(killed) == comparable(whole)
    expected = json.loads((whole / "results.json").read_text())["tasks"]["theorems"]
    results = json.loads((killed / "results.json").read_text())["tasks"]["theorems"]
    for changing in ("seconds", "proofs"):
        results.pop(changing), expected.pop(changing)
    assert results == expected


def test_ctrl_c_stops_and_leaves_no_prover(place: list[str], tmp_path: Path) -> None:
    (tmp_path / "tactics.txt").write_text("hang\n")
    process = start([*place[:-1], "5"], tmp_path / "output")  # --tactic-timeout 5
    assert process.stdout is not None
    assert "t0" in process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command goes on from here" in err
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, timeout=60).stdout
    assert str(tmp_path) not in listed
    assert len(read_proofs(tmp_path / "output" / "proofs.jsonl")) < 12


def test_a_reader_that_leaves_ends_the_run_quietly(place: list[str], tmp_path: Path) -> None:
    process = start(place, tmp_path / "output")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()  # as `head -0` does
    assert process.wait(120) == 141
    assert process.stderr.read() == ""
    prove.main([*place, "--output", str(tmp_path / "output")])  # it goes on from there
    assert len(read_proofs(tmp_path / "output" / "proofs.jsonl")) == 12


def test_what_does_not_go_together(
    place: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*options: str) -> str:
        with pytest.raises(SystemExit) as ended:
            prove.main([*place, "--output", str(tmp_path / "output"), *options])
        assert ended.value.code == 2
        return capsys.readouterr().err

    prove.main([*place, "--output", str(tmp_path / "output"), "--limit", "2"])
    assert "max_expansions=100 and now 7" in refusal("--max-expansions", "7")
    (tmp_path / "tactics.txt").write_text("other\n")
    assert "tactics=" in refusal()
    rows = (tmp_path / "theorems.jsonl").read_text()
    (tmp_path / "tactics.txt").write_text("\n".join(TACTICS))
    (tmp_path / "theorems.jsonl").write_text(rows.replace("t1 (n", "t1 (m"))
    assert "t1 with another statement" in refusal()
    (tmp_path / "theorems.jsonl").write_text(rows.replace('"t1", ', '"t1", "header": "open Nat", '))
    assert "t1 with another header" in refusal()
    (tmp_path / "theorems.jsonl").write_text(rows)
    assert "has no .lake" in refusal("--lean-repl", str(tmp_path))
    assert read_proofs(tmp_path / "output" / "proofs.jsonl").keys() == {"t0", "t1"}  # nothing was lost
    prove.main(
        [*place, "--output", str(tmp_path / "output"), "--limit", "1", "--max-expansions", "7", "--overwrite"]
    )
    assert read_proofs(tmp_path / "output" / "proofs.jsonl").keys() == {"t0"}


def test_what_decides_is_in_the_settings(place: list[str], tmp_path: Path) -> None:
    args = prove._parser().parse_args([
        *place, "--output", "o", "--start-timeout", "3", "--check-timeout", "4", "--coq-option=-R a B"
    ])  # fmt: skip
    args.prover = "coq"
    found = prover_options.deciding_settings(args)
    assert found["coq_options"] == ["-R a B"]
    assert (found["start_seconds"], found["check_seconds"], found["tactic_seconds"]) == (3.0, 4.0, 60.0)


def test_what_met_a_time_limit_can_be_tried_again(
    place: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "output"
    command = [*place, "--output", str(folder)]
    prove.main([*command, "--limit", "4"])
    settled = read_proofs(folder / "proofs.jsonl")
    tried: dict[str, dict[str, Any]] = {
        "t4": line(theorem="t4", status="timeout"),
        "t5": line(theorem="t5", status="prover_died"),
        "t7": line(
            theorem="t7", tree=[{"parent": None, "outcome": "open"}, {"parent": 0, "outcome": "timeout"}]
        ),
        "t8": line(theorem="t8", rejected=[{"proof": "x", "message": "no answer in 3 s", "unsettled": True}]),
        "t10": line(theorem="t10", rejected=[{"proof": "x", "message": "wrong", "unsettled": False}]),
    }
    rows = map(json.loads, (tmp_path / "theorems.jsonl").read_text().splitlines())
    statements = {row["full_name"]: row["statement"] for row in rows}
    with (folder / "proofs.jsonl").open("a") as file:
        for name, each in tried.items():
            file.write(json.dumps({**each, "statement": statements[name]}) + "\n")
    for options, words in (
        (["--check-timeout", "301"], "check_seconds=300.0 and now 301.0"),
        (["--check-timeout", "299", "--try-again"], "check_seconds=300.0 and now 299.0"),
        (["--max-expansions", "101", "--try-again"], "max_expansions=100 and now 101"),
    ):
        with pytest.raises(SystemExit):
            prove.main([*command, *options])
        said = capsys.readouterr().err
        assert words in said
        assert ("or --try-again" in said) == (options[-1] == "301")
    prove.main([*command, "--check-timeout", "301", "--try-again"])
    found = read_proofs(folder / "proofs.jsonl")
    assert {name for name, each in found.items() if each["proved"]} == {
        f"t{n}" for n in range(12) if n % 3
    } - {"t10"}
    assert found["t10"] == {**tried["t10"], "statement": statements["t10"]}  # a wrong proof stays one
    assert [found[name] for name in settled] == list(settled.values())
    assert json.loads((folder / "settings.json").read_text())["check_seconds"] == 301.0
    prove.main([*command, "--check-timeout", "301"])


def test_a_search_with_tactics_imports_no_torch() -> None:
    program = (
        "import sys\nfrom tools import prove\n"
        "from tools.prove_parts import search_command, tree_command, whole_proofs, coq, lean\n"
        "print([name for name in ('torch', 'transformers', 'lm_eval') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(("language", "row", "statement"), [
    ("coq", {"name": "a", "source": "Lemma a : True.\nProof.\nAdmitted.\n"}, "Lemma a : True."),
    ("coq", {"name": "a", "statement": "Lemma a : True."}, "Lemma a : True."),
    ("coq", {"name": "a", "source": "Lemma a : True.\nProof.\n (* TODO *)\nAdmitted.\n"}, "Lemma a : True."),
    ("coq", {"name": "a", "source": "Lemma a : (* x. *) True. (* y. *) Proof with auto. Abort."},
     "Lemma a : (* x. *) True."),
    ("coq", {"name": "a", "source": "Lemma Proof_a : Admitted."}, "Lemma Proof_a : Admitted."),
    ("coq", {"name": "a", "source": "Lemma b : 1 = 1. Admitted. Lemma a : \u2028 True. Proof."},
     "Lemma b : 1 = 1. Admitted. Lemma a : \u2028 True."),
    ("lean", {"full_name": "a", "statement": "theorem a : True := by sorry"}, "theorem a : True"),
    ("lean", {"id": "a", "formal_statement": "theorem a : 1 = 1 :=\nsorry\n"}, "theorem a : 1 = 1"),
    ("lean", {"id": "a", "statement": "theorem a : True := by"}, "theorem a : True"),
])  # fmt: skip
def test_theorems_in_the_forms_of_their_editions(
    tmp_path: Path, language: str, row: dict[str, str], statement: str
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    (theorem,) = read_theorems(path, language, header="H")
    assert (theorem.name, theorem.statement, theorem.header) == ("a", statement, "H")


@pytest.mark.parametrize(("content", "message"), [
    ('{"name": "sur\\ud800", "statement": "x"}', "t.jsonl:1: name: holds .*ud800"),
    ('{"name": "a", "statement": "x"}\n{"name": "b", "statement": "\\udc00"}', "t.jsonl:2: statement: holds"),
    ('{"name": "a", "statement": "x", "header": "\\udc00"}', "t.jsonl:1: header: holds"),
    ("{", "t.jsonl:1: is no JSON"), ("[1]", "t.jsonl:1: is no JSON object"),
    ('{"name": "a"}', "no text under statement"),
    ('{"statement": "x"}', "--name-key"), ("", "has no theorem"),
    ('{"name": "a", "statement": "Proof. Admitted."}', "is empty"),
    ('{"name": "a", "statement": "x"}\n{"name": "a", "statement": "y"}', "t.jsonl:2: a is there twice"),
])  # fmt: skip
def test_theorems_that_cannot_be_read(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        read_theorems(tmp_path / "t.jsonl", "coq")
    with pytest.raises(UserError, match="cannot be read"):
        read_theorems(tmp_path / "absent", "coq")


def test_a_list_of_tactics_has_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes('idtac "a\u2028b"\r\n# no\n\nlia'.encode())
    assert [each.tactic for each in read_tactics(tmp_path / "t.txt").propose("")] == [
        'idtac "a\u2028b"',
        "lia",
    ]


ROOT_NODE = {"parent": None, "outcome": "open", "cost": 0.0}


@pytest.mark.parametrize("tree", [
    [{"foo": 1}], ["x"], [{**ROOT_NODE, "parent": 0}], [ROOT_NODE, ROOT_NODE], [{**ROOT_NODE, "cost": None}],
    [ROOT_NODE, {**ROOT_NODE, "parent": 2, "tactic": "a"}, {**ROOT_NODE, "parent": 1, "tactic": "b"}],
    [ROOT_NODE, {**ROOT_NODE, "parent": 0, "outcome": "error"}], [{**ROOT_NODE, "expanded": "x"}],
])  # fmt: skip
def test_a_tree_that_no_search_has_written(
    tmp_path: Path, tree: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "proofs.jsonl").write_text(json.dumps(line(tree=tree)) + "\n")
    with pytest.raises(SystemExit) as ended:
        prove.main(["tree", str(tmp_path), "t", "--output", str(tmp_path / "t.html")])
    assert ended.value.code == 2
    assert f"theorem=t: tree: node {len(tree) > 1:d} is none" in capsys.readouterr().err


def line(**changes: Any) -> dict[str, Any]:
    fields = {
        "theorem": "t", "statement": "s", "proved": False, "proof": None, "seconds": 1.0, "expansions": 1,
        "status": "search_ended", "tree": None, "tactics": None, "rejected": [], "message": "",
    }  # fmt: skip
    return {**fields, **changes}


@pytest.mark.parametrize(("content", "message"), [
    (json.dumps({"theorem": "t"}) + "\n", "proofs.jsonl:1: has no statement"),
    ("nonsense\n", "proofs.jsonl:1: is no JSON"),
    (json.dumps(line()) + "\n" + json.dumps(line(proved=True)) + "\n",
    "proofs.jsonl:2: theorem=t: is there twice"),
    (json.dumps(line(tree="x")) + "\n", "proofs.jsonl:1: tree=x: is no list"),
])  # fmt: skip
def test_records_that_cannot_be_read(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "proofs.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        read_proofs(tmp_path / "proofs.jsonl")


class _Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.open, self.depth, self.tags = "", list[str](), 0, set[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not {name for name, _ in attrs} & {"src", "href", "onclick", "style"}, (
            "nothing is loaded or run"
        )
        if tag not in ("meta",):
            self.open.append(tag)
            self.depth = max(self.depth, self.open.count("details"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_tree_as_a_page() -> None:
    evil = '<script>alert(1)</script> & "quotes" ⊢ </pre>'
    tree: list[dict[str, Any]] = [
        {"parent": None, "outcome": "open", "cost": 0.0, "goals": evil, "expanded": 0}
    ]
    for depth in range(1500):  # deeper than Python recurses
        tree.append(
            {"parent": depth, "outcome": "open", "cost": depth / 2, "goals": f"g{depth}", "tactic": evil}
        )
    tree.append({"parent": 1500, "outcome": "proved", "cost": 1.0, "tactic": "done"})
    for outcome in ("error", "timeout", "forbidden", "seen", "rejected"):
        tree.append({"parent": 0, "outcome": outcome, "cost": 1.0, "tactic": outcome, "message": evil})
    page = tree_page(line(theorem=evil, statement=evil, proof=evil, proved=True, status="proved", tree=tree))
    read = _Page()
    read.feed(page)
    assert read.open == []
    assert read.tags == {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "pre", "code",
    "span",
                         "details", "summary", "table", "tr", "td"}  # fmt: skip
    assert read.depth < 12  # 1,502 within each other no browser lays out
    assert read.text.count(evil) == 1500 + 5 + 5
    assert "4 that led nowhere" in read.text
    assert page.count('<details open class="path">') == 1502


def test_a_wide_and_a_full_tree_nest_little() -> None:
    tree: list[dict[str, Any]] = [{"parent": None, "outcome": "open", "cost": 0.0}]
    opened = [0]
    while len(tree) < 30_000:  # binary, and beside each pair one that failed
        number = len(tree)
        parent = opened[(len(opened) - 1) // 2]
        outcome = "open" if number % 3 else "error"
        tree.append({"parent": parent, "outcome": outcome, "cost": 0.0, "tactic": f"t{number}"})
        opened += [number] if outcome == "open" else []
    page = tree_page(line(tree=tree))
    read = _Page()
    read.feed(page)
    assert read.open == []
    assert read.depth < 30
    shown = page.count('<span class="open">') + page.count("<tr>")
    assert 20_000 <= shown < 30_000
    assert f"{30_000 - shown:,} more nodes are in proofs.jsonl." in page


def test_the_way_to_the_proof_stands_below_each_other() -> None:
    def node(parent: int | None, tactic: str, outcome: str = "open") -> dict[str, Any]:
        return {"parent": parent, "outcome": outcome, "cost": 0.0, "tactic": tactic}

    tree = [
        node(None, "root"),
        node(0, "a"),
        node(0, "b"),
        node(1, "c"),
        node(1, "d"),
        node(2, "e", "proved"),
    ]
    read = _Page()
    read.feed(tree_page(line(tree=tree)))
    words = re.findall(r"\b(?:root|[a-e])\b(?= goals| proved)", read.text)
    assert words == ["root", "a", "d", "c", "b", "e"]


def test_a_tree_is_written_by_name(
    place: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prove.main([*place, "--output", str(tmp_path / "o"), "--limit", "2"])
    prove.main(["tree", str(tmp_path / "o"), "t1", "--output", str(tmp_path / "t1.html")])
    assert "proved and replayed" in (tmp_path / "t1.html").read_text()
    with pytest.raises(SystemExit):
        prove.main(["tree", str(tmp_path / "o"), "t9", "--output", str(tmp_path / "t9.html")])
    assert "give one of its 2 theorems" in capsys.readouterr().err


def test_the_report_counts() -> None:
    proved = line(proved=True, status="proved", proof="x", tactics=["x"], expansions=1, seconds=2.0)
    deep = line(proved=True, status="proved", proof="x", tactics=["x", "y", "z"], expansions=5, seconds=4.0)
    content = summary("minif2f", [proved, deep, line(), line(status="timeout")], {"prover": "coq"})
    task = content["tasks"]["minif2f"]
    assert task["proved"] == 2
    assert task["statuses"] == {"proved": 2, "search_ended": 1, "timeout": 1}
    assert task["proofs"] == {
        "single_tactic": 1,
        "median_tactics": 2,
        "median_expansions": 2,
        "median_seconds": 3.0,
    }
    assert "2 of 4 proved, 50.0%" in as_markdown(content)
    lean = summary("m", [proved] * 244, {
        "prover": "lean", "candidates": 32, "tactic_tokens": 256, "max_expansions": 100,
        "theorem_seconds": 600.0,
        "decoding": "beam",
    })["tasks"]["m"]  # fmt: skip
    assert lean["comparable"] is True
    assert lean["published"]["Llemma 7B"] == {
        "proved": 0.2623,
        "source": "Azerbayev et al. 2023, arXiv:2310.10631",
    }
    llemma = summary("m", [proved] * 64 + [line()] * 180, {"prover": "lean"})["tasks"]["m"]
    share = llemma["metrics"]["proved"]
    assert (round(share["low"], 3), round(share["high"], 3)) == (0.209, 0.32)  # 26.2% [20.9, 32.0]
    assert "candidates is None, theirs 32" in llemma["comparable"]
