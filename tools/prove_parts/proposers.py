# SPDX-License-Identifier: Apache-2.0
"""Where tactics come from: what a proposer is, and the one that needs no model, a list."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from megatron.neox_arguments.errors import UserError


@dataclass(frozen=True)
class Candidate:
    """A tactic to be tried, and the mean log-probability of its tokens (natural logarithm)."""

    tactic: str
    logprob: float


class TooLong(Exception):
    """The goals do not fit into the model's context: nothing can be proposed for this state."""


class Proposer(Protocol):
    """Proposes tactics for a state. Shared by all workers, so it must bear several threads."""

    def propose(self, goals: str) -> list[Candidate]:
        """Tactics for the goals, the likeliest first, each once. Equal goals get equal tactics, whatever else
        goes on: a search that was stopped and goes on is the search that was not stopped.

        Raises:
            TooLong: this state cannot be asked about.
            UserError: the model cannot be asked (any more).
        """
        ...

    def settings(self) -> Mapping[str, Any]:
        """What another run must have equal to go on from this one."""
        ...

    def close(self) -> None:
        """Lets go of what it holds. May be called twice."""
        ...


def unique_best_first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Each tactic once with its best log-probability, the likeliest first; empty ones are left out."""
    best: dict[str, float] = {}
    for candidate in candidates:
        tactic = candidate.tactic.strip()
        if tactic and not math.isnan(candidate.logprob):
            best[tactic] = max(candidate.logprob, best.get(tactic, -math.inf))
    ranked = sorted(best.items(), key=lambda item: -item[1])
    return [Candidate(tactic, logprob) for tactic, logprob in ranked]


class FixedTactics:
    """The same tactics at every state, in the order of a file.

    All are equally likely, so a search tries them on the statement first, then on what one tactic has led to,
    and so on.
    """

    def __init__(self, tactics: Sequence[str]) -> None:
        assert tactics
        self._candidates = [Candidate(tactic, -math.log(len(tactics))) for tactic in dict.fromkeys(tactics)]

    def propose(self, goals: str) -> list[Candidate]:
        """See `Proposer.propose`."""
        return self._candidates

    def settings(self) -> Mapping[str, Any]:
        """See `Proposer.settings`."""
        return {"proposer": "tactics", "tactics": [candidate.tactic for candidate in self._candidates]}

    def close(self) -> None:
        """Nothing is held."""


def read_tactics(path: Path) -> FixedTactics:
    """A file with one tactic a line; empty lines and lines that begin with `#` are passed over.

    Raises:
        UserError: it cannot be read, or has none.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--tactics={path}: cannot be read ({error})") from None
    tactics = [line for line in lines if line and not line.startswith("#")]
    if not tactics:
        raise UserError(f"--tactics={path}: has no tactic; write one a line")
    return FixedTactics(tactics)
