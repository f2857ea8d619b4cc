# SPDX-License-Identifier: Apache-2.0
"""From samples to verdicts and votes, by an answer rule and a pool of graders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from eval_tasks.answers.rules import AnswerRule
from eval_tasks.answers.votes import Ballot
from eval_tasks.answers.workers import Graders, Question
from eval_tasks.results.samples import Sample, Verdict, Vote
from megatron.neox_arguments.errors import UserError

_TOGETHER = 4_096  # samples whose texts are held in memory at once


def judged(samples: Iterable[Sample], rule: AnswerRule, graders: Graders) -> Iterator[Verdict]:
    """A verdict a sample, in their order. A comparison that takes too long has failed, as in the paper.

    Raises:
        UserError: a reference has no answer by the rule, or a sample has no generation.
    """
    known: dict[tuple[str, str], bool] = {}
    waiting = iter(samples)
    while some := list(islice(waiting, _TOGETHER)):
        answers = [(rule.taken(_text(sample)), _reference(sample, rule)) for sample in some]
        _decide(rule, answers, known, graders)
        second: Iterable[bool | None] = [None] * len(some)
        if rule.math_verify:
            questions = (Question("math_verify", rule.gold(each.reference), _text(each)) for each in some)
            second = (given.value is True for given in graders.ask(questions))
        for sample, (answer, reference), agrees in zip(some, answers, second, strict=True):
            correct = answer is not None and known[answer, reference]
            yield Verdict(
                sample.item, sample.sample, answer, correct if rule.is_minerva else None, agrees, correct
            )


def _decide(
    rule: AnswerRule,
    answers: Sequence[tuple[str | None, str]],
    known: dict[tuple[str, str], bool],
    graders: Graders,
) -> None:
    """Adds to `known` whether each answer is right. Each pair is asked once, however many samples have it."""
    asked = []
    for answer, reference in answers:
        if answer is None or (answer, reference) in known:
            continue
        quick = rule.quickly_same(answer, reference)
        known[answer, reference] = bool(quick)
        if quick is None:
            asked.append((answer, reference))
    questions = (Question("same", *pair, rule=rule.name) for pair in asked)
    for pair, given in zip(asked, graders.ask(questions), strict=True):
        known[pair] = given.value is True


def _text(sample: Sample) -> str:
    if sample.generation is None:
        raise UserError(
            f"task={sample.task} item={sample.item}: has no generation; its task is none of answers"
        )
    return sample.generation


def _reference(sample: Sample, rule: AnswerRule) -> str:
    reference = rule.reference(sample.reference)
    if reference is None:
        raise UserError(
            f"task={sample.task} item={sample.item}: reference={sample.reference[:80]!r}: holds no answer "
            f"for the rule {rule.name!r}; give the reference solution or answer, or another --task"
        )
    return reference


def vote(item: str, ballot: Ballot, correct: Sequence[bool]) -> Vote:
    """The vote of an item; `correct` is the verdict of each of its samples."""
    sizes = ballot.sizes
    order = sorted(range(len(sizes)), key=lambda number: -sizes[number])
    votes = {ballot.representatives[number]: sizes[number] for number in order}
    winner = ballot.winner
    if winner is None:
        return Vote(item, None, votes, False)
    return Vote(item, ballot.representatives[winner], votes, correct[ballot.first_samples[winner]])
