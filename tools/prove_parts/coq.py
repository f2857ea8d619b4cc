# SPDX-License-Identifier: Apache-2.0
"""Coq: a session in coqtop for the search, coqc and a fresh coqtop for the replay.

As seen with coqtop 8.16: with -emacs it ends every answer with a prompt that holds the number of its state;
a sentence that fails leaves the number as it was. `BackTo` goes to ancestors only, so another branch is
reached by going back to the statement and repeating the tactics. It prints prompts and errors on one stream
and goals on the other, each flushed before the prompt: read as one stream they keep their order.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.neox_arguments.errors import UserError
from tools.prove_parts import coq_text
from tools.prove_parts.bounded_process import Conversation, NoAnswer, TooMuchOutput, run_bounded
from tools.prove_parts.confinement import find_bubblewrap
from tools.prove_parts.provers import BadStatement, Limits, Outcome, ProverDied, State, Theorem, Verdict
from tools.prove_parts.scratch import scratch_folder

# What Coq's standard library adds to its logic, classical reals included; consistent together (the page
# "CoqAndAxioms" of Coq's wiki). Full names, as `About` says them.
STANDARD_AXIOMS = frozenset({
    "Coq.Logic.Classical_Prop.classic",
    "Coq.Logic.ClassicalEpsilon.constructive_indefinite_description",
    "Coq.Logic.Description.constructive_definite_description",
    "Coq.Logic.Eqdep.Eq_rect_eq.eq_rect_eq",
    "Coq.Logic.FunctionalExtensionality.functional_extensionality_dep",
    "Coq.Logic.IndefiniteDescription.constructive_indefinite_description",
    "Coq.Logic.ProofIrrelevance.proof_irrelevance",
    "Coq.Logic.PropExtensionality.propositional_extensionality",
    "Coq.Reals.ClassicalDedekindReals.sig_forall_dec",
    "Coq.Reals.ClassicalDedekindReals.sig_not_dec",
})  # fmt: skip

_PROMPT = re.compile(rb"<prompt>([^<\n]*) < (\d+) \|([^|\n]*)\| (\d+) < </prompt>")
_CHATTER = re.compile(r"<(infomsg|warning)>.*?</\1>", re.DOTALL)
_GOAL_ID = re.compile(r" \(ID \d+\)")
_GOALS = re.compile(r"(\d+) (?:focused )?goals?\b")
_EXPANDS_TO = re.compile(r"^Expands to: Constant (\S+)$", re.MULTILINE)
_AXIOM = re.compile(r"^([^\s:]+)\s*(?::\s|$)")
_OPEN_BLOCK = re.compile(r"Last block to end has name (\S+?)\.?$", re.MULTILINE)
# Coq's own Timeout ends a tactic where it can be interrupted; past this the process is killed.
_GRACE_SECONDS = 5.0
# Goals whose hypotheses are asked for; of more than these the conclusions are told apart.
_GOALS_IN_FULL = 16
_MODULE = "Replayed"
_FOLDER_OPTIONS = ("-R", "-Q", "-I")
# `Proof using` says which variables of a section a proof needs; a theorem that stands alone has none.
_OPENING = re.compile(
    r"Proof(?:\s+using\b[\w\s'*]*?)?(?:\s+with\s+(?P<tactic>[^.]+?))?(?:\s+using\b[\w\s'*]*)?\s*\."
)
_ENDING = re.compile(r"(?:Qed|Defined)\s*\.")
# It makes goals of what tactics have shelved, all of which `Qed.` wants proved.
_HARMLESS_COMMANDS = frozenset({"Unshelve."})


@dataclass(frozen=True)
class CoqPrograms:
    """Where they lie, and what the user adds to their command lines."""

    coqtop: str
    coqc: str
    options: tuple[str, ...] = ()
    bubblewrap: str | None = None
    """What they run in; None: with the user's rights, and only rules about its text hold a proof back."""


def find_coq(folder: Path | None = None, options: Sequence[str] = ()) -> CoqPrograms:
    """Finds coqtop and coqc in a folder or on PATH, and bubblewrap where it is.

    Raises:
        UserError: they are not there.
    """
    found = [shutil.which(name, path=None if folder is None else str(folder)) for name in ("coqtop", "coqc")]
    if None in found:
        where = "on PATH" if folder is None else f"in {folder}"
        raise UserError(f"--prover=coq: coqtop and coqc are not {where}; install Coq 8.16 or set --coq-bin")
    words = [word for option in options for word in shlex.split(option)]
    for at, word in enumerate(words[:-1]):
        if word in _FOLDER_OPTIONS:  # of where the command was typed; Coq runs in a folder of its own
            words[at + 1] = os.path.abspath(words[at + 1])
    return CoqPrograms(str(found[0]), str(found[1]), tuple(words), find_bubblewrap()[0])


class OutOfStep(Exception):
    """coqtop took a text for another number of sentences than one, and was closed: its next answers would be
    those to earlier ones."""


class _Coqtop:
    """One coqtop: a sentence in, its text and whether it was accepted out."""

    def __init__(self, programs: CoqPrograms, limits: Limits, options: Sequence[str] = ()) -> None:
        command = [programs.coqtop, "-q", "-emacs", "-w", "none", *programs.options, *options]
        self._conversation = Conversation(
            command, _PROMPT, limits.memory_bytes, limits.output_bytes, programs.bubblewrap
        )
        _, prompt = self._conversation.answer(limits.start_seconds)
        self.state, self.proofs = int(prompt[2]), prompt[3].decode("utf-8", "replace")
        self.close = self._conversation.close

    @property
    def pid(self) -> int:
        return self._conversation.pid

    @property
    def alive(self) -> bool:
        return self._conversation.alive

    def run(self, sentence: str, seconds: float) -> tuple[bool, str]:
        """Whether it was accepted, and what was printed.

        Raises:
            NoAnswer, TooMuchOutput, ProverDied: it is closed then.
        """
        self._conversation.send(sentence)
        text, prompt = self._conversation.answer(seconds)
        before, self.state = self.state, int(prompt[2])
        self.proofs = prompt[3].decode("utf-8", "replace")
        return self.state != before, _CHATTER.sub("", text).strip()

    def run_foreign(self, sentence: str, seconds: float) -> tuple[bool, str]:
        """As `run`, for a sentence of others. Coq's lexer can be led away from ours (a header may add words
        to it), so a question that nobody can foresee is asked next: its answer has to be the next one.

        Raises:
            OutOfStep: it is not. Also what `run` raises.
        """
        found = self.run(sentence, seconds)
        word = f"step_{secrets.token_hex(8)}"
        _, answer = self.run(f"Check {word}.", seconds)
        if word not in answer:
            self.close()
            raise OutOfStep("is more than one sentence to Coq")
        return found


def _error_of(text: str) -> str:
    """The message without the place in the input, which says nothing here."""
    at = text.find("Error:")
    return " ".join((text[at:] if at >= 0 else text).split())[:500]


class CoqSession:
    """One theorem in one coqtop."""

    def __init__(self, programs: CoqPrograms, limits: Limits, theorem: Theorem) -> None:
        self._limits = limits
        self._top = _Coqtop(programs, limits)
        try:
            self._state_theorem(theorem)
            self._root_number = self._at_number = self._top.state
            self._at: tuple[str, ...] = ()
            self.root = State((), self._goals(limits.start_seconds))
        except BaseException:
            self.close()
            raise

    def _state_theorem(self, theorem: Theorem) -> None:
        end = time.monotonic() + self._limits.start_seconds
        # A goal's text is its identity: wide, deep and nothing elided.
        settings = ["Set Silent.", "Set Printing Width 200.", "Set Printing Depth 1000."]
        try:
            text = coq_text.sentences(f"{theorem.header}\n{theorem.statement}")
            name = coq_text.stated_name(theorem.statement)
        except ValueError as error:
            raise BadStatement(str(error)) from None
        for number, sentence in enumerate([*settings, *text], 1):
            seconds = max(1.0, end - time.monotonic())
            if number == len(settings) + len(text):
                self._check_no_block(seconds)
            try:
                accepted, said = self._top.run_foreign(_on_one_line(sentence), seconds)
            except (TooMuchOutput, OutOfStep) as error:
                raise BadStatement(f"{sentence[:80]}: {error}") from error
            if not accepted:
                raise BadStatement(_error_of(said))
        if self._top.proofs != name:
            raise BadStatement(
                f"the last sentence leaves {self._top.proofs or 'nothing'} to be proved, not {name}"
            )

    def _check_no_block(self, seconds: float) -> None:
        # What is stated in a section or module has another name and, in the end, another type.
        block = _OPEN_BLOCK.search(self._top.run("End there_is_none.", seconds)[1])
        if block is not None:
            raise BadStatement(
                f"it stands within the section or module {block[1]}; a theorem has to stand at the top of "
                "its file: end that first, and state variables as its arguments"
            )

    @property
    def pid(self) -> int:
        """Of the process: coqtop, or the bubblewrap it runs in."""
        return self._top.pid

    @property
    def alive(self) -> bool:
        """See `Session.alive`."""
        return self._top.alive

    def apply(self, state: State, tactic: str) -> Outcome:
        """See `Session.apply`."""
        try:
            sentence = coq_text.one_tactic(tactic)
        except ValueError as error:
            return Outcome("forbidden", message=str(error))
        if not self._top.alive:
            raise ProverDied("coqtop ended")
        try:
            if not self._go_to(state.path):
                return Outcome("error", message="the state could not be reached again")
            return self._try(state, sentence)
        except NoAnswer as error:
            return Outcome("timeout", message=str(error))
        except (TooMuchOutput, OutOfStep) as error:
            return Outcome("error", message=str(error))

    def _try(self, state: State, sentence: str) -> Outcome:
        accepted, said = self._timed(sentence)
        if not accepted:
            message = _error_of(said)
            return Outcome("timeout" if message == "Error: Timeout!" else "error", message=message)
        goals = self._goals(self._limits.tactic_seconds + _GRACE_SECONDS)
        self._back_to(self._at_number)
        path = (*state.path, sentence)
        if goals == "No more goals.":
            return Outcome("done", State(path, ""))
        if not _GOALS.match(
            goals
        ):  # only what was shelved or given up is left: nothing a tactic could go on with
            return Outcome("error", message=goals[:500])
        return Outcome("open", State(path, goals))

    def _timed(self, sentence: str) -> tuple[bool, str]:
        seconds = math.ceil(self._limits.tactic_seconds)
        return self._top.run_foreign(f"Timeout {seconds} {_on_one_line(sentence)}", seconds + _GRACE_SECONDS)

    def _go_to(self, path: tuple[str, ...]) -> bool:
        if path == self._at:
            return True
        self._back_to(self._root_number)
        self._at, self._at_number = (), self._root_number
        for sentence in path:
            if not self._timed(sentence)[0]:
                self._back_to(self._root_number)
                return False
        self._at, self._at_number = path, self._top.state
        return True

    def _back_to(self, number: int) -> None:
        self._top.run(f"BackTo {number}.", self._limits.tactic_seconds + _GRACE_SECONDS)
        if self._top.state != number:
            self.close()
            raise ProverDied(f"coqtop did not go back to its state {number}")

    def _goals(self, seconds: float) -> str:
        shown = self._shown("Show.", seconds)
        count = _GOALS.match(shown)
        if count is None or int(count[1]) < 2:
            return shown
        # `Show.` gives the first goal's hypotheses only, and two states may differ in the others'.
        first = shown.split("\n\ngoal 2 is:", 1)[0]
        others = []
        for number in range(2, min(int(count[1]), _GOALS_IN_FULL) + 1):
            others.append(self._shown(f"Show {number}.", seconds))
        return "\n\n".join([first, *others])

    def _shown(self, sentence: str, seconds: float) -> str:
        text = _GOAL_ID.sub("", self._top.run(sentence, seconds)[1])
        return "\n".join(line.rstrip() for line in text.splitlines())

    def close(self) -> None:
        """See `Session.close`."""
        self._top.close()


def _on_one_line(sentence: str) -> str:
    """coqtop reads line by line, and answers each; blanks within strings stay as they are."""
    return " ".join(sentence.splitlines())


class CoqProver:
    """See `Prover`."""

    language = "coq"

    def __init__(self, programs: CoqPrograms, limits: Limits, allowed_axioms: Sequence[str] = ()) -> None:
        """`allowed_axioms`: full names, beside `STANDARD_AXIOMS`."""
        self._programs, self._limits = programs, limits
        self._allowed = STANDARD_AXIOMS | set(allowed_axioms)
        self._stated: tuple[Theorem, str] | None = None

    def open(self, theorem: Theorem) -> CoqSession:
        """See `Prover.open`."""
        return CoqSession(self._programs, self._limits, theorem)

    def script(self, tactics: Sequence[str]) -> str:
        """See `Prover.script`."""
        return "\n".join(coq_text.one_tactic(tactic) for tactic in tactics)

    def check(self, theorem: Theorem, proof: str) -> Verdict:
        """See `Checker.check`."""
        begun = time.monotonic()
        try:
            name = coq_text.stated_name(theorem.statement)
        except ValueError as error:
            raise BadStatement(str(error)) from None
        try:
            opening, text = proof_text(proof)
        except ValueError as error:
            return Verdict(False, str(error))
        type_of_statement = self._type_of_statement(theorem, name)
        with scratch_folder() as folder:
            try:
                refusal = self._compile(folder, theorem, f"{opening}\n{text}\nQed.")
            except NoAnswer as error:
                return Verdict(False, str(error), round(time.monotonic() - begun, 3), unsettled=True)
            if refusal is None:
                refusal, axioms = self._judge(folder, name, type_of_statement)
            else:
                axioms = ()
        return Verdict(refusal is None, refusal or "", round(time.monotonic() - begun, 3), axioms)

    def close(self) -> None:
        """Nothing outlives a call."""

    def _type_of_statement(self, theorem: Theorem, name: str) -> str:
        """What the user's text states, with everything printed, by a Coq that has seen no proof."""
        if self._stated is None or self._stated[0] != theorem:
            with scratch_folder() as folder:
                refusal = self._compile(folder, theorem, "Proof.\nAdmitted.")
                if refusal is not None:
                    raise BadStatement(refusal)
                top = self._fresh_top(folder)
                try:
                    self._stated = theorem, self._type_of(top, name)
                finally:
                    top.close()
        return self._stated[1]

    def _compile(self, folder: Path, theorem: Theorem, rest: str) -> str | None:
        """Compiles statement and proof; None, or why it failed.

        Raises:
            NoAnswer: it takes longer than `check_seconds`.
        """
        file = folder / f"{_MODULE}.v"
        text = f"{theorem.header}\n{theorem.statement}\n{rest}\n"
        file.write_text(text, encoding="utf-8", errors="replace")
        done = run_bounded(
            [
                self._programs.coqc,
                "-q",
                "-w",
                "none",
                *self._programs.options,
                "-Q",
                str(folder),
                "",
                str(file),
            ],
            folder,
            self._limits.check_seconds,
            self._limits.memory_bytes,
            self._limits.output_bytes,
            self._programs.bubblewrap,
        )
        if done.timed_out:
            raise NoAnswer(f"no answer in {self._limits.check_seconds:g} s")
        return None if done.code == 0 else _error_of(done.output) or f"coqc ended with {done.code}"

    def _fresh_top(self, folder: Path) -> _Coqtop:
        top = _Coqtop(self._programs, self._limits, ["-Q", str(folder), ""])
        settings = ("Set Printing All.", "Set Printing Depth 100000.", "Set Printing Width 10000.")
        for sentence in (*settings, f"Require {_MODULE}."):
            accepted, said = top.run(sentence, self._limits.start_seconds)
            if not accepted:
                top.close()
                raise ProverDied(f"what was compiled cannot be loaded: {_error_of(said)}")
        return top

    def _type_of(self, top: _Coqtop, name: str) -> str:
        accepted, said = top.run(f"Check @{_MODULE}.{name}.", self._limits.start_seconds)
        if not accepted:
            raise BadStatement(f"{name} is not at the top of its file: {_error_of(said)}")
        return said

    def _full_name(self, top: _Coqtop, line: str) -> str:
        """Of the axiom on a line of `Print Assumptions`; the line itself where it names none."""
        short = _AXIOM.match(line)
        if short is None:
            return line
        full = _EXPANDS_TO.search(top.run(f"About {short[1]}.", self._limits.start_seconds)[1])
        return full[1] if full else line

    def _judge(self, folder: Path, name: str, type_of_statement: str) -> tuple[str | None, tuple[str, ...]]:
        """Why the compiled proof does not count (None: it does), and the axioms under it.

        Asked in a process of its own, where nothing that a proof prints can be taken for Coq's word.
        """
        top = self._fresh_top(folder)
        try:
            if self._type_of(top, name) != type_of_statement:
                return "what was proved is not what was stated", ()
            accepted, said = top.run(f"Print Assumptions {_MODULE}.{name}.", self._limits.check_seconds)
            if not accepted:
                return _error_of(said), ()
            if said == "Closed under the global context":
                return None, ()
            axioms: list[str] = []
            for line in said.splitlines()[1:]:
                if line[:1].isspace():
                    continue  # the rest of a type
                axioms.append(self._full_name(top, line))
            refused = [axiom for axiom in axioms if axiom not in self._allowed]
            reason = f"rests on what is not allowed: {', '.join(refused)}" if refused or not axioms else None
            return reason, tuple(axioms)
        finally:
            top.close()


def proof_text(proof: str) -> tuple[str, str]:
    """How a proof begins (`Proof.`, or `Proof with` a tactic), and its sentences, one a line, without those
    that begin and end it. Whatever ended it, it ends with `Qed.` here, which makes the theorem opaque and
    nothing else.

    Raises:
        ValueError: a sentence may not stand in a proof, or the text is not whole.
    """
    found = coq_text.sentences(proof)
    opening = _OPENING.fullmatch(coq_text.without_comments(found[0])) if found else None
    if opening:
        found = found[1:]
    if found and _ENDING.fullmatch(coq_text.without_comments(found[-1])):
        found = found[:-1]
    ending = opening["tactic"] if opening else None  # what `...` ends a sentence with
    for sentence in [*found, *([f"{ending}."] if ending else [])]:
        reason = None if sentence in _HARMLESS_COMMANDS else coq_text.why_forbidden(sentence)
        if reason is not None:
            raise ValueError(f"forbidden: {sentence[:80]} {reason}")
    sent = []
    for sentence in found:
        try:
            sent.append(coq_text.plain(sentence))
        except ValueError as error:
            raise ValueError(f"forbidden: {sentence[:80]} {error}") from None
    return f"Proof with {ending}." if ending else "Proof.", "\n".join(sent)
