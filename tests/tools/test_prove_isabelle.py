# SPDX-License-Identifier: Apache-2.0
"""Isabelle: which proofs it may see, how calls of sledgehammer are replaced, what counts in the end."""

from __future__ import annotations

import dataclasses
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_tasks.prompts import prompt
from megatron.neox_arguments.errors import UserError
from tests.tools.isabelle_stand_in import serving
from tools.prove_parts import isabelle, isabelle_text
from tools.prove_parts.isabelle import IsabelleChecker, find_isabelle
from tools.prove_parts.isabelle_text import FORBIDDEN, Unreadable, proof_of, tokens, why_refused
from tools.prove_parts.provers import BadStatement, Limits, ProverDied, Theorem

pytest.importorskip("isabelle_client", reason="needs requirements/requirements-eval.txt")

THEOREM = Theorem("two_steps", 'theorem two_steps:\n  fixes n :: nat\n  shows "GOAL n"')
PROOF = (
    'proof -\n  (* first \\frac{1}{2} *)\n  have "A n"\n    sledgehammer\n  then show "B n" sledgehammer\nqed'
)
KNOWS = {"A n": {"by simp", "by arith"}, "B n": {"hammer by (metis A)"}}


def checker_of(line: str, tmp_path: Path, **limits: Any) -> IsabelleChecker:
    file = tmp_path / "server.txt"
    file.write_text(line)
    return IsabelleChecker(find_isabelle(file), dataclasses.replace(Limits(), **limits))


def test_steps_are_filled_by_heuristics_then_by_sledgehammer(tmp_path: Path) -> None:
    with serving(KNOWS) as server:
        checker = checker_of(server.line, tmp_path)
        verdict = checker.check(THEOREM, PROOF)
        checker.close()
    assert (verdict.ok, verdict.message, verdict.axioms) == (True, "", ())
    whole = server.theories["Whole"]
    # The first of the methods that works, in the order of Draft, Sketch, and Prove.
    assert 'have "A n"\n    by simp\n  then show "B n" by (metis A)\nqed\n\nthm_oracles two_steps' in whole
    assert "sorry" not in whole
    assert f"theory Whole imports {isabelle.IMPORTS}\nbegin\n\n{THEOREM.statement}\n" in whole
    # 11 methods at each of 2 steps, a gap at the other one.
    steps = [text for name, text in server.theories.items() if name.startswith("Step_")]
    assert len(steps) == 22
    assert all(text.count("sorry") == 1 for text in steps)
    assert server.commands.count("session_start") == server.commands.count("session_stop") == 1
    assert set(server.purged) == set(server.theories)


def test_a_step_that_nothing_proves_is_told(tmp_path: Path) -> None:
    with serving({"A n": {"by auto"}}) as server:
        verdict = checker_of(server.line, tmp_path).check(THEOREM, PROOF)
    assert not verdict.ok
    assert verdict.message == "sledgehammer finds no proof of step 2 of 2"


def test_the_message_is_that_of_another_step_where_one_fails(tmp_path: Path) -> None:
    proof = PROOF.replace('then show "B n" sledgehammer', 'have "C" by simp show "B n" sledgehammer')
    with serving(KNOWS) as server:
        verdict = checker_of(server.line, tmp_path).check(THEOREM, proof)
    assert not verdict.ok
    assert verdict.message == "Failed to finish proof: goal (1 subgoal): 1. C"


def test_what_did_not_finish_proves_nothing(tmp_path: Path) -> None:
    knows = {"A LOOPS": {"by force"}}
    with serving(knows) as server:
        verdict = checker_of(server.line, tmp_path).check(
            THEOREM, 'proof -\n show "A LOOPS" sledgehammer\nqed'
        )
    assert not verdict.ok


def test_a_statement_that_isabelle_refuses_is_no_failure_of_the_proof(tmp_path: Path) -> None:
    with serving(KNOWS) as server, pytest.raises(BadStatement, match="Type unification failed: Clash"):
        checker_of(server.line, tmp_path).check(Theorem("t", 'theorem t: "BAD TYPE"'), "by simp")


def test_a_gap_that_got_through_is_found_at_the_end(tmp_path: Path) -> None:
    with serving({"A": {"by simp"}}) as server:
        theorem = Theorem("t", 'theorem t:\n  shows "A"')
        verdict = checker_of(server.line, tmp_path).check(
            theorem, 'proof -\n show "A" by simp (* SMUGGLED *)\nqed'
        )
    assert (verdict.ok, verdict.message) == (False, "rests on a gap: Pure.skip_proof")


@pytest.mark.parametrize("command", ["session_start", "use_theories"])
def test_a_server_that_does_not_answer_is_dead(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isabelle, "_GRACE_SECONDS", 0.2)
    with serving(KNOWS, silent_on=command) as server:
        checker = checker_of(server.line, tmp_path, start_seconds=0.2, tactic_seconds=0.1)
        with pytest.raises(ProverDied, match=f"{command}: no answer"):
            checker.check(THEOREM, "by simp")


def test_a_wrong_password_and_no_server(tmp_path: Path) -> None:
    with serving(KNOWS) as server:
        with pytest.raises(ProverDied):
            checker_of(server.line.replace("the-", "a-"), tmp_path).check(THEOREM, "by simp")
        line = server.line
    with pytest.raises(ProverDied, match="does not answer"):
        checker_of(line, tmp_path).check(THEOREM, "by simp")


def test_where_the_server_is_must_be_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--isabelle-server: is not set"):
        find_isabelle(None)
    with pytest.raises(UserError, match="cannot be read"):
        find_isabelle(tmp_path / "none")
    (tmp_path / "other").write_text("hello")
    with pytest.raises(UserError, match="has no line"):
        find_isabelle(tmp_path / "other")


def test_answers_recorded_from_isabelle_are_read() -> None:
    folder = files("isabelle_client") / "resources" / "isabelle-responses"

    def body(name: str) -> dict[str, object]:
        text = (folder / name).read_text()
        return dict(json.loads(text[text.index("FINISHED ") + len("FINISHED ") :]))

    assert isabelle._read(body("use_theories"), ["Example"])["Example"].ok
    failed = isabelle._read(body("use_theories.Fail"), ["Example", "Other"])
    assert failed["Example"].errors[0].startswith("Failed to finish proof:\ngoal (1 subgoal):")
    assert not failed["Example"].ok
    assert failed["Other"] == isabelle.Checked(False, (), ())
    hammered = isabelle._read(body("use_theories.Sledgehammer"), ["Problem"])["Problem"]
    assert isabelle._suggestion(hammered.messages) == "by presburger"


REFUSED = [
    "sorry",
    "oops",
    "by simp\nsorry",
    "proof -\n show ?thesis sorry\nqed",
    "",
    "(* by simp *)",
    'if "False" by simp',
    'and "True" by simp',
    '"A" by simp',
    "= 3",
    'by simp\nlemma x: "False" sorry',
    "by simp\nend",
    "ML \\<open>OS.Process.system\\<close>",
    "by simp ML_val \\<open>1\\<close>",
    "proof - ML_prf \\<open>1\\<close> qed",
    "by (tactic \\<open>all_tac\\<close>)",
    "by (raw_tactic \\<open>x\\<close>)",
    'apply (tactic "x")',
    "by simp setup \\<open>I\\<close>",
    'by simp\naxiomatization where x: "False"',
    "by simp oracle x = \\<open>1\\<close>",
    'by simp value "1"',
    "by simp text \\<open>@{ML 1}\\<close>",
    "\\<dots>sorry",
    "by simp \\<dots>sorry",
    "by simp \\<proof>",
    "by simp \\<^ML>\\<open>1\\<close>",
    "by simp \\<^cancel>\\<open>x\\<close>",
    "by simp \u2326",
    "by simp {* *} sorry",
    "by simp (* (* *) *) sorry",
    "by simp (* open",
    'by (simp add: "x',
    "by simp \\<open> open",
    "x.y by simp",
    "by simp.. sorry",
    "by simp ;sorry",
    "by simp 1sorry",
    "by simp 'sorry",
    "by simp ?sorry",
    "by simp\nnotation x",
    "by simp write x",
    "by simp declare x",
    "subgoal sorry",
    'by (simp add: "@{ML 1}")',
]


@pytest.mark.parametrize("proof", REFUSED)
def test_what_is_no_proof_never_reaches_isabelle(proof: str, tmp_path: Path) -> None:
    assert why_refused(proof) is not None
    with serving(KNOWS) as server:
        verdict = checker_of(server.line, tmp_path).check(THEOREM, proof)
        # What ends in `end` is cut there, as models write it; all else is not even asked about.
        assert not verdict.ok or proof == "by simp\nend"
        assert not server.commands or proof == "by simp\nend"


@pytest.mark.parametrize(
    "proof",
    [
        "by auto",
        'proof -\n  have "sorry" by simp\n  (* sorry, ML *)\n  show ?thesis using a.sorry by blast\nqed',
        "using x\\<^sub>1 by (simp add: \\<open>n > 0\\<close>)",
        "apply simp\napply auto\ndone",
        "by simp (* \u2326 *)",
        "..",
        "sledgehammer",
    ],
)
def test_proofs_are_not_refused(proof: str) -> None:
    assert why_refused(proof) is None


def test_the_published_examples_are_proofs_and_their_statements_have_names() -> None:
    for kind in ("numbertheory", "other"):
        for example in prompt(f"dsp_isabelle_{kind}").text.split("\n\n\n\n"):
            formal = example.split("Formal:\n")[1]
            begin = min(formal.index(word) for word in ("proof -", "sledgehammer") if word in formal)
            assert isabelle_text.stated_name(formal[:begin])
            proof = proof_of(formal[begin:])
            assert why_refused(proof) is None
            assert len(isabelle_text.hammers(proof)) == proof.count("sledgehammer")


def test_the_proof_in_a_generation() -> None:
    assert proof_of("\nproof -\nqed\n\nend\n\n\nInformal:\n(*") == "proof -\nqed"
    assert proof_of(" by simp\nInformal: x") == "by simp"
    assert proof_of("by (simp add: the_end)") == "by (simp add: the_end)"


@given(st.text(alphabet="ab .\"`(*)\\<>open close^{}'\n\u2039\u203a", max_size=60))
def test_tokens_cover_a_text(text: str) -> None:
    try:
        found = list(tokens(text))
    except Unreadable:
        return
    covered = "".join(token.text for token in found)
    assert covered.replace(" ", "").replace("\n", "") == text.replace(" ", "").replace("\n", "")
    assert all(text[token.start : token.end] == token.text for token in found)


PLACES = ["by simp {}", "proof - {} qed", "by (x {})", "using a {} by b"]


@given(
    st.sampled_from(sorted(FORBIDDEN)),
    st.sampled_from(PLACES),
)
def test_no_forbidden_word_gets_through(word: str, place: str) -> None:
    assert why_refused(place.format(word)) is not None
    assert why_refused(place.format(f'"{word}"')) is None or "\\<^" in word
