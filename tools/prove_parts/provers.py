# SPDX-License-Identifier: Apache-2.0
"""What every prover looks like from outside: Coq, Lean and Isabelle differ behind this and nowhere else.

A `Checker` judges whole proofs. A `Prover` can also take a proof tactic by tactic, which is what a search
needs. Both work on a `Theorem`, whose text is the user's and is never changed; a proof is text of a model and
is never trusted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


class BadStatement(Exception):
    """The prover does not accept the statement itself; the message is the prover's."""


class ProverDied(Exception):
    """The prover's process is gone, or did not answer any more and was killed. A new one can be started."""


@dataclass(frozen=True)
class Limits:
    """What a prover may use. Times are wall-clock time."""

    tactic_seconds: float = 10.0
    """One tactic."""
    start_seconds: float = 300.0
    """The start of a process, its imports and the statement. Mathlib takes a minute on a cold disk."""
    check_seconds: float = 300.0
    """The replay of one whole proof in a fresh process."""
    memory_bytes: int = 16 << 30
    """Address space of one process; Lean maps the whole of Mathlib into it."""
    output_bytes: int = 1 << 20
    """One answer; what prints more is ended."""


@dataclass(frozen=True)
class Theorem:
    """One statement to be proved."""

    name: str
    """The id in the data; it may differ from the name in the prover's language."""
    statement: str
    """The statement as its author wrote it, up to where the proof begins and without it."""
    header: str = ""
    """What has to come before: imports, opened namespaces, definitions."""

    @property
    def header_sha256(self) -> str:
        """Stands for the header in records, where it would be there once a line."""
        return hashlib.sha256(self.header.encode()).hexdigest()


@dataclass(frozen=True)
class State:
    """A point of a proof: how one gets there, and what is left to show."""

    path: tuple[str, ...]
    """The tactics from the statement on."""
    goals: str
    """All open goals as the prover prints them, without what changes from run to run. Equal text is an equal
    state; it is what a proposer is shown."""


OutcomeKind = Literal["open", "done", "error", "timeout", "forbidden"]


@dataclass(frozen=True)
class Outcome:
    """What came of one tactic."""

    kind: OutcomeKind
    """`open`: goals are left; `done`: none are, as far as the session can tell (only `check` decides);
    `error`: the prover refused it; `timeout`; `forbidden`: it was not sent to the prover at all."""
    state: State | None = None
    """What it led to, with `open` and with `done`, where its goals are empty."""
    message: str = ""
    """Of the prover, with `error`, and of ours with `forbidden`."""


@dataclass(frozen=True)
class Verdict:
    """What a fresh prover says of a whole proof."""

    ok: bool
    message: str = ""
    """Why not."""
    seconds: float = 0.0
    axioms: tuple[str, ...] = ()
    """What the proof rests on, where the prover can tell."""
    unsettled: bool = False
    """Whether only a time limit is why not: with more time the verdict may be another."""


class Checker(Protocol):
    """Judges whole proofs. Not shared between threads; a pool makes one for each."""

    language: str
    """`coq`, `lean` or `isabelle`."""

    def check(self, theorem: Theorem, proof: str) -> Verdict:
        """Replays the proof below the theorem's own text in a fresh process with allowed axioms only.

        Args:
            proof: all that comes after the statement. Coq: sentences between `Proof.` and `Qed.`; Lean:
                tactics as they stand below `by`; Isabelle: from `proof`, `by` or `apply` to the end.

        Raises:
            BadStatement: the statement is refused without any proof.
            ProverDied: the prover could not be run; nothing is known of the proof.
        """
        ...

    def close(self) -> None:
        """Ends whatever runs. May be called twice."""
        ...


class Session(Protocol):
    """One theorem, open in one living prover."""

    @property
    def root(self) -> State:
        """Where the proof begins."""
        ...

    @property
    def alive(self) -> bool:
        """Whether its process runs. One that had to be killed over a tactic does not, and a new session has
        to be opened."""
        ...

    def apply(self, state: State, tactic: str) -> Outcome:
        """Tries one tactic at a state, which stays as it is.

        A tactic is one sentence; anything that would end it and go on with a command is `forbidden`.

        Raises:
            ProverDied: the process is gone; the state can be reached again in a new session.
        """
        ...

    def close(self) -> None:
        """Ends the session's process. May be called twice."""
        ...


class Prover(Checker, Protocol):
    """A checker that can also go step by step."""

    def open(self, theorem: Theorem) -> Session:
        """Starts a process and states the theorem.

        Raises:
            BadStatement: the prover refuses it.
            ProverDied: the process ended or did not answer in `start_seconds`.
        """
        ...

    def script(self, tactics: Sequence[str]) -> str:
        """The tactics of a search as a proof that `check` takes."""
        ...


MakeProver = Callable[[], Prover]
MakeChecker = Callable[[], Checker]
