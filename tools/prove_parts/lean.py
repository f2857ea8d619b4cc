# SPDX-License-Identifier: Apache-2.0
"""Lean 4 through the community's REPL, which lean-interact starts: JSON objects in, JSON objects out.

The REPL numbers environments (after commands) and proof states (after tactics), and any of them can be gone
on from. Lean has no time limit for a tactic but heartbeats; one that takes longer costs the process, and the
next tactic a new one with all its imports.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.neox_arguments.errors import UserError
from tools.prove_parts import lean_text
from tools.prove_parts.bounded_process import NoAnswer
from tools.prove_parts.provers import BadStatement, Limits, Outcome, ProverDied, State, Theorem, Verdict

if TYPE_CHECKING:
    from lean_interact import LeanREPLConfig

# What stands before statements that bring nothing: as in miniF2F's Lean 4 edition.
HEADER = "import Mathlib\nopen BigOperators Real Nat Topology"
# The three of Lean's own logic.
STANDARD_AXIOMS = frozenset({"propext", "Classical.choice", "Quot.sound"})
_AXIOMS = re.compile(
    r"'[^\n]+' (?:depends on axioms:\s*\[(?P<axioms>[^\]]*)\]|does not depend on any axioms)\s*"
)


def find_lean(repl: Path | None, project: Path | None, lake: Path, limits: Limits) -> LeanREPLConfig:
    """The REPL and the project that provers are started with; nothing is downloaded or built.

    Raises:
        UserError: lean-interact is not installed, or something is not where it was said to be.
    """
    try:
        from lean_interact import LeanREPLConfig, LocalProject
        from lean_interact.utils import check_lake
    except ImportError:
        raise UserError(
            "--prover=lean: lean-interact is not installed; pip install -r requirements/requirements-eval.txt"
        ) from None
    if repl is None:
        raise UserError("--prover=lean: needs a REPL; build leanprover-community/repl and set --lean-repl")
    program = repl / ".lake" / "build" / "bin" / "repl"
    if not program.is_file():
        raise UserError(f"--lean-repl={repl}: has no {program.relative_to(repl)}; run `lake build` there")
    if project is not None and not (project / "lean-toolchain").is_file():
        raise UserError(f"--lean-project={project}: has no lean-toolchain; give the folder of a Lean project")
    try:
        check_lake(lake)
        return LeanREPLConfig(
            project=None
            if project is None
            else LocalProject(directory=project, lake_path=lake, auto_build=False),
            local_repl_path=repl.resolve(),
            build_repl=False,
            lake_path=lake,
            memory_hard_limit_mb=limits.memory_bytes >> 20,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"--prover=lean: {error}; correct --lake, --lean-repl or --lean-project") from None


class _Repl:
    """One REPL process."""

    def __init__(self, config: LeanREPLConfig) -> None:
        from lean_interact import LeanServer

        try:
            self._server = LeanServer(config)
        except OSError as error:  # ChildProcessError included
            raise ProverDied(f"the REPL cannot be started: {error}") from error

    @property
    def pid(self) -> int:
        process = self._server._proc
        assert process is not None
        return int(process.pid)

    @property
    def alive(self) -> bool:
        return bool(self._server.is_alive())

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            NoAnswer, ProverDied: it is closed then.
        """
        try:
            answer = self._server.run_dict(dict(request), timeout=seconds)
        except TimeoutError as error:
            self.close()
            raise NoAnswer(f"no answer in {seconds:g} s") from error
        except (OSError, json.JSONDecodeError, ValueError) as error:
            self.close()
            raise ProverDied(f"the REPL ended: {str(error)[:300]}") from error
        if not isinstance(answer, dict):
            self.close()
            raise ProverDied("the REPL answers no JSON object")
        return answer

    def command(self, text: str, environment: int | None, seconds: float) -> dict[str, Any]:
        request: dict[str, Any] = {"cmd": text}
        if environment is not None:
            request["env"] = environment
        return self.ask(request, seconds)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.kill()


def _errors(answer: Mapping[str, Any]) -> str:
    """The messages of errors in an answer, empty if there are none."""
    if "message" in answer:
        return " ".join(str(answer["message"]).split())[:500]
    found = [each.get("data", "") for each in answer.get("messages", []) if each.get("severity") == "error"]
    return " ".join(" ".join(map(str, found)).split())[:500] if found else ""


def _uses_sorry(answer: Mapping[str, Any]) -> bool:
    said = " ".join(str(each.get("data", "")) for each in answer.get("messages", []))
    return (
        bool(answer.get("sorries"))
        or "declaration uses 'sorry'" in said
        or "declaration uses `sorry`" in said
    )


def _with_header(repl: _Repl, theorem: Theorem, seconds: float) -> int | None:
    """The environment after the header; None where there is no header.

    Raises:
        BadStatement: Lean refuses it.
    """
    if not theorem.header.strip():
        return None
    answer = repl.command(theorem.header, None, seconds)
    if (said := _errors(answer)) or not isinstance(answer.get("env"), int):
        raise BadStatement(f"the header: {said or 'no environment came of it'}")
    return int(answer["env"])


class LeanSession:
    """One theorem in one REPL."""

    def __init__(
        self, config: LeanREPLConfig, limits: Limits, theorem: Theorem, trusts_compiler: bool
    ) -> None:
        self._limits, self._trusts_compiler = limits, trusts_compiler
        self._repl = _Repl(config)
        try:
            environment = _with_header(self._repl, theorem, limits.start_seconds)
            answer = self._repl.command(f"{theorem.statement} := by sorry", environment, limits.start_seconds)
            sorries = answer.get("sorries") or []
            if (
                (said := _errors(answer))
                or len(sorries) != 1
                or not isinstance(sorries[0].get("proofState"), int)
            ):
                raise BadStatement(said or "it leaves no goal to be proved")
            self.root = State((), str(sorries[0]["goal"]))
            self._numbers: dict[tuple[str, ...], int] = {(): sorries[0]["proofState"]}
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._repl.pid

    @property
    def alive(self) -> bool:
        """See `Session.alive`."""
        return self._repl.alive

    def apply(self, state: State, tactic: str) -> Outcome:
        """See `Session.apply`."""
        tactic = tactic.strip()
        reason = lean_text.why_forbidden(tactic, self._trusts_compiler) if tactic else "is empty"
        if reason is not None:
            return Outcome("forbidden", message=reason)
        try:
            number = self._number_of(state.path)
            if number is None:
                return Outcome("error", message="the state could not be reached again")
            answer = self._ask(number, tactic)
        except NoAnswer as error:
            return Outcome("timeout", message=str(error))
        said = _errors(answer)
        status = str(answer.get("proofStatus", ""))
        if said or _uses_sorry(answer) or status.startswith("Error"):
            return Outcome("error", message=said or status or "it uses sorry")
        goals = [str(goal) for goal in answer.get("goals", [])]
        path = (*state.path, tactic)
        if goals:
            self._numbers[path] = int(answer["proofState"])
            return Outcome("open", State(path, "\n\n".join(goals)))
        if status.startswith("Incomplete"):
            return Outcome("error", message=status)
        return Outcome("done", State(path, ""))

    def _ask(self, number: int, tactic: str) -> dict[str, Any]:
        answer = self._repl.ask({"tactic": tactic, "proofState": number}, self._limits.tactic_seconds)
        if "message" not in answer and not isinstance(answer.get("proofState"), int):
            return {"message": f"an answer without proofState: {str(answer)[:200]}"}
        return answer

    def _number_of(self, path: tuple[str, ...]) -> int | None:
        """The REPL's number of a state. One that another process has reached is reached again here."""
        at = len(path)
        while path[:at] not in self._numbers:
            at -= 1
        for length in range(at + 1, len(path) + 1):
            answer = self._ask(self._numbers[path[: length - 1]], path[length - 1])
            if _errors(answer):
                return None
            self._numbers[path[:length]] = int(answer["proofState"])
        return self._numbers[path]

    def close(self) -> None:
        """See `Session.close`."""
        self._repl.close()


class LeanProver:
    """See `Prover`."""

    language = "lean"

    def __init__(self, config: LeanREPLConfig, limits: Limits, allowed_axioms: Sequence[str] = ()) -> None:
        """`allowed_axioms`: full names, beside `STANDARD_AXIOMS`."""
        self._config, self._limits = config, limits
        self._allowed = STANDARD_AXIOMS | set(allowed_axioms)
        self._trusts_compiler = lean_text.COMPILER_AXIOM in self._allowed

    def open(self, theorem: Theorem) -> LeanSession:
        """See `Prover.open`."""
        return LeanSession(self._config, self._limits, theorem, self._trusts_compiler)

    def script(self, tactics: Sequence[str]) -> str:
        """See `Prover.script`."""
        return "\n".join(tactics)

    def check(self, theorem: Theorem, proof: str) -> Verdict:
        """See `Checker.check`."""
        begun = time.monotonic()
        reason = lean_text.why_forbidden(proof, self._trusts_compiler)
        if reason is not None:
            return Verdict(False, f"forbidden: {reason}")
        repl = _Repl(self._config)
        try:
            refusal, axioms = self._judge(repl, theorem, proof)
        except NoAnswer as error:
            return Verdict(False, str(error), round(time.monotonic() - begun, 3), unsettled=True)
        finally:
            repl.close()
        return Verdict(refusal is None, refusal or "", round(time.monotonic() - begun, 3), axioms)

    def _judge(self, repl: _Repl, theorem: Theorem, proof: str) -> tuple[str | None, tuple[str, ...]]:
        """Why a proof does not count (None: it does), and the axioms under it."""
        try:
            name = lean_text.stated_name(theorem.statement)
        except ValueError as error:
            raise BadStatement(str(error)) from None
        environment = _with_header(repl, theorem, self._limits.start_seconds)
        stated = repl.command(f"{theorem.statement} := by sorry", environment, self._limits.start_seconds)
        if (said := _errors(stated)) or not isinstance(stated.get("env"), int):
            raise BadStatement(said or "no environment came of it")
        text = f"{theorem.statement} := by\n{lean_text.indented(proof)}"
        proved = repl.command(text, environment, self._limits.check_seconds)
        if said := _errors(proved):
            return said, ()
        if _uses_sorry(proved) or not isinstance(proved.get("env"), int):
            return "it uses sorry", ()
        if self._type_of(repl, name, stated["env"]) != self._type_of(repl, name, proved["env"]):
            return "what was proved is not what was stated", ()
        # A command of its own: nothing that a proof prints can be taken for Lean's word.
        answer = repl.command(f"#print axioms {name}", proved["env"], self._limits.check_seconds)
        said = "\n".join(str(each.get("data", "")) for each in answer.get("messages", []))
        found = _AXIOMS.fullmatch(said)
        if _errors(answer) or found is None:
            return f"its axioms are not known: {_errors(answer) or said[:200]}", ()
        axioms = tuple(word for word in re.split(r"[,\s]+", found["axioms"] or "") if word)
        refused = [axiom for axiom in axioms if axiom not in self._allowed]
        return (f"rests on what is not allowed: {', '.join(refused)}" if refused else None), axioms

    def _type_of(self, repl: _Repl, name: str, environment: int) -> str:
        answer = repl.command(
            f"set_option pp.all true in\n#check @{name}", environment, self._limits.check_seconds
        )
        said = [str(each.get("data", "")) for each in answer.get("messages", [])]
        if _errors(answer) or not said:
            raise BadStatement(f"{name} cannot be looked up after its statement: {_errors(answer)}")
        return "\n".join(said)

    def close(self) -> None:
        """Nothing outlives a call."""
