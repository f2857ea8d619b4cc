# SPDX-License-Identifier: Apache-2.0
"""Whole proofs that a model wrote: where they are read from, how one is judged, what is kept of the
verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval_tasks.results.json_lines import read_lines
from eval_tasks.results.samples import Sample, iterate_samples, tasks_in
from eval_tasks.runs.catalogue import catalogue
from megatron.neox_arguments.errors import UserError, shown
from tools.prove_parts.provers import BadStatement, Checker, ProverDied, Theorem
from tools.prove_parts.records import ProofRun
from tools.prove_parts.theorems import without_proof

ATTEMPTS = "attempts.jsonl"
REFUSED, TIMED_OUT, _DIED = "refused", "timed out", "prover died"
# Where the next example of a prompt would begin.
_ENDS = ("\n\n\n", "\nInformal:", "\nCorrected:")
# A prover that dies is tried again with a new process.
_TRIES = 2
_KINDS: Mapping[str, tuple[type, ...]] = {
    "theorem": (str,), "statement": (str,), "header_sha256": (str,), "round": (int,), "sample": (int,),
    "ok": (bool,), "status": (str,), "message": (str,), "seconds": (int, float), "proof": (str,),
}  # fmt: skip


@dataclass(frozen=True)
class Attempt:
    """One proof of one theorem. `round` is 0 for the first, then one more for each round of repair."""

    theorem: Theorem
    round: int
    sample: int
    proof: str
    source: Sample = field(repr=False)

    @property
    def key(self) -> str:
        return f"{self.theorem.name} {self.round} {self.sample}"


def read_attempts(places: Sequence[Path], language: str, header: str) -> list[Attempt]:
    """The proofs of each place, which is a results folder of evaluate.py or a file of samples, as one round
    each.

    Args:
        header: for theorems that bring none.

    Raises:
        UserError: a place has no samples or several tasks, a line is broken, or a theorem has two statements.
    """
    found: list[Attempt] = []
    statements: dict[str, Theorem] = {}
    for number, place in enumerate(places):
        for sample in iterate_samples(_file_of(place, language)):
            if sample.generation is None:
                raise UserError(f"{place}: item={sample.item}: has no generation; give samples of proofs")
            name = str(sample.more.get("name") or sample.item)
            theorem = Theorem(
                name, without_proof(sample.reference, language), str(sample.more.get("header") or header)
            )
            if statements.setdefault(name, theorem) != theorem:
                raise UserError(
                    f"{place}: {name} has another statement than before; give rounds of the same theorems"
                )
            found.append(Attempt(theorem, number, sample.sample, written_proof(sample.generation), sample))
    return found


def _file_of(place: Path, language: str) -> Path:
    if place.is_file():
        return place
    known = catalogue()
    names = [name for name in tasks_in(place) if name in known and known[name].prover == language]
    if len(names) != 1:
        have = ", ".join(names) or "none"
        raise UserError(
            f"{place}: tasks with proofs for {language}: {have}; give the file samples_TASK.jsonl"
        )
    return place / f"samples_{names[0]}.jsonl"


def written_proof(generation: str) -> str:
    """The proof in a generation: up to where the next example would begin."""
    for end in _ENDS:
        generation = generation.split(end)[0]
    return generation.strip("\n").rstrip()


def judged(checker: Checker, attempt: Attempt, stopped: Callable[[], bool]) -> dict[str, Any]:
    """The line of an attempt.

    `status` is `proved`, `refused`, `timed out`, `bad statement` or `prover died`.
    """
    line: dict[str, Any] = {
        "theorem": attempt.theorem.name, "statement": attempt.theorem.statement,
        "header_sha256": attempt.theorem.header_sha256, "round": attempt.round, "sample": attempt.sample,
        "ok": False, "status": REFUSED, "message": "", "seconds": 0.0, "proof": attempt.proof, "axioms": [],
    }  # fmt: skip
    for number in range(_TRIES):
        try:
            verdict = checker.check(attempt.theorem, attempt.proof)
        except BadStatement as error:
            return {**line, "status": "bad statement", "message": str(error)}
        except ProverDied as error:
            if number + 1 < _TRIES and not stopped():
                continue
            return {**line, "status": _DIED, "message": str(error)}
        found = {"ok": verdict.ok, "message": verdict.message, "seconds": verdict.seconds}
        status = "proved" if verdict.ok else TIMED_OUT if verdict.unsettled else REFUSED
        return {**line, **found, "status": status, "axioms": list(verdict.axioms)}
    raise AssertionError


class AttemptRun(ProofRun):
    """The folder of a run: `settings.json`, and `attempts.jsonl` with one line an attempt, appended as they
    come."""

    FILE = ATTEMPTS

    @staticmethod
    def is_unsettled(line: Mapping[str, Any]) -> bool:
        """Whether a time limit or a death ended it."""
        return line["status"] in (TIMED_OUT, _DIED)

    @staticmethod
    def read(path: Path) -> dict[str, dict[str, Any]]:
        """key → line.

        Raises:
            UserError: the file cannot be read, or a line is broken or there twice.
        """
        found: dict[str, dict[str, Any]] = {}
        for number, line in read_lines(path):
            for key, kinds in _KINDS.items():
                if not isinstance(line.get(key), kinds):
                    raise UserError(
                        f"{path}:{number}: {key}={shown(line.get(key))}: is no {kinds[0].__name__}; repair "
                        "or remove the line"
                    )
            name = f"{line['theorem']} {line['round']} {line['sample']}"
            if found.setdefault(name, line) is not line:
                raise UserError(f"{path}:{number}: {name}: is there twice; remove a line")
        return found

    def left(self, attempts: Iterable[Attempt]) -> list[Attempt]:
        """Those without a verdict.

        Raises:
            UserError: one has a verdict on another proof, or below another statement or header.
        """
        waiting = []
        for attempt in attempts:
            line = self.done.get(attempt.key)
            if line is None:
                waiting.append(attempt)
                continue
            self.agree_on(attempt.theorem, line)
            if line["proof"] != attempt.proof:
                raise UserError(
                    f"--output={self.folder}: has a verdict on another proof of {attempt.key}; choose "
                    "another folder, or add --overwrite"
                )
        return waiting
