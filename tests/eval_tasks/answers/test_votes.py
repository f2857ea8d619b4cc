# SPDX-License-Identifier: Apache-2.0
"""Votes on classes of equal answers, against a plain count of all pairs; verdicts of awkward samples."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_tasks.answers import minerva
from eval_tasks.answers.rules import GSM8K, MATH, OCW
from eval_tasks.answers.verdicts import judged, vote
from eval_tasks.answers.votes import ballots
from eval_tasks.answers.workers import Graders
from eval_tasks.results.samples import Sample
from megatron.neox_arguments.errors import UserError


@pytest.fixture(scope="module")
def graders() -> Iterator[Graders]:
    with Graders(1) as pool:
        yield pool


def test_equal_answers_vote_together(graders: Graders) -> None:
    answers = [
        "1",
        r"\frac{1}{2}",
        "0.5",
        "1",
        r"\frac{2}{4}",
        None,
        "x+1",
        "1+x",
        r"\sqrt{x",
        r"\sqrt{x",
        "2",
    ]
    (ballot,) = ballots(MATH, [answers], graders)
    assert ballot.representatives == ("1", r"\sqrt{x", r"\frac{1}{2}", "x+1", "2")
    assert ballot.class_of == (0, 2, 2, 0, 2, None, 3, 3, 1, 1, 4)
    assert ballot.sizes == (2, 2, 3, 2, 1)
    assert ballot.winner == 2
    result = vote("i", ballot, [False, True, True, *[False] * 8])
    assert (result.answer, result.correct) == (r"\frac{1}{2}", True)
    assert next(iter(result.votes.items())) == (r"\frac{1}{2}", 3)


def test_ties_go_to_the_earliest_sample_and_nothing_valid_is_wrong(graders: Graders) -> None:
    tied, empty, none = ballots(GSM8K, [["3", "5", "5", "3", None], [], [None, None]], graders)
    assert vote("i", tied, [True, False, False, True, False]).correct
    assert vote("i", tied, [True, False, False, True, False]).answer == "3"
    for ballot, count in ((empty, 0), (none, 2)):
        assert (ballot.winner, ballot.class_of) == (None, (None,) * count)
        result = vote("i", ballot, [False] * count)
        assert (result.answer, result.votes, result.correct) == (None, {}, False)


def test_numbers_within_one_percent_vote_together(graders: Graders) -> None:
    (ballot,) = ballots(OCW, [["5.0", "5.02", "5.2", "5.2", "5.0 eV", "x=1"]], graders)
    assert ballot.representatives == ("5.2", "5.0", "x=1")
    assert ballot.class_of == (1, 1, 0, 0, 1, 2)


@given(
    st.lists(
        st.sampled_from([None, "1", "2", "0.5", r"\frac{1}{2}", r"\frac{3}{6}", "2.0", "3"]), max_size=12
    )
)
def test_classes_of_numbers_are_those_of_a_plain_count(answers: list[str | None]) -> None:
    (ballot,) = ballots(MATH, [answers], None)
    for one, first in zip(answers, ballot.class_of, strict=True):
        assert (one is None) == (first is None)
        for other, second in zip(answers, ballot.class_of, strict=True):
            if one is not None and other is not None:
                assert (minerva.exact_number(one) == minerva.exact_number(other)) == (first == second)
    values = [minerva.exact_number(answer) for answer in answers if answer is not None]
    if ballot.winner is not None:
        winner = minerva.exact_number(ballot.representatives[ballot.winner])
        assert values.count(winner) == max(map(values.count, values))


def test_one_item_that_hangs_costs_its_own_vote_only() -> None:
    with Graders(1, seconds=1.5) as short:
        hangs, good = ballots(
            MATH, [["10^{10^{10^{10}}}", "5", "10^{10^{10^{10}}}"], ["x+1", "1+x", "2"]], short
        )
    assert hangs.class_of == (0, 1, 0)
    assert good.class_of == (0, 0, 1)


def sample(generation: str | None, reference: str = r"$\boxed{4}$", item: str = "a") -> Sample:
    return Sample("t", item, 0, "2 + 2?", reference, generation=generation)


PHRASE = "Final Answer: The final answer is "


def test_awkward_samples_have_verdicts(graders: Graders) -> None:
    texts = [
        f"{PHRASE}$4$.",
        f"{PHRASE}$3$.",
        "",
        "no answer",
        f"{PHRASE}" + "9" * 1_000_000,
        f"{PHRASE}$\\frac{{8}}{{2}}$",
    ]
    verdicts = list(judged([sample(text, item=str(at)) for at, text in enumerate(texts)], MATH, graders))
    assert [verdict.correct for verdict in verdicts] == [True, False, False, False, False, True]
    assert [verdict.answer for verdict in verdicts] == ["4", "3", None, None, None, r"\frac{8}{2}"]
    assert [verdict.minerva for verdict in verdicts] == [verdict.correct for verdict in verdicts]
    assert [verdict.math_verify for verdict in verdicts] == [True, False, False, False, False, True]


def test_what_cannot_be_judged_is_named(graders: Graders) -> None:
    with pytest.raises(UserError, match=r"item=a: reference='': holds no answer for the rule 'math'"):
        list(judged([sample("x", "")], MATH, graders))
    with pytest.raises(UserError, match="has no generation"):
        list(judged([sample(None)], MATH, graders))
