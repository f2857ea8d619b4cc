# SPDX-License-Identifier: Apache-2.0
"""Coq: sentences, sessions in coqtop, and replays that let nothing false through."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.corpora import shared_folder
from tools import prove
from tools.prove_parts import coq_text
from tools.prove_parts.confinement import find_bubblewrap
from tools.prove_parts.coq import CoqProver, CoqSession, OutOfStep, find_coq
from tools.prove_parts.proposers import FixedTactics
from tools.prove_parts.provers import BadStatement, Limits, ProverDied, Theorem
from tools.prove_parts.records import read_proofs
from tools.prove_parts.search import SearchLimits, search
from tools.prove_parts.steady_session import SteadySession

needs_coq = pytest.mark.skipif(shutil.which("coqtop") is None, reason="needs coqtop on PATH (Debian: coq)")

PATIENT = Limits(tactic_seconds=60)
SWAP = Theorem("swap", "Require Import Lia.\nTheorem swap : forall n m : nat, n = n /\\ n + m = m + n.")
FALSE = Theorem("wrong", "Theorem wrong : 1 = 2.")

TEXTS = [
    "intros. split.", "idtac \"a. b\". idtac.", "idtac (* x. y (* z. *) *). idtac.", "idtac (* \"*)\" . *).",
    "split. - idtac. + idtac. ++ idtac. }", "{ idtac. }", "2: { idtac. }", "[x]: { idtac. }",
    "auto... idtac.",
    "exact (Nat.add 1 2). idtac.", "idtac.idtac.", "apply Nat.add_comm.", "idtac \"a\"\". \". idtac.",
    "all: idtac. 1-2: idtac.",
    "Check [1; 2]%list.\nidtac.", "idtac.\tidtac.", "(* only. *) idtac.", "exists 1.5%nat. idtac.",
    "idtac .. .", "*** idtac.",
]  # fmt: skip


@pytest.fixture
def session() -> Iterator[CoqSession]:
    session = CoqProver(find_coq(), PATIENT).open(SWAP)
    yield session
    session.close()


@pytest.fixture(scope="module")
def prover() -> CoqProver:
    return CoqProver(find_coq(), PATIENT)


@needs_coq
def test_sentences_end_where_coqtop_ends_them() -> None:
    # Each text between two marks; a prompt comes after each sentence, whatever Coq thinks of it.
    marked = "".join(f'Check "mark{at}". {text}\n' for at, text in enumerate(TEXTS))
    done = subprocess.run(
        ["coqtop", "-q", "-emacs", "-w", "none"],
        input=f'Require Import String. Open Scope string_scope.\nGoal True /\\ True.\n{marked}Check "end".\n',
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
    )  # fmt: skip
    counted = [part.count("<prompt>") - 1 for part in re.split(r'"(?:mark\d+|end)"\n', done.stdout)]
    assert counted[1:-1] == [len(coq_text.sentences(text)) for text in TEXTS]


@pytest.mark.parametrize("text", ["idtac", "idtac (* . ", 'idtac ". ', "idtac. (* x"])
def test_what_has_no_end(text: str) -> None:
    with pytest.raises(coq_text.Unfinished):
        coq_text.sentences(text)


@pytest.mark.parametrize("text", [
    "Admitted", "lia. Admitted.", "intros. lia", "admit", "give_up.", "exact (ltac:(admit))",
    "Axiom f : False.", "all: Check 1.",
    "1: Print nat.", "#[local] Axiom f : False.", "Unset Guard Checking.", "- lia", "{ lia. }",
    "(* x *) Qed.", "(* x *)", "", ".",
    'idtac "<prompt>"', "lia.\nQed.", "Timeout 5 lia.", "Fail lia.", "Local Notation \"1\" := 2.",
    "[x]: Redirect \"f\" Check 1.", "!: Abort.",
    "lia. (* x", "Restart", "lia" + " " * 10_000 + "; lia", "Proof using.", "Time Abort.",
    "par : Admitted.", "1,2-3: Cd \"/\".",
    'Load "x".', "BackTo 3.",
    "trivial.(* *)Show.(* *)BackTo 5", "idtac.(* *)Admitted", "idtac.(* *)Axiom bad : False",
    "idtac (* *).(* *). Admitted",
    # What is no string, or no comment, to a Coq whose header has made words of other signs.
    'idtac "a. Show"', 'idtac ". Admitted.', "idtac .. .", "idtac....",
])  # fmt: skip
def test_sentences_that_are_no_tactic(text: str) -> None:
    with pytest.raises(ValueError):
        coq_text.one_tactic(text)


@pytest.mark.parametrize(("text", "sentence"), [
    ("lia", "lia."), ("intros x  y.", "intros x y."), ("all: lia", "all: lia."),
    ("rewrite <- H;\n  auto", "rewrite <- H; auto."),
    ('idtac "a  b.c"', 'idtac "a  b.c".'), ('idtac(* "." *)"a  b"(* . x. *)', 'idtac "a  b" .'),
    # To Coq "`(" is a word, and no comment begins: nothing of what it holds is sent.
    ('idtac "x" `(* . Redirect "owned" Print nat. *)', 'idtac "x" ` .'),
    ("apply (admit_rule x)", "apply (admit_rule x)."),
    ("exact H.admit", "exact H.admit."),
    ("[> lia | auto ]", "[> lia | auto ]."), ("assert (x := 1%nat). (* why *)", "assert (x := 1%nat)."),
    ("auto...", "auto..."), ("intros; lia.(* 1 *)", "intros; lia."), ("lia.(* 1 *)(* 2 *) (* 3 *)", "lia."),
    ("exact r.(field)", "exact r.(field)."),
])  # fmt: skip
def test_tactics(text: str, sentence: str) -> None:
    assert coq_text.one_tactic(text) == sentence


PIECES = ["idtac", ".", "(* *)", " ", "..", "...", "\u2028", '"', "(*", "*)", "Show", "r.(f)", "`(*", '"x"']


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_one_tactic_is_one_sentence_and_stays_as_it_is(text: str) -> None:
    try:
        sentence = coq_text.one_tactic(text)
    except ValueError:
        return
    assert coq_text.sentences(sentence) == [sentence]
    assert coq_text.one_tactic(sentence) == sentence
    # What coqtop would end a sentence at: a stop before a blank. There is the one at the end only, whatever
    # it takes for a comment or a string.
    assert re.findall(r"(?<!\.)(?:\.|\.{3})(?=[ \t\r\n]|$)", sentence) in ([sentence[-1]], ["..."])


@needs_coq
def test_a_comment_behind_a_stop_harms_nobody() -> None:
    theorem = Theorem("plain", "Theorem plain : forall n : nat, n = n.")
    tactics = [f"intros; reflexivity.(* {number} *)Show." for number in range(6)]
    tactics += ["trivial.(* *)Show.(* *)BackTo 5", "intros; reflexivity.(* 7 *)"]
    line = search(CoqProver(find_coq(), PATIENT), theorem, FixedTactics(tactics), SearchLimits(seconds=120))
    assert (line["status"], line["deaths"]) == ("proved", 0)
    assert line["proof"] == "intros; reflexivity."
    assert [node["outcome"] for node in line["tree"][1:]] == ["forbidden"] * 7 + ["proved"]


@needs_coq
def test_answers_stay_with_their_tactics(session: CoqSession) -> None:
    # As if the rules of `coq_text` had missed something: two sentences, of which the first is refused.
    assert session._top.run_foreign("idtac.", 60)[0]
    with pytest.raises(OutOfStep):
        session._top.run_foreign("foo. idtac.", 60)
    assert not session.alive  # the next tactic has a new process, and its own answer


@needs_coq
def test_what_coq_takes_for_no_comment_costs_no_proof(tmp_path: Path) -> None:
    wide = Theorem("wide", "Theorem wide : True /\\ True /\\ True.")
    tricks = [
        f'idtac "x" `(* . {text} *)' for text in ("split. split.", f'Redirect "{tmp_path}/owned" Print nat.')
    ]
    line = search(
        CoqProver(find_coq(), PATIENT),
        wide,
        FixedTactics([*tricks, "split", "exact I"]),
        SearchLimits(seconds=120),
    )
    assert (line["proved"], line["deaths"]) == (True, 0)
    assert {node["outcome"] for node in line["tree"] if node.get("tactic") in tricks} == {"error"}
    assert list(tmp_path.iterdir()) == []


@needs_coq
@pytest.mark.parametrize("place", ["header", "proof"])
def test_coq_writes_in_its_own_folder_only(tmp_path: Path, place: str) -> None:
    if find_bubblewrap()[0] is None:
        pytest.skip(find_bubblewrap()[1])
    written = f'Redirect "{tmp_path}/owned" Print nat.'
    theorem = Theorem("t", "Theorem t : True.", written if place == "header" else "")
    prover = CoqProver(find_coq(), PATIENT)
    if place == "header":
        with pytest.raises(BadStatement, match="Read-only|system error|owned"):
            prover.open(theorem)
        with pytest.raises(BadStatement):
            prover.check(theorem, "exact I.")
    else:
        session = prover.open(theorem)
        session._top.run(written, 60)
        session.close()
    assert list(tmp_path.iterdir()) == []


@needs_coq
@pytest.mark.parametrize("header", ["Section S. Variable n : nat.", "Module M.", "Module Type T."])
def test_a_theorem_within_a_section_is_refused_at_once(header: str) -> None:
    inside = Theorem("t", "Theorem t : 1 = 1.", header)
    line = search(
        CoqProver(find_coq(), PATIENT), inside, FixedTactics(["reflexivity"]), SearchLimits(seconds=120)
    )
    assert (line["status"], line["expansions"]) == ("bad_statement", 0)
    assert f"the section or module {header.split('.')[0].split()[-1]};" in line["message"]
    ended = Theorem("t", "Theorem t : 1 = 1.", f"{header} End {header.split('.')[0].split()[-1]}.")
    assert CoqProver(find_coq(), PATIENT).check(ended, "reflexivity.").ok
    CoqProver(find_coq(), PATIENT).open(ended).close()


def test_the_name_is_that_of_the_last_sentence() -> None:
    assert (
        coq_text.stated_name("Lemma a : True. Proof. exact I. Qed.\n#[local] Theorem b' (x : nat) : x = x.")
        == "b'"
    )
    for text in ("Goal True.", "Definition", "Lemma a : True. Proof.", ""):
        with pytest.raises(ValueError):
            coq_text.stated_name(text)


@needs_coq
def test_steps_go_back_and_forth(session: CoqSession) -> None:
    first = session.apply(session.root, "intros n m")
    assert first.state is not None
    both = session.apply(first.state, "split.").state
    assert both is not None
    assert both.path == ("intros n m.", "split.")
    assert both.goals.startswith("2 goals\n")
    assert both.goals.count("n, m : nat") == 2  # the second goal's hypotheses as well
    right = session.apply(both, "reflexivity").state
    assert right is not None
    assert session.apply(right, "lia").kind == "done"
    assert session.apply(first.state, "lia").kind == "done"  # back at the first, which stayed as it was
    assert (
        session.apply(first.state, "foo").message
        == "Error: The reference foo was not found in the current environment."
    )
    again = session.apply(session.root, "intros a b")
    assert again.state is not None
    assert "a, b : nat" in again.state.goals


@needs_coq
def test_a_tactic_has_its_time() -> None:
    session = CoqProver(find_coq(), Limits(tactic_seconds=1)).open(SWAP)
    assert session.apply(session.root, "do 1000000000000 idtac").kind == "timeout"
    assert session.alive  # Coq ended it by itself
    session.close()


@needs_coq
def test_output_is_limited() -> None:
    session = CoqProver(find_coq(), Limits(tactic_seconds=60, output_bytes=10_000)).open(SWAP)
    outcome = session.apply(session.root, 'do 10000 idtac "many words that nobody wants to read"')
    assert outcome.kind == "error"
    assert "printed more than" in outcome.message
    assert not session.alive
    session.close()


@needs_coq
def test_memory_is_limited() -> None:
    prover = CoqProver(find_coq(), Limits(tactic_seconds=60, memory_bytes=700 << 20))
    session = prover.open(Theorem("x", "Require Import List.\nTheorem x : True."))
    try:
        outcome = session.apply(session.root, "let x := eval vm_compute in (seq 0 30000) in idtac")
        assert outcome.kind == "error"
        assert "emory" in outcome.message
    except ProverDied:
        pass  # killed outright: what a steady session is for
    finally:
        session.close()


@needs_coq
def test_a_killed_coqtop_is_followed_by_another() -> None:
    steady = SteadySession(CoqProver(find_coq(), PATIENT), SWAP)
    try:
        first = steady.apply(steady.root, "intros n m").state
        assert first is not None
        both = steady.apply(first, "split").state
        assert both is not None
        assert isinstance(steady._session, CoqSession)
        os.kill(steady._session.pid, signal.SIGKILL)
        right = steady.apply(both, "reflexivity").state
        assert right is not None
        assert right.path == ("intros n m.", "split.", "reflexivity.")
        assert steady.deaths <= 1  # none, where the death was seen before the next tactic
    finally:
        steady.close()


@needs_coq
def test_a_killed_search_leaves_no_prover_and_the_next_one_its_folders(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"name": "a", "statement": "Theorem a : True."}))
    (tmp_path / "long.txt").write_text("do 1000000000000 idtac\n")
    program = [sys.executable, str(Path(prove.__file__)), "search", "--prover", "coq", "--theorems"]
    program += [str(tmp_path / "t.jsonl"), "--tactics", str(tmp_path / "long.txt"), "--tactic-timeout"]
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        [*program, "600", "--output", str(tmp_path / "o")], env=environment, stdout=subprocess.DEVNULL
    ) as search_process:
        end = time.monotonic() + 120
        found: list[int] = []
        while not found and time.monotonic() < end and search_process.poll() is None:
            time.sleep(0.05)
            found = [pid for pid in _descendants(search_process.pid) if _runs_coq(pid, 1.5)]
        search_process.kill()
        search_process.wait(60)
    assert found, "no prover was started"
    while any(_runs_coq(pid) for pid in found) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(_runs_coq(pid) for pid in found)
    assert len(list(temporary.iterdir())) == 1
    kept = temporary / "llemma-prover-kept"
    kept.mkdir()
    held = os.open(kept, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)  # as a run that goes on holds its own
    subprocess.run(
        [*program, "1", "--output", str(tmp_path / "p")], env=environment, check=True, timeout=120,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(held)
    assert list(temporary.iterdir()) == [kept]


def _descendants(pid: int) -> list[int]:
    """Its children, theirs, and so on: coqtop may run within bubblewrap."""
    named: list[str] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            named += task.read_text().split()
    return [each for child in named for each in (int(child), *_descendants(int(child)))]


def _runs_coq(pid: int, cpu_seconds: float = 0.0) -> bool:
    """Whether it is a coqtop that has taken so much processor time: past its start, within a tactic."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        is_coq = b"coqtop" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return is_coq and fields[0] != "Z" and int(fields[11]) >= cpu_seconds * os.sysconf("SC_CLK_TCK")


@needs_coq
def test_a_session_has_a_bound_of_processor_time() -> None:
    unconfined = dataclasses.replace(find_coq(), bubblewrap=None)
    session = CoqProver(unconfined, Limits(tactic_seconds=7)).open(SWAP)
    try:
        session.apply(session.root, "intros n m")
        soft, _ = resource.prlimit(session.pid, resource.RLIMIT_CPU)
        assert 7 <= soft < 60
    finally:
        session.close()


@needs_coq
def test_a_search_finds_and_replays() -> None:
    theorem = Theorem("zero", "Theorem zero : forall n : nat, n + 0 = n.")
    tactics = FixedTactics(["reflexivity", "simpl", "rewrite IHn", "induction n", "intros n"])
    line = search(CoqProver(find_coq(), PATIENT), theorem, tactics, SearchLimits(seconds=120))
    assert line["proved"]
    assert line["tactics"] == ["induction n.", "reflexivity.", "simpl.", "rewrite IHn.", "reflexivity."]
    assert line["proof"] == "induction n.\nreflexivity.\nsimpl.\nrewrite IHn.\nreflexivity."
    assert line["rejected"] == []


@needs_coq
@pytest.mark.parametrize("proof", [
    "lia.", "admit.", "Admitted.", "Abort. Theorem wrong : True. exact I.", "reflexivity.",
    "Axiom f : False. destruct f.",
    "Qed. Check 1.", "exact I. Qed. Theorem wrong2 : True. exact I.", "idtac (* ",
    "intros. Unset Guard Checking. exact I.",
    "Notation \"2\" := 1. reflexivity.", "", 'idtac "Closed under the global context". exact I.',
    "give_up.", "Optimize Heap.",
])  # fmt: skip
def test_no_proof_of_what_is_false(prover: CoqProver, proof: str) -> None:
    assert not prover.check(FALSE, proof).ok


@needs_coq
def test_planted_axioms_are_refused_and_named() -> None:
    prover = CoqProver(find_coq(), PATIENT)
    planted = Theorem("wrong", "Axiom easy : 1 = 2.\nTheorem wrong : 1 = 2.")
    verdict = prover.check(planted, "exact easy.")
    assert not verdict.ok
    assert verdict.axioms == ("Replayed.easy",)
    assert CoqProver(find_coq(), PATIENT, ("Replayed.easy",)).check(planted, "exact easy.").ok
    line = search(prover, planted, FixedTactics(["exact easy"]), SearchLimits(seconds=120))
    assert not line["proved"]
    assert "Replayed.easy" in line["rejected"][0]["message"]
    # The name of an axiom of the library does not make it one.
    disguised = Theorem(
        "wrong", "Module Classical_Prop. Axiom classic : 1 = 2. End Classical_Prop.\n" + FALSE.statement
    )
    assert not prover.check(disguised, "exact Classical_Prop.classic.").ok
    for header in ("Parameter p : 1 = 2.", "Lemma p : 1 = 2. Admitted.", "Conjecture p : 1 = 2."):
        assert not prover.check(Theorem("wrong", FALSE.statement, header), "exact p.").ok
    unguarded = "Unset Guard Checking.\nFixpoint f (n : nat) : 1 = 2 := f n."
    assert not prover.check(Theorem("wrong", FALSE.statement, unguarded), "exact (f 0).").ok


@needs_coq
def test_axioms_of_the_library_are_allowed_and_named() -> None:
    peirce = Theorem("p", "Require Import Classical.\nTheorem p : forall A : Prop, ~ ~ A -> A.")
    verdict = CoqProver(find_coq(), PATIENT).check(peirce, "Proof.\nintros A.\n{ exact (NNPP A). }\nQed.")
    assert verdict.ok, verdict.message
    assert verdict.axioms == ("Coq.Logic.Classical_Prop.classic",)


@needs_coq
@pytest.mark.parametrize("statement", [
    "Theorem t : 1 = true.", "Theorem t : True", "Goal True.",
    "Theorem t : True. Proof. exact I. Qed. Definition u := 1.", "Theorem t",
])  # fmt: skip
def test_statements_that_are_none(statement: str) -> None:
    prover = CoqProver(find_coq(), PATIENT)
    with pytest.raises(BadStatement):
        prover.open(Theorem("t", statement))
    with pytest.raises(BadStatement):
        prover.check(Theorem("t", statement), "exact I.")


PORTFOLIO = Path(coq_text.__file__).parent / "portfolios" / "coq_arithmetic"
# Of miniF2F in Coq: some that a tactic of the portfolio proves, and one that none does.
PROVED = {"mathd_numbertheory_132", "amc12b_2020_p5"}
OPEN = {"mathd_numbertheory_156"}


@needs_coq
def test_statements_of_minif2f_by_the_portfolio(tmp_path: Path) -> None:
    lines = (shared_folder() / "minif2f_rocq_valid.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if json.loads(line)["name"] in PROVED | OPEN]
    (tmp_path / "theorems.jsonl").write_text("\n".join(rows), encoding="utf-8")
    prove.main([
        "search", "--prover", "coq", "--theorems", str(tmp_path / "theorems.jsonl"), "--max-expansions", "1",
        "--header", f"{PORTFOLIO}.v", "--tactics", f"{PORTFOLIO}.txt", "--output", str(tmp_path / "output"),
        "--tactic-timeout", "60",
    ])  # fmt: skip
    proofs = read_proofs(tmp_path / "output" / "proofs.jsonl")
    assert {name for name, line in proofs.items() if line["proved"]} == PROVED
    assert all(line["rejected"] == [] for line in proofs.values())


@needs_coq
def test_folders_of_options_are_of_where_the_command_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theories").mkdir()
    (tmp_path / "theories" / "A.v").write_text("Definition a := 1.\n")
    monkeypatch.chdir(tmp_path)
    subprocess.run(["coqc", "-R", "theories", "Lib", "theories/A.v"], check=True, timeout=120)
    prover = CoqProver(find_coq(options=["-R theories Lib"]), PATIENT)
    theorem = Theorem("r", "Theorem r : a = 1.", "From Lib Require Import A.")
    prover.open(theorem).close()
    assert prover.check(theorem, "reflexivity.").ok


@needs_coq
def test_it_says_where_coq_is_not_confined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only_coq = tmp_path / "bin"
    only_coq.mkdir()
    for name in ("coqtop", "coqc"):
        (only_coq / name).symlink_to(shutil.which(name) or name)
    (tmp_path / "t.jsonl").write_text(json.dumps({"name": "a", "statement": "Theorem a : True."}))
    (tmp_path / "tactics.txt").write_text("exact I\n")
    monkeypatch.setenv("PATH", str(only_coq))
    find_bubblewrap.cache_clear()
    try:
        prove.main([
            "search", "--prover", "coq", "--theorems", str(tmp_path / "t.jsonl"), "--tactics",
            str(tmp_path / "tactics.txt"), "--output", str(tmp_path / "o"),
        ])  # fmt: skip
    finally:
        find_bubblewrap.cache_clear()
    assert "note: Coq is not confined: bwrap is not on PATH" in capsys.readouterr().err
    assert read_proofs(tmp_path / "o" / "proofs.jsonl")["a"]["proved"]
