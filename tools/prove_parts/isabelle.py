# SPDX-License-Identifier: Apache-2.0
"""Isabelle: whole proofs, checked by a running Isabelle server over isabelle-client.

As in Draft, Sketch, and Prove (Jiang et al. 2022), a proof may leave steps to `sledgehammer`; each is tried
with 11 methods first, then with sledgehammer itself. Theirs goes step by step through a server of its own;
Isabelle's own server takes theories whole, so here each method at each step is a theory in which all other
steps are assumed, all of them checked side by side, and what was found is put together and checked whole,
with nothing assumed. Only that last theory decides, and `thm_oracles` must not name a gap in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron.neox_arguments.errors import UserError
from tools.prove_parts import isabelle_text
from tools.prove_parts.provers import BadStatement, Limits, ProverDied, Theorem, Verdict
from tools.prove_parts.scratch import scratch_folder

# The methods of DSP's checker in its order (albertqjiang/draft_sketch_prove, autoformalization/checker.py).
HEURISTICS = (
    "by auto", "by simp", "by blast", "by fastforce", "by force", "by eval", "by presburger", "by sos",
    "by arith", "by linarith", "by (auto simp: field_simps)",
)  # fmt: skip
# Its limit of sledgehammer; that of a method is `Limits.tactic_seconds`.
HAMMER_SECONDS = 120.0
# What its theories import. Symmetric_Polynomials is of the Archive of Formal Proofs.
IMPORTS = (
    'HOL.HOL Complex_Main "HOL-Library.Code_Target_Numeral" "HOL-Library.Sum_of_Squares" '
    '"Symmetric_Polynomials.Vieta" "HOL-Computational_Algebra.Computational_Algebra" '
    '"HOL-Number_Theory.Number_Theory"'
)
_UNFINISHED = "not finished in time"
# Of a proof; more steps than any published one has are a model going round in circles.
MOST_HAMMERS = 64
_INSTALL = "pip install -r requirements/requirements-eval.txt"
_SERVER_LINE = re.compile(r'server ".*" = (\S+):(\d+) \(password "(.*)"\)')
_FOUND = re.compile(r"Try this:\s*(?P<command>.*?)\s*\((?:> )?[0-9.,]+ m?s\)", re.DOTALL)
_GAPS = ("skip_proof", "cheat")
# Between a limit that Isabelle keeps and ours on the connection.
_GRACE_SECONDS = 60.0


@dataclass(frozen=True)
class IsabelleServer:
    """Where a server listens, and which session it shall start.

    Args:
        session: the image that theories are built on, such as HOL or one with all imports in it.
        folders: of sessions that are not Isabelle's own (the Archive of Formal Proofs).
        hammer_seconds: limit of one call of sledgehammer; 0 leaves it out.
    """

    address: str
    port: int
    password: str = field(repr=False)
    session: str = "HOL"
    folders: tuple[str, ...] = ()
    hammer_seconds: float = HAMMER_SECONDS


def find_isabelle(
    file: Path | None,
    session: str = "HOL",
    folders: Sequence[str] = (),
    hammer_seconds: float = HAMMER_SECONDS,
) -> IsabelleServer:
    """Reads what `isabelle server` printed when it was started.

    Raises:
        UserError: the file has no such line, or isabelle-client is not installed.
    """
    if importlib.util.find_spec("isabelle_client") is None:
        raise UserError(f"--prover=isabelle: isabelle-client is not installed; {_INSTALL}")
    if file is None:
        raise UserError(
            "--isabelle-server: is not set; start `isabelle server -n prove > server.txt &` and give the file"
        )
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--isabelle-server={file}: cannot be read ({error})") from None
    match = _SERVER_LINE.search(text)
    if match is None:
        raise UserError(
            f"--isabelle-server={file}: has no line `server … = ADDRESS:PORT (password …)`; give the file "
            "that `isabelle server` wrote"
        )
    return IsabelleServer(match[1], int(match[2]), match[3], session, tuple(folders), hammer_seconds)


@dataclass(frozen=True)
class Checked:
    """What Isabelle says of one theory."""

    ok: bool
    errors: tuple[str, ...]
    messages: tuple[str, ...]


class IsabelleChecker:
    """See `Checker`. One session of the server, started with the first check."""

    language = "isabelle"

    def __init__(self, server: IsabelleServer, limits: Limits) -> None:
        self._server, self._limits = server, limits
        self._session: str | None = None
        self._accepted: set[Theorem] = set()

    def check(self, theorem: Theorem, proof: str) -> Verdict:
        """See `Checker.check`. Calls of sledgehammer in the proof are replaced by what proves their step."""
        begun = time.monotonic()
        try:
            name = isabelle_text.stated_name(theorem.statement)
        except ValueError as error:
            raise BadStatement(str(error)) from None
        text = isabelle_text.proof_of(proof)
        refusal = isabelle_text.why_refused(text)
        if refusal is not None:
            return Verdict(False, refusal)
        self._accept(theorem)
        calls = len(isabelle_text.hammers(text))
        if calls > MOST_HAMMERS:
            return Verdict(False, f"{calls} calls of sledgehammer; {MOST_HAMMERS} is the most")
        found = self._solved(theorem, text, calls)
        unsolved = [number + 1 for number, step in enumerate(found) if step is None]
        if unsolved:
            # The rest of the proof may be wrong too; that is what a repair needs to know first.
            gaps = isabelle_text.with_hammers_replaced(text, [step or "sorry" for step in found])
            rest = self._use(theorem, {"Gaps": gaps}, self._limits.check_seconds)["Gaps"]
            steps = ", ".join(map(str, unsolved))
            message = _first(rest.errors) or f"sledgehammer finds no proof of step {steps} of {calls}"
            return Verdict(False, message, _since(begun), unsettled=not rest.errors)
        whole = isabelle_text.with_hammers_replaced(text, [step or "" for step in found])
        return self._judge(theorem, name, whole, begun)

    def _judge(self, theorem: Theorem, name: str, whole: str, begun: float) -> Verdict:
        """The one theory that decides."""
        end = f"{whole}\n\nthm_oracles {name}"
        result = self._use(theorem, {"Whole": end}, self._limits.check_seconds)["Whole"]
        if not result.ok or result.errors:
            message = _first(result.errors) or _UNFINISHED
            return Verdict(False, message, _since(begun), unsettled=not result.errors)
        said = [message for message in result.messages if message.lstrip().startswith("oracles:")]
        if len(said) != 1:
            return Verdict(False, "Isabelle does not say which oracles the proof rests on", _since(begun))
        oracles = tuple(line.strip() for line in said[0].partition(":")[2].splitlines() if line.strip())
        gaps = [oracle for oracle in oracles if any(gap in oracle for gap in _GAPS)]
        if gaps:
            return Verdict(False, f"rests on a gap: {', '.join(gaps)}", _since(begun), oracles)
        return Verdict(True, "", _since(begun), oracles)

    def _accept(self, theorem: Theorem) -> None:
        """Raises:
        BadStatement: Isabelle refuses the statement with a gap as its proof.
        ProverDied: it does not come to the end of it.
        """
        if theorem in self._accepted:
            return
        result = self._use(theorem, {"Statement": "sorry"}, self._limits.start_seconds)["Statement"]
        if result.errors:
            raise BadStatement(_first(result.errors))
        if not result.ok:
            raise ProverDied(f"the statement: {_UNFINISHED}")
        self._accepted.add(theorem)

    def _solved(self, theorem: Theorem, proof: str, calls: int) -> list[str | None]:
        """What proves the step of each call; None where nothing does."""
        found: list[str | None] = [None] * calls
        if not calls:
            return found
        theories = {
            f"Step_{step}_{number}": _with_one(proof, step, calls, heuristic)
            for step in range(calls)
            for number, heuristic in enumerate(HEURISTICS)
        }
        results = self._use(theorem, theories, self._limits.tactic_seconds)
        for step in range(calls):
            for number, heuristic in enumerate(HEURISTICS):
                result = results[f"Step_{step}_{number}"]
                if found[step] is None and result.ok and not result.errors:
                    found[step] = heuristic
        left = [step for step in range(calls) if found[step] is None]
        seconds = self._server.hammer_seconds
        if left and seconds > 0:
            call = f"{isabelle_text.HAMMER} [timeout = {seconds:g}]\n  sorry"
            theories = {f"Hammer_{step}": _with_one(proof, step, calls, call) for step in left}
            results = self._use(theorem, theories, seconds + self._limits.tactic_seconds)
            for step in left:
                found[step] = _suggestion(results[f"Hammer_{step}"].messages)
        return found

    def _use(self, theorem: Theorem, proofs: Mapping[str, str], idle_seconds: float) -> dict[str, Checked]:
        """Has the server check one theory for each proof, side by side.

        `idle_seconds`: it gives up on what has not changed for so long.

        Raises:
            ProverDied: there is no answer.
        """
        imports = theorem.header.strip() or IMPORTS
        with scratch_folder() as folder:
            for name, proof in proofs.items():
                text = f"theory {name} imports {imports}\nbegin\n\n{theorem.statement}\n{proof}\n\nend\n"
                (folder / f"{name}.thy").write_text(text, encoding="utf-8", errors="replace")
            place = {"session_id": self._session_id(), "theories": list(proofs), "master_dir": str(folder)}
            # Theories wait for each other where there are more than processors.
            seconds = idle_seconds * (1 + len(proofs)) + self._limits.start_seconds + _GRACE_SECONDS
            try:
                body = self._final("use_theories", seconds, {**place, "watchdog_timeout": idle_seconds})
            finally:
                with contextlib.suppress(ProverDied):
                    self._final("purge_theories", self._limits.start_seconds, place, asynchronous=False)
        return _read(body, list(proofs))

    def _session_id(self) -> str:
        if self._session is None:
            body = self._final(
                "session_start",
                self._limits.start_seconds + _GRACE_SECONDS,
                {"session": self._server.session, "dirs": list(self._server.folders)},
            )
            if not isinstance(body.get("session_id"), str):
                raise ProverDied(f"Isabelle's server starts no session: {body.get('message', body)}")
            self._session = body["session_id"]
        return self._session

    def _final(
        self, command: str, seconds: float, arguments: Mapping[str, Any], asynchronous: bool = True
    ) -> dict[str, Any]:
        """The body of the message that ends a command."""
        from isabelle_client import IsabelleClient

        client = IsabelleClient(self._server.address, self._server.port, self._server.password)
        text = f"{command} {json.dumps(arguments)}"
        try:
            messages = asyncio.run(
                asyncio.wait_for(client.execute_command(text, asynchronous=asynchronous), seconds)
            )
        except (TimeoutError, asyncio.TimeoutError):
            self._session = None
            raise ProverDied(f"{command}: no answer in {seconds:g} s") from None
        except (OSError, ValueError, EOFError, asyncio.IncompleteReadError) as error:
            self._session = None
            raise ProverDied(f"{command}: Isabelle's server does not answer ({error})") from None
        body = messages[-1].response_body
        return body if isinstance(body, dict) else {"message": str(body)}

    def close(self) -> None:
        """See `Checker.close`. The server goes on."""
        if self._session is not None:
            with contextlib.suppress(ProverDied):
                self._final("session_stop", self._limits.start_seconds, {"session_id": self._session})
            self._session = None


def _with_one(proof: str, step: int, calls: int, text: str) -> str:
    """The proof with `text` at one step and gaps at the others."""
    return isabelle_text.with_hammers_replaced(
        proof, [text if each == step else "sorry" for each in range(calls)]
    )


def _read(body: Mapping[str, Any], names: Sequence[str]) -> dict[str, Checked]:
    """The verdict on each theory. One that is not mentioned, or not finished, is not ok."""
    if "nodes" not in body:
        raise ProverDied(f"use_theories: {str(body.get('message', body))[:500]}")
    found = {name: Checked(False, (), ()) for name in names}
    for node in body["nodes"]:
        name = str(node.get("theory_name", "")).rpartition(".")[2]
        if name not in found:
            continue
        status = node.get("status", {})
        finished = bool(status.get("ok")) and not any(
            status.get(key) for key in ("unprocessed", "running", "failed", "canceled")
        )
        messages = node.get("messages", [])
        errors = tuple(_plain(each) for each in messages if each.get("kind") == "error")
        found[name] = Checked(finished, errors, tuple(_plain(each) for each in messages))
    return found


def _plain(message: Mapping[str, Any]) -> str:
    return str(message.get("message", "")).replace("\\<^here>", "")


def _suggestion(messages: Sequence[str]) -> str | None:
    """The first proof that sledgehammer proposes and that may stand in a proof."""
    for message in messages:
        match = _FOUND.search(message)
        if match is None:
            continue
        command = " ".join(match["command"].split())
        if isabelle_text.why_refused(command) is None and not isabelle_text.hammers(command):
            return command
    return None


def _first(errors: Sequence[str]) -> str:
    return " ".join(errors[0].split())[:500] if errors else ""


def _since(begun: float) -> float:
    return round(time.monotonic() - begun, 3)
