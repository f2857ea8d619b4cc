# SPDX-License-Identifier: Apache-2.0
"""`prove.py whole`: samples of evaluate.py become verdicts, pass@k and rows for a repair; a killed run goes
on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from math import comb
from pathlib import Path
from typing import Any

import pytest

from eval_tasks.results.samples import Sample, SampleWriter
from tests.tools.isabelle_stand_in import serving
from tools import prove
from tools.prove_parts import prover_options
from tools.prove_parts.coq import CoqProver, find_coq, proof_text
from tools.prove_parts.provers import Limits, ProverDied, Theorem, Verdict

ROOT = Path(__file__).parents[2]
TASK = "llemma_minif2f_isabelle"
STATEMENTS = {name: f'theorem {name}:\n  shows "{name.upper()}"' for name in ("easy", "hard", "wrong")}
RIGHT = 'proof -\n  show "{}" by simp\nqed'
KNOWS = {"EASY": {"by simp"}, "HARD": {"by simp"}}


def write_samples(folder: Path, task: str, proofs: dict[tuple[str, int], str]) -> Path:
    with SampleWriter(folder, task) as writer:
        writer.append(
            Sample(
                task, f"item of {name}", number, f"Show {name}.", STATEMENTS[name], generation=proof,
                more={"name": name, "informal_proof": "It is clear.", "header": "Main"},
            )
            for (name, number), proof in proofs.items()
        )  # fmt: skip
    return folder


def proof_of(name: str, right: bool) -> str:
    text = RIGHT.format(name.upper()) if right else 'proof -\n  show "NOTHING" by simp\nqed'
    return f"\n{text}\n\n\n\nInformal:\nanother"


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def first_round(folder: Path) -> Path:
    right = {("easy", 0), ("easy", 2), ("hard", 3)}
    proofs = {(name, n): proof_of(name, (name, n) in right) for name in STATEMENTS for n in range(4)}
    return write_samples(folder, TASK, proofs)


def test_isabelle_from_samples_to_pass_at_k(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written, output, rows = (
        first_round(tmp_path / "written"),
        tmp_path / "checked",
        tmp_path / "failures.jsonl",
    )
    with serving(KNOWS) as server:
        (tmp_path / "server.txt").write_text(server.line)
        command = [
            "whole",
            str(written),
            "--prover",
            "isabelle",
            "--isabelle-server",
            str(tmp_path / "server.txt"),
        ]
        prove.main([*command, "--output", str(output), "--failures", str(rows), "--workers", "2"])
        asked = len(server.commands)
        prove.main([*command, "--output", str(output)])  # all is there: the server is not asked again
        assert len(server.commands) == asked
        assert "theory Whole imports Main\n" in server.theories["Whole"]
    proofs = {line["theorem"]: line for line in lines_of(output / "proofs.jsonl")}
    assert [proofs[name]["proved"] for name in STATEMENTS] == [True, True, False]
    assert [proofs[name]["right"] for name in STATEMENTS] == [2, 1, 0]
    assert proofs["easy"]["proof"] == RIGHT.format("EASY")
    found = json.loads((output / "results.json").read_text())["tasks"]["written"]
    for k in (1, 2, 4):
        by_counting = sum(1 - comb(4 - right, k) / comb(4, k) for right in (2, 1, 0)) / 3
        assert found["metrics"][f"pass@{k}"]["value"] == pytest.approx(by_counting)
    assert found["proved_in_round"] == [2]
    assert found["attempts"] == {"refused": 9, "proved": 3}
    assert "; 12 proofs checked: 9 refused, 3 proved." in (output / "results.md").read_text()
    assert "tactic" not in (output / "results.md").read_text()
    assert found["published"]["Llemma 7B"]["proved"] == 0.221
    assert isinstance(found["comparable"], str)
    assert "pass@4 66.7%" in capsys.readouterr().out
    (row,) = lines_of(rows)
    assert row["name"] == "wrong"
    assert row["message"] == "Failed to finish proof: goal (1 subgoal): 1. NOTHING"
    assert row["failed_proof"].startswith("proof -")


def test_a_repair_has_the_message_and_counts_apart(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs requirements/requirements-eval.txt")
    from eval_tasks.runs.catalogue import catalogue
    from eval_tasks.runs.local_data import LocalFile
    from eval_tasks.runs.requests import items_of

    written = first_round(tmp_path / "written")
    with serving({**KNOWS, "WRONG": {"by simp"}}) as server:
        (tmp_path / "server.txt").write_text(server.line)
        options = ["--prover", "isabelle", "--isabelle-server", str(tmp_path / "server.txt"), "--output"]
        rows = tmp_path / "rows.jsonl"
        prove.main(["whole", str(written), *options, str(tmp_path / "one"), "--failures", str(rows)])
        entry = catalogue()[f"{TASK}_repair"]
        (item,) = items_of(entry, LocalFile(rows), None, 100)
        assert item.prompt.endswith(
            'proof -\n  show "NOTHING" by simp\nqed\n\n\n\n'
            "(* The proof above fails: Failed to finish proof: goal (1 subgoal): 1. NOTHING *)\n\n"
            'Corrected:\ntheorem wrong:\n  shows "WRONG"'
        )
        assert json.loads(item.doc["extra"])["name"] == "wrong"
        repaired = write_samples(
            tmp_path / "repaired", f"{TASK}_repair", {("wrong", 0): proof_of("wrong", True)}
        )
        prove.main(["whole", str(written), str(repaired), *options, str(tmp_path / "two")])
    found = json.loads((tmp_path / "two" / "results.json").read_text())["tasks"]["written"]
    assert found["proved_in_round"] == [2, 1]
    assert found["metrics"]["proved"]["value"] == 1.0
    assert found["metrics"]["pass@4"]["value"] == pytest.approx(2 / 3)


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    written = first_round(tmp_path / "written")
    with serving(KNOWS) as server:
        (tmp_path / "server.txt").write_text(server.line)
        command = [sys.executable, "tools/prove.py", "whole", str(written), "--prover", "isabelle"]
        command += ["--isabelle-server", str(tmp_path / "server.txt"), "--output", str(tmp_path / "killed")]
        attempts = tmp_path / "killed" / "attempts.jsonl"
        for lines in (1, 5):
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
            while process.poll() is None:
                if attempts.is_file() and attempts.read_bytes().count(b"\n") >= lines:
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.01)
            process.wait()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        prove.main([*command[2:-1], str(tmp_path / "whole")])
    ours, theirs = (
        [
            {key: value for key, value in line.items() if key != "seconds"}
            for line in lines_of(path / "proofs.jsonl")
        ]
        for path in (tmp_path / "killed", tmp_path / "whole")
    )
    assert ours == theirs
    assert len(lines_of(attempts)) == 12


def test_coq_checks_whole_proofs(tmp_path: Path) -> None:
    if shutil.which("coqc") is None:
        pytest.skip("needs Coq (Debian: coq)")
    statement = "Theorem sum_of_zero (n : nat) : n + 0 = n."
    proofs = {0: "induction n; simpl; congruence.", 1: "reflexivity.", 2: "admit.", 3: "Axiom a : False."}
    with SampleWriter(tmp_path, "any") as writer:
        writer.append(
            Sample("any", "sum_of_zero", number, "", statement, generation=proof)
            for number, proof in proofs.items()
        )
    prove.main(
        ["whole", str(tmp_path / "samples_any.jsonl"), "--prover", "coq", "--output", str(tmp_path / "out")]
    )
    lines = {line["sample"]: line for line in lines_of(tmp_path / "out" / "attempts.jsonl")}
    assert [lines[number]["ok"] for number in range(4)] == [True, False, False, False]
    (proof,) = lines_of(tmp_path / "out" / "proofs.jsonl")
    assert (proof["proved"], proof["right"], proof["expansions"]) == (True, 1, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "tasks with proofs for coq: none"),
        ({"prover": "isabelle"}, "--isabelle-server: is not set"),
        ({"prover": "isabelle", "header": "none"}, "--header=none: cannot be read"),
    ],
)
def test_what_is_wrong_is_said(
    change: dict[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = first_round(tmp_path / "written")
    options = {"prover": "coq", "output": str(tmp_path / "out")} | change
    with pytest.raises(SystemExit) as ended:
        prove.main(
            ["whole", str(written), *(word for key, value in options.items() for word in (f"--{key}", value))]
        )
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_other_settings_and_other_proofs_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = first_round(tmp_path / "written")
    with serving(KNOWS) as server:
        (tmp_path / "server.txt").write_text(server.line)
        command = [
            "whole",
            str(written),
            "--prover",
            "isabelle",
            "--isabelle-server",
            str(tmp_path / "server.txt"),
        ]
        command += ["--output", str(tmp_path / "out")]
        prove.main(command)
        with pytest.raises(SystemExit):
            prove.main([*command, "--hammer-timeout", "5"])
        assert "hammer_seconds=120" in capsys.readouterr().err
        file = written / f"samples_{TASK}.jsonl"
        file.write_text(file.read_text().replace("NOTHING", "OTHER"))
        with pytest.raises(SystemExit):
            prove.main(command)
        assert "has a verdict on another proof" in capsys.readouterr().err


class Agreeing:
    """A checker to which everything is a proof of everything, for which there is time."""

    language = "coq"
    has_time = True

    def check(self, theorem: Theorem, proof: str) -> Verdict:
        return Verdict(True) if self.has_time else Verdict(False, "no answer in 1 s", unsettled=True)

    def close(self) -> None:
        pass


@pytest.fixture
def agreeing(monkeypatch: pytest.MonkeyPatch) -> Agreeing:
    """What `prove.py whole` asks, whichever prover is named."""
    checker = Agreeing()
    monkeypatch.setattr(prover_options, "make_checker", lambda args: lambda: checker)
    return checker


def test_a_proof_that_had_no_time_is_checked_again(tmp_path: Path, agreeing: Agreeing) -> None:
    with SampleWriter(tmp_path, "any") as writer:
        writer.append([Sample("any", "a", 0, "", "Theorem a : True.", generation="exact I.")])
    command = ["whole", str(tmp_path / "samples_any.jsonl"), "--prover", "coq"]
    command += ["--output", str(tmp_path / "out"), "--failures", str(tmp_path / "rows.jsonl")]
    agreeing.has_time = False
    prove.main(command)
    (attempt,) = lines_of(tmp_path / "out" / "attempts.jsonl")
    assert (attempt["ok"], attempt["status"]) == (False, "timed out")
    assert len(lines_of(tmp_path / "rows.jsonl")) == 1
    agreeing.has_time = True
    prove.main(command)  # alone it does not forget a verdict
    assert lines_of(tmp_path / "out" / "attempts.jsonl") == [attempt]
    prove.main([*command, "--try-again"])
    (attempt,) = lines_of(tmp_path / "out" / "attempts.jsonl")
    assert (attempt["ok"], attempt["status"]) == (True, "proved")


def test_coq_tells_a_time_limit_from_a_refusal() -> None:
    if shutil.which("coqc") is None:
        pytest.skip("needs Coq (Debian: coq)")
    prover = CoqProver(find_coq(), Limits(check_seconds=2))
    verdict = prover.check(Theorem("a", "Theorem a : True."), "do 1000000000000 idtac.")
    assert (verdict.ok, verdict.unsettled, verdict.message) == (False, True, "no answer in 2 s")
    with pytest.raises(ProverDied, match="no answer in 0.001 s"):
        CoqProver(find_coq(), Limits(check_seconds=0.001)).check(
            Theorem("a", "Theorem a : True."), "exact I."
        )


@pytest.mark.parametrize(("proof", "read"), [
    ("Proof. lia. Defined.", ("Proof.", "lia.")), ("Proof  . (* x *) lia. Qed (* y *) .", ("Proof.", "lia.")),
    ("Proof with auto. intros... Qed.", ("Proof with auto.", "intros...")),
    ("Proof using x y. lia.", ("Proof.", "lia.")),
    ("Proof using Type with auto. lia.", ("Proof with auto.", "lia.")),
    ("Proof using. eapply f. Unshelve. lia.", ("Proof.", "eapply f.\nUnshelve.\nlia.")),
    ("lia.", ("Proof.", "lia.")), ("Defined.", ("Proof.", "")),
])  # fmt: skip
def test_a_proof_of_coq_without_its_frame(proof: str, read: tuple[str, str]) -> None:
    assert proof_text(proof) == read


@pytest.mark.parametrize("proof", [
    "Proof I.", "Proof with admit. intros... Qed.", "Proof with Admitted. Qed.", "Proof. lia. Defined. Qed.",
    "Proof. lia. Qed. Axiom a : False.", "Proof. Unshelve Axiom.", "Proof. Admitted.", "Qed. lia.",
    "Proof. Save a.",
    "Proof with auto; give_up. Qed.", "Proof. all: Unshelve.", "Proof. Proof. lia.",
])  # fmt: skip
def test_what_no_frame_may_hide(proof: str) -> None:
    with pytest.raises(ValueError, match="forbidden"):
        proof_text(proof)


def test_coq_takes_proofs_in_their_frames() -> None:
    if shutil.which("coqc") is None:
        pytest.skip("needs Coq (Debian: coq)")
    prover = CoqProver(find_coq(), Limits())
    theorem = Theorem("a", "Theorem a : exists n : nat, n = n /\\ True.")
    for proof in (
        "Proof. exists 0. split; [reflexivity | exact I]. Defined.",
        "Proof with auto. exists 0... Qed.",
        "Proof using. unshelve eexists. shelve. split; reflexivity. Unshelve. exact 0. Defined.".replace(
            "split; reflexivity", "split; [reflexivity | exact I]"
        ),
    ):
        assert prover.check(theorem, proof).ok, proof
    assert not prover.check(theorem, "Proof. eexists. shelve. Defined.").ok


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('"reference":"Theorem easy : True."', '"reference":"Theorem easy : False."', "another statement"),
        ('"header":""', '"header":"Axiom f : False."', "another header"),
    ],
)
def test_a_verdict_is_not_taken_for_one_on_another_theorem(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    agreeing: Agreeing,
    before: str,
    after: str,
    words: str,
) -> None:
    with SampleWriter(tmp_path, "any") as writer:
        statement = "Theorem easy : True."
        writer.append([Sample("any", "easy", 0, "", statement, generation="exact I.", more={"header": ""})])
    file = tmp_path / "samples_any.jsonl"
    command = ["whole", str(file), "--prover", "coq", "--output", str(tmp_path / "out")]
    prove.main(command)
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))
    with pytest.raises(SystemExit):
        prove.main(command)
    assert f"has easy with {words}" in capsys.readouterr().err
    (proof,) = lines_of(tmp_path / "out" / "proofs.jsonl")
    assert proof["statement"] == "Theorem easy : True."
