# SPDX-License-Identifier: Apache-2.0
"""Lean through lean-interact, against a stand-in that speaks the REPL's protocol."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.data.corpora import shared_folder
from tests.tools import repl_stand_in
from tools import prove
from tools.prove_parts import lean_text
from tools.prove_parts.lean import LeanProver, find_lean
from tools.prove_parts.proposers import FixedTactics
from tools.prove_parts.provers import BadStatement, Limits, Theorem
from tools.prove_parts.records import read_proofs
from tools.prove_parts.search import SearchLimits, search

lean_interact = pytest.importorskip("lean_interact", reason="needs requirements-eval.txt")

STATEMENT = "theorem both (p q : Prop) (hp : p) (hq : q) : p ∧ q"
GOAL = "p q : Prop\nhp : p\nhq : q\n⊢ p ∧ q"
LEFT, RIGHT = "case left\nhp : p\n⊢ p", "case right\nhq : q\n⊢ q"
RECORD: dict[str, Any] = {
    "statement": STATEMENT,
    "root": GOAL,
    "steps": [
        [GOAL, "constructor", f"{LEFT}\n\n{RIGHT}"],
        [f"{LEFT}\n\n{RIGHT}", "exact hp", RIGHT],
        [RIGHT, "exact hq", ""],
        [GOAL, "tauto", ""],
    ],
}
THEOREM = Theorem("both", STATEMENT, "import Mathlib")
LIMITS = Limits(tactic_seconds=30)


@pytest.fixture(autouse=True)
def no_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """lean-interact collects garbage after each REPL, which takes its time where all of torch is loaded."""
    monkeypatch.setattr(lean_interact.server.gc, "collect", lambda: 0)


def prover(folder: Path, limits: Limits = LIMITS, axioms: tuple[str, ...] = ()) -> LeanProver:
    repl_stand_in.install(folder, [RECORD])
    return LeanProver(find_lean(folder / "repl", None, folder / "lake", limits), limits, axioms)


def found(prover: LeanProver, *tactics: str) -> dict[str, Any]:
    return search(prover, THEOREM, FixedTactics(tactics), SearchLimits(seconds=120))


def test_a_proof_of_several_tactics(tmp_path: Path) -> None:
    line = found(prover(tmp_path), "exact hq", "exact hp", "constructor")
    assert line["tactics"] == ["constructor", "exact hp", "exact hq"]
    assert line["axioms"] == ["propext", "Classical.choice", "Quot.sound"]
    assert line["tree"][0]["goals"] == GOAL
    assert line["expansions"] == 3


@pytest.mark.parametrize("tactic", ["cheat_axiom", "cheat_sorry", "spoof_axioms"])
def test_what_only_the_replay_can_see_is_refused(tmp_path: Path, tactic: str) -> None:
    line = found(prover(tmp_path), tactic)
    assert not line["proved"]
    assert line["tree"][1]["outcome"] == "rejected"
    assert ("easy" in line["rejected"][0]["message"]) == (tactic != "cheat_sorry")


def test_an_axiom_counts_where_it_is_allowed(tmp_path: Path) -> None:
    assert found(prover(tmp_path, axioms=("easy",)), "cheat_axiom")["axioms"][-1] == "easy"


def test_a_tactic_that_says_sorry_is_an_error(tmp_path: Path) -> None:
    line = found(prover(tmp_path), "open_sorry")
    assert line["tree"][1]["outcome"] == "error"
    assert line["rejected"] == []


def test_a_tactic_that_hangs_or_kills_costs_itself_only(tmp_path: Path) -> None:
    line = found(prover(tmp_path, Limits(tactic_seconds=8)), "hang", "die_once", "die", "tauto")
    assert [node["outcome"] for node in line["tree"]] == ["open", "timeout", "error", "error", "proved"]
    # die_once: the first time it kills, the second time it is an unknown tactic
    assert "failed on" in line["tree"][2]["message"]
    assert line["tree"][3]["message"] == "the prover died of it"
    assert line["deaths"] == 3


def test_a_killed_process_is_followed_by_another(tmp_path: Path) -> None:
    lean = prover(tmp_path)
    session = lean.open(THEOREM)
    middle = session.apply(session.root, "constructor").state
    assert middle is not None
    os.kill(session.pid, signal.SIGKILL)
    session.close()
    again = lean.open(THEOREM)  # knows the state by its tactics only
    after = again.apply(middle, "exact hp").state
    assert after is not None
    assert after.goals == RIGHT
    again.close()


def test_statements_that_are_none(tmp_path: Path) -> None:
    lean = prover(tmp_path)
    with pytest.raises(BadStatement, match="no theorem that was recorded"):
        lean.open(Theorem("x", "theorem other : 1 = 2"))
    with pytest.raises(BadStatement, match="the header: unknown module"):
        lean.open(Theorem("both", STATEMENT, "import Unknown"))


@pytest.mark.parametrize("text", [
    "sorry", "exact sorryAx _ false", "admit", "native_decide", "decide +native", "linarith\naxiom f : False",
    "run_tac do pure ()", "exact Lean.ofReduceBool _ _ rfl", "simp -- x\n#eval 1",
    "set_option debug.skipKernelTC true in simp",
    "open Foo in simp", "simp)\n\ntheorem both : True := by (trivial", "exact (by sorry)",
    "simp /- - /- -/ -/ \nunsafe def x := 1",
    'exact foo "--" sorry', "nomatch ('\"' : Char) sorry -- \"", "IO.println x", "exact _root_.sorryAx _",
    "exact _root_.Lean.foo", "exact (unsafeCast h)", "local notation \"1\" => 2",
])  # fmt: skip
def test_words_that_do_not_pass(text: str) -> None:
    assert lean_text.why_forbidden(text) is not None


@pytest.mark.parametrize("text", [
    "norm_num [h₀, h₁] at *", "nlinarith [sq_nonneg (a + b)] -- by definition of the theorem",
    "simp only [sub_eq_add_neg]",
    "set_option maxHeartbeats 400000 in nlinarith", "exact h.open", "rw [Finset.sum_range_succ]",
    "refine' ⟨n + 1, lt_add_one _, 1, _⟩",
    "replace h₀ := congr_arg (· % 2009) h₀", "/- sorry -/ rfl", "obtain ⟨end', h⟩ := h",
    "interval_cases x <;> simp_all",
])  # fmt: skip
def test_words_that_pass(text: str) -> None:
    assert lean_text.why_forbidden(text) is None


def test_the_compiler_is_trusted_on_demand() -> None:
    assert lean_text.why_forbidden("native_decide", trusts_compiler=True) is None


def recorded() -> tuple[list[dict[str, Any]], list[str], list[dict[str, Any]]]:
    """Llemma's proofs on miniF2F: the theorems, all tactics, and the records of the stand-in."""
    lines = (shared_folder() / "minif2f_llemma_proofs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["success"]]
    records = []
    for row in rows:
        states = [step["state_before"] for step in row["trace"]] + [""]
        steps = [[states[at], row["proof"][at], states[at + 1]] for at in range(len(row["proof"]))]
        records.append({"statement": row["statement"], "root": states[0], "steps": steps})
    return rows, sorted({tactic for row in rows for tactic in row["proof"]}), records


def test_recorded_proofs_of_llemma_are_found_again(tmp_path: Path) -> None:
    rows, tactics, records = recorded()
    theorems, list_file, output = tmp_path / "theorems.jsonl", tmp_path / "tactics.txt", tmp_path / "output"
    theorems.write_text("".join(json.dumps({"name": row["full_name"], **row}) + "\n" for row in rows))
    list_file.write_text("\n".join(tactics), encoding="utf-8")
    options = repl_stand_in.install(tmp_path, records)
    command = [
        sys.executable, prove.__file__, "search", *options, "--theorems", str(theorems), "--tactics",
        str(list_file),
        "--output", str(output), "--tactic-timeout", "60", "--workers", "2",
    ]  # fmt: skip
    # Not in this process: lean-interact collects garbage after each REPL, and all of torch is here.
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = read_proofs(output / "proofs.jsonl")
    assert len(lines) == len(rows) == 64
    for row in rows:
        line = lines[row["full_name"]]
        assert line["tactics"] == row["proof"], line["status"]
        path = [node for node in line["tree"] if node["outcome"] == "open"]
        assert [step["state_before"] for step in row["trace"]] == [node["goals"] for node in path]
    results = json.loads((output / "results.json").read_text())["tasks"]["theorems"]
    assert results["proved"] == 64
    assert results["proofs"]["single_tactic"] == sum(len(row["proof"]) == 1 for row in rows)
