# SPDX-License-Identifier: Apache-2.0
"""Best-first search for a proof, tactic by tactic, as the Llemma paper has it (section 3.4 and appendix).

The state of least cost goes first; a state's cost is the sum, over the tactics that led to it, of minus the
mean log-probability of a tactic's tokens. A goal is marked seen when it is pushed, ties go to what was pushed
first, and a proof counts only when a fresh prover has replayed it.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tools.prove_parts.proposers import Candidate, Proposer, TooLong
from tools.prove_parts.provers import BadStatement, Outcome, Prover, ProverDied, State, Theorem, Verdict
from tools.prove_parts.steady_session import SteadySession

# Llemma: 100 expansions, 600 s a theorem.
EXPANSIONS = 100
THEOREM_SECONDS = 600.0
# What the tree of a record keeps of each text.
_GOALS_CHARACTERS, _MESSAGE_CHARACTERS = 4000, 300


class Stopped(Exception):
    """The user has stopped the run; nothing is recorded of this theorem."""


@dataclass(frozen=True)
class SearchLimits:
    """When a theorem is given up."""

    expansions: int = EXPANSIONS
    seconds: float = THEOREM_SECONDS


@dataclass(order=True)
class _Entry:
    """A state that waits. Compared by cost, then by age; never by what it holds."""

    cost: float
    age: int
    state: State = field(compare=False)
    node: int = field(compare=False)


class _Found(Exception):
    def __init__(self, tactics: tuple[str, ...], verdict: Verdict, cost: float) -> None:
        super().__init__()
        self.tactics, self.verdict, self.cost = tactics, verdict, cost


class _OutOfTime(Exception):
    pass


class _Search:
    """One theorem's search under way: the queue, what was seen, the tree."""

    def __init__(
        self,
        prover: Prover,
        theorem: Theorem,
        proposer: Proposer,
        limits: SearchLimits,
        stopped: Callable[[], bool],
    ) -> None:
        self._prover, self._theorem, self._proposer = prover, theorem, proposer
        self._limits, self._stopped = limits, stopped
        self.begun = time.monotonic()
        self.expansions = 0
        self.rejected: list[dict[str, Any]] = []
        self.tree: list[dict[str, Any]] = []
        self._ages = itertools.count()
        self._queue: list[_Entry] = []
        self._seen: set[str] = set()

    def run(self, session: SteadySession) -> str:
        """Searches; returns why it ended without a proof.

        Raises:
            _Found: it ended with one.
            ProverDied, Stopped: as they say.
        """
        root = session.root
        self._push(0.0, root, self._note(None, None, 0.0, Outcome("open", root)))
        self.tree[0]["goals"] = root.goals[:_GOALS_CHARACTERS]
        while self._queue:
            if self.expansions == self._limits.expansions:
                return "expansions"
            try:
                self._expand(session, heapq.heappop(self._queue))
            except _OutOfTime:
                return "timeout"
        return "search_ended"

    def _push(self, cost: float, state: State, node: int) -> None:
        self._seen.add(state.goals)
        heapq.heappush(self._queue, _Entry(cost, next(self._ages), state, node))

    def _expand(self, session: SteadySession, entry: _Entry) -> None:
        self._go_on()
        self.tree[entry.node]["expanded"] = self.expansions
        self.expansions += 1
        try:
            candidates = self._proposer.propose(entry.state.goals)
        except TooLong as error:
            self.tree[entry.node]["message"] = f"too long for the model: {error}"[:_MESSAGE_CHARACTERS]
            return
        for candidate in candidates:
            self._go_on()
            outcome = session.apply(entry.state, candidate.tactic)
            cost = entry.cost - candidate.logprob
            node = self._note(entry.node, candidate, cost, outcome)
            if outcome.state is None:
                continue
            if outcome.kind == "done":
                self._judge(outcome.state.path, cost, node)
            elif outcome.state.goals in self._seen:
                self.tree[node]["outcome"] = "seen"
            else:
                self.tree[node]["goals"] = outcome.state.goals[:_GOALS_CHARACTERS]
                self._push(cost, outcome.state, node)

    def _go_on(self) -> None:
        if self._stopped():
            raise Stopped
        if time.monotonic() - self.begun > self._limits.seconds:
            raise _OutOfTime

    def _note(self, parent: int | None, candidate: Candidate | None, cost: float, outcome: Outcome) -> int:
        """Adds a node to the tree; returns its number, which is its place in the list."""
        node: dict[str, Any] = {"parent": parent, "outcome": outcome.kind, "cost": round(cost, 6)}
        if candidate is not None:
            node["tactic"], node["logprob"] = candidate.tactic, round(candidate.logprob, 6)
        if outcome.message:
            node["message"] = outcome.message[:_MESSAGE_CHARACTERS]
        self.tree.append(node)
        return len(self.tree) - 1

    def _judge(self, tactics: tuple[str, ...], cost: float, node: int) -> None:
        """Has the proof replayed whole.

        Raises:
            _Found: it is one.
        """
        script = self._prover.script(tactics)
        try:
            verdict = self._prover.check(self._theorem, script)
        except (BadStatement, ProverDied) as error:
            died = isinstance(error, ProverDied)
            verdict = Verdict(False, f"could not be replayed: {error}", unsettled=died)
        if verdict.ok:
            self.tree[node]["outcome"] = "proved"
            raise _Found(tactics, verdict, cost)
        self.tree[node].update(outcome="rejected", message=verdict.message[:_MESSAGE_CHARACTERS])
        self.rejected.append({"proof": script, "message": verdict.message, "unsettled": verdict.unsettled})


def search(
    prover: Prover,
    theorem: Theorem,
    proposer: Proposer,
    limits: SearchLimits,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Searches for a proof of one theorem; returns its line of `proofs.jsonl`.

    Raises:
        Stopped: `stopped` said so.
        UserError: the proposer cannot go on.
    """
    under_way = _Search(prover, theorem, proposer, limits, stopped)
    session: SteadySession | None = None
    found: _Found | None = None
    message = ""
    try:
        session = SteadySession(prover, theorem)
        status = under_way.run(session)
    except _Found as proof:
        status, found = "proved", proof
    except BadStatement as error:
        status, message = "bad_statement", str(error)
    except ProverDied as error:
        status, message = "prover_died", str(error)
    finally:
        if session is not None:
            session.close()
    return {
        "theorem": theorem.name,
        "statement": theorem.statement,
        "header_sha256": theorem.header_sha256,
        "proved": found is not None,
        "proof": None if found is None else prover.script(found.tactics),
        "tactics": None if found is None else list(found.tactics),
        "cost": None if found is None else round(found.cost, 6),
        "axioms": [] if found is None else list(found.verdict.axioms),
        "status": status,
        "message": message[:_MESSAGE_CHARACTERS],
        "seconds": round(time.monotonic() - under_way.begun, 3),
        "expansions": under_way.expansions,
        "tried": max(0, len(under_way.tree) - 1),
        "rejected": under_way.rejected,
        "deaths": 0 if session is None else session.deaths,
        "tree": under_way.tree or None,
    }
