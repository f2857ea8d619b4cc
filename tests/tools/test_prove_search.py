# SPDX-License-Identifier: Apache-2.0
"""Best-first search on graphs made up for it, against a search that looks through all that wait each time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.prove_parts.proposers import Candidate, FixedTactics, TooLong, unique_best_first
from tools.prove_parts.provers import BadStatement, Outcome, ProverDied, State, Theorem, Verdict
from tools.prove_parts.search import SearchLimits, Stopped, search

Edges = Mapping[str, Mapping[str, str]]
GOAL = "goal"
THEOREM = Theorem("made up", "statement")


class Graph:
    """A prover whose states are the nodes of a graph; '' is the end. `false_ends` do not pass the replay."""

    language = "graph"

    def __init__(self, edges: Edges, false_ends: Sequence[tuple[str, ...]] = ()) -> None:
        self.edges, self.false_ends = edges, set(false_ends)
        self.root, self.alive, self.deaths_left = State((), GOAL), True, 0

    def open(self, theorem: Theorem) -> Graph:
        self.alive = True
        return self

    def apply(self, state: State, tactic: str) -> Outcome:
        if self.deaths_left:
            self.deaths_left -= 1
            self.alive = False
            raise ProverDied("made up")
        after = self.edges.get(state.goals, {}).get(tactic)
        path = (*state.path, tactic)
        if after is None:
            return Outcome("error", message="no edge")
        return Outcome("open", State(path, after)) if after else Outcome("done", State(path, ""))

    def script(self, tactics: Sequence[str]) -> str:
        return " ".join(tactics)

    def check(self, theorem: Theorem, proof: str) -> Verdict:
        return Verdict(tuple(proof.split()) not in self.false_ends, "false")

    def close(self) -> None:
        pass


class Scores:
    """Proposes what a table says for each goal."""

    def __init__(self, table: Mapping[str, Mapping[str, float]]) -> None:
        self.table, self.asked = table, list[str]()

    def propose(self, goals: str) -> list[Candidate]:
        self.asked.append(goals)
        return [Candidate(tactic, score) for tactic, score in self.table.get(goals, {}).items()]

    def settings(self) -> Mapping[str, Any]:
        return {}

    def close(self) -> None:
        pass


def expansions_by_looking(edges: Edges, table: Mapping[str, Mapping[str, float]], most: int) -> list[str]:
    """The order of expansions by the rule alone: the least cost, then the oldest, of all that wait."""
    waiting: list[tuple[float, int, str]] = [(0.0, 0, GOAL)]
    seen, age = {GOAL}, 1
    order: list[str] = []
    while waiting and len(order) < most:
        first = min(waiting, key=lambda entry: entry[:2])
        waiting.remove(first)
        order.append(first[2])
        for tactic, score in table.get(first[2], {}).items():
            after = edges.get(first[2], {}).get(tactic)
            if after == "":
                return order
            if after is not None and after not in seen:
                seen.add(after)
                waiting.append((first[0] - score, age, after))
                age += 1
    return order


names = st.sampled_from([GOAL, "a", "b", "c", "d", "e"])
tactics = st.sampled_from(["t", "u", "v", "w"])
graphs = st.dictionaries(
    names, st.dictionaries(tactics, st.one_of(names, st.just("")), max_size=4), max_size=6
)
tables = st.dictionaries(
    names, st.dictionaries(tactics, st.sampled_from([-0.25, -0.5, -1.0, -2.0]), max_size=4), max_size=6
)


@given(graphs, tables, st.integers(1, 8))
def test_states_are_expanded_in_the_order_of_the_rule(edges: Edges, table: Any, most: int) -> None:
    proposer = Scores(table)
    line = search(Graph(edges), THEOREM, proposer, SearchLimits(most))
    assert proposer.asked == expansions_by_looking(edges, table, most)
    assert line["expansions"] == len(proposer.asked)
    assert line["status"] in ("proved", "search_ended", "expansions")


def test_cost_adds_up_over_the_tactics() -> None:
    edges = {GOAL: {"t": "a", "u": "b"}, "a": {"v": "c"}, "b": {"v": ""}}
    scores = Scores({GOAL: {"t": -0.5, "u": -1.5}, "a": {"v": -0.75}, "b": {"v": -0.25}})
    line = search(Graph(edges), THEOREM, scores, SearchLimits())
    assert scores.asked == [GOAL, "a", "c", "b"]  # 0, 0.5, 1.25, 1.5
    assert (line["cost"], line["tactics"], line["proof"]) == (1.75, ["u", "v"], "u v")
    assert [node["outcome"] for node in line["tree"]] == ["open", "open", "open", "open", "proved"]
    assert [node.get("expanded") for node in line["tree"]] == [0, 1, 3, 2, None]


def test_a_goal_is_seen_when_it_is_pushed_and_equal_costs_compare() -> None:
    edges = {GOAL: {"t": "a", "u": "a", "v": GOAL}}
    line = search(Graph(edges), THEOREM, FixedTactics(["t", "u", "v"]), SearchLimits())
    assert [node["outcome"] for node in line["tree"][1:4]] == ["open", "seen", "seen"]
    assert line["status"] == "search_ended"
    assert line["expansions"] == 2


def test_a_false_end_is_recorded_and_the_search_goes_on() -> None:
    prover = Graph({GOAL: {"t": "", "u": ""}}, false_ends=[("t",)])
    line = search(prover, THEOREM, FixedTactics(["t", "u"]), SearchLimits())
    assert line["tactics"] == ["u"]
    assert line["rejected"] == [{"proof": "t", "message": "false", "unsettled": False}]


def test_limits_end_a_theorem() -> None:
    endless = {GOAL: {"t": "a"}, "a": {"t": "b"}, "b": {"t": "c"}}
    assert search(Graph(endless), THEOREM, FixedTactics(["t"]), SearchLimits(2))["status"] == "expansions"
    assert search(Graph(endless), THEOREM, FixedTactics(["t"]), SearchLimits(9, 0.0))["status"] == "timeout"
    with pytest.raises(Stopped):
        search(Graph(endless), THEOREM, FixedTactics(["t"]), SearchLimits(), lambda: True)


def test_a_prover_that_keeps_dying_ends_the_theorem_only() -> None:
    prover = Graph({GOAL: {"t": "a"}, "a": {"t": ""}})
    prover.deaths_left = 1
    line = search(prover, THEOREM, FixedTactics(["t"]), SearchLimits())
    assert (line["status"], line["deaths"]) == ("proved", 1)
    prover.deaths_left = 1000
    line = search(prover, THEOREM, FixedTactics([f"t{n}" for n in range(100)]), SearchLimits())
    assert (line["status"], line["message"], line["deaths"]) == ("prover_died", "made up", 11)


def test_a_statement_that_is_refused() -> None:
    class Refusing(Graph):
        def open(self, theorem: Theorem) -> Graph:
            raise BadStatement("no such thing")

    line = search(Refusing({}), THEOREM, FixedTactics(["t"]), SearchLimits())
    assert (line["status"], line["message"], line["tree"]) == ("bad_statement", "no such thing", None)


def test_goals_beyond_the_model_are_passed_over() -> None:
    class Short(Scores):
        def propose(self, goals: str) -> list[Candidate]:
            if goals == "a":
                raise TooLong("4,097 tokens")
            return super().propose(goals)

    edges = {GOAL: {"t": "a", "u": "b"}, "b": {"v": ""}}
    line = search(
        Graph(edges), THEOREM, Short({GOAL: {"t": -0.1, "u": -1.0}, "b": {"v": -1.0}}), SearchLimits()
    )
    assert line["proved"]
    assert line["tree"][1]["message"] == "too long for the model: 4,097 tokens"


@given(
    st.lists(
        st.tuples(st.sampled_from(["x", " x", "y ", "", "  ", "z"]), st.floats(-9, 0) | st.just(math.nan))
    )
)
def test_each_tactic_is_proposed_once_with_its_best_score(drawn: list[tuple[str, float]]) -> None:
    ranked = unique_best_first([Candidate(*each) for each in drawn])
    expected = {
        tactic: max(score for text, score in drawn if text.strip() == tactic and not math.isnan(score))
        for tactic in {text.strip() for text, score in drawn if text.strip() and not math.isnan(score)}
    }
    assert {each.tactic: each.logprob for each in ranked} == expected
    assert [each.logprob for each in ranked] == sorted(expected.values(), reverse=True)


def test_time_is_measured() -> None:
    class Slow(Graph):
        def apply(self, state: State, tactic: str) -> Outcome:
            time.sleep(0.01)
            return super().apply(state, tactic)

    line = search(Slow({GOAL: {"t": ""}}), THEOREM, FixedTactics(["t"]), SearchLimits())
    assert 0.01 <= line["seconds"] < 60
