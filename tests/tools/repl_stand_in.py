# SPDX-License-Identifier: Apache-2.0
"""Stands in for Lean's REPL: speaks its JSON protocol, and knows the recorded states of recorded proofs only.

Run as a program with a JSON file of records: [{"statement", "root", "steps": [[state, tactic, next state]]}],
where a next state of "" is the end. Some tactics are made up, to see what a prover's client does with them.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

MADE_UP = {
    "cheat_axiom": "ends every goal by an axiom that is nobody's",
    "cheat_sorry": "ends every goal, by a sorry that only shows when the proof is read whole",
    "spoof_axioms": "as cheat_axiom, and prints what a clean proof would",
    "open_sorry": "ends every goal by a sorry, and says so",
    "hang": "does not answer",
    "die": "ends the process",
    "die_once": "ends the process unless the file beside the records is there; makes it",
}


class Repl:
    """Environments and proof states by number."""

    def __init__(self, records: Path) -> None:
        self._once = records.with_suffix(".once")
        self._known = json.loads(records.read_text(encoding="utf-8"))
        self._environments: list[dict[str, str]] = []  # name → axioms as printed
        self._states: list[tuple[str, str]] = []  # statement, goals

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if "cmd" in request:
            return self._command(request["cmd"], request.get("env"))
        statement, goals = self._states[request["proofState"]]
        after = self._step(statement, goals, request["tactic"])
        if after is None:
            return {"message": f"Lean error:\n{request['tactic']} failed on\n{goals}"}
        self._states.append((statement, after))
        found: dict[str, Any] = {
            "proofState": len(self._states) - 1,
            "goals": after.split("\n\n") if after else [],
        }
        found["proofStatus"] = "Incomplete: open goals remain" if after else "Completed"
        if request["tactic"] == "open_sorry":
            found |= {
                "sorries": [{"proofState": 0, "goal": goals}],
                "proofStatus": "Incomplete: contains sorry",
            }
        return found

    def _step(self, statement: str, goals: str, tactic: str) -> str | None:
        if tactic in ("cheat_axiom", "cheat_sorry", "spoof_axioms", "open_sorry"):
            return ""
        if tactic == "hang":
            time.sleep(600)
        if tactic == "die" or (tactic == "die_once" and not self._once.exists()):
            self._once.touch()
            os._exit(9)
        for record in self._known:
            if record["statement"] == statement:
                for before, known_tactic, after in record["steps"]:
                    if (before, known_tactic) == (goals, tactic):
                        return str(after)
        return None

    def _command(self, text: str, environment: int | None) -> dict[str, Any]:
        names = dict(self._environments[environment]) if environment is not None else {}
        asked = re.search(r"#(check @|print axioms )(\S+)\Z", text)
        if asked:
            if asked[2] not in names:
                return self._error(f"unknown constant '{asked[2]}'")
            axioms, _, statement = names[asked[2]].partition("\n")
            said = axioms if asked[1].startswith("print") else f"{asked[2]} : {statement}"
            return {"env": self._new(names), "messages": [_message("info", said)]}
        if "theorem" not in text:
            return (
                {"env": self._new(names)} if "Unknown" not in text else self._error("unknown module Unknown")
            )
        statement, _, proof = text.partition(" := by")
        record = next((each for each in self._known if each["statement"] == statement), None)
        name = re.search(r"theorem (\S+)", statement)
        if record is None or name is None:
            return self._error("this is no theorem that was recorded")
        return self._theorem(record, name[1], proof, names)

    def _theorem(
        self, record: dict[str, Any], name: str, proof: str, names: dict[str, str]
    ) -> dict[str, Any]:
        statement = record["statement"]
        axioms, messages, goals = ["propext", "Classical.choice", "Quot.sound"], [], record["root"]
        if proof.strip() == "sorry":
            self._states.append((statement, goals))
            names[name] = f"'{name}' depends on axioms: [sorryAx]\n{statement}"
            sorries = [{"proofState": len(self._states) - 1, "goal": goals, "pos": {"line": 1, "column": 0}}]
            warning = _message("warning", "declaration uses 'sorry'")
            return {"env": self._new(names), "sorries": sorries, "messages": [warning]}
        for line in proof.strip("\n").splitlines():
            assert line.startswith("  "), "a proof stands below by"
            after = self._step(statement, goals, line[2:])
            if after is None:
                return self._error(f"{line.strip()} failed")
            goals = after
            if line[2:] == "cheat_sorry":
                messages.append(_message("warning", "declaration uses 'sorry'"))
            if line[2:] in ("cheat_axiom", "spoof_axioms"):
                axioms.append("easy")
            if line[2:] == "spoof_axioms":
                messages.append(_message("info", f"'{name}' depends on axioms: [propext]"))
        if goals:
            return self._error(f"unsolved goals\n{goals}")
        names[name] = f"'{name}' depends on axioms: [{', '.join(axioms)}]\n{statement}"
        return {"env": self._new(names), "messages": messages}

    def _new(self, names: dict[str, str]) -> int:
        self._environments.append(names)
        return len(self._environments) - 1

    def _error(self, text: str) -> dict[str, Any]:
        return {"env": self._new({}), "messages": [_message("error", text)]}


def _message(severity: str, text: str) -> dict[str, Any]:
    return {"severity": severity, "pos": {"line": 1, "column": 0}, "data": text}


def install(folder: Path, records: list[dict[str, Any]]) -> list[str]:
    """A folder that looks like a built REPL, and a lake that runs it; returns the options that name them."""
    (folder / "records.json").write_text(json.dumps(records), encoding="utf-8")
    program = folder / "repl" / ".lake" / "build" / "bin" / "repl"
    program.parent.mkdir(parents=True)
    lake = folder / "lake"
    lake.write_text('#!/bin/sh\nif [ "$1" = env ]; then shift; exec "$@"; fi\necho Lake stand-in\n')
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {__file__} "{folder / "records.json"}"\n')
    (folder / "repl" / "lean-toolchain").write_text("leanprover/lean4:v4.9.0\n")
    for path in (lake, program):
        path.chmod(0o755)
    return ["--prover", "lean", "--lean-repl", str(folder / "repl"), "--lake", str(lake)]


def main() -> None:
    repl, lines = Repl(Path(sys.argv[1])), []
    for line in sys.stdin:
        if line.strip():
            lines.append(line)
        elif lines:  # a request ends with an empty line
            print(
                json.dumps(repl.answer(json.loads("".join(lines))), indent=1, ensure_ascii=False), flush=True
            )
            print(flush=True)
            lines = []


if __name__ == "__main__":
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    main()
