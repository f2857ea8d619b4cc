# SPDX-License-Identifier: Apache-2.0
"""Majority voting on classes of equal answers: `\\frac{1}{2}` and `0.5` vote for the same thing.

The rule, which leaves nothing to the order in which samples lie in a file: an item's distinct answers are
gone through by falling frequency, equal ones by their first sample's number; each joins the first class
whose representative it equals, or founds one. The largest class wins; of equally large ones, that with the
sample of the lowest number. Samples without a valid answer vote for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from eval_tasks.answers.rules import AnswerRule
from eval_tasks.answers.workers import Graders, Question


@dataclass(frozen=True)
class Ballot:
    """The classes of an item. `class_of` has one entry a sample: its class, or None; `representatives` an
    answer a class; `first_samples` the place of each representative's first sample."""

    class_of: tuple[int | None, ...]
    representatives: tuple[str, ...]
    first_samples: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many samples each class has."""
        return tuple(self.class_of.count(number) for number in range(len(self.representatives)))

    @property
    def winner(self) -> int | None:
        """The class that wins, None where no sample has a valid answer."""
        sizes = self.sizes
        if not sizes:
            return None
        earliest = [self.class_of.index(number) for number in range(len(sizes))]
        return max(range(len(sizes)), key=lambda number: (sizes[number], -earliest[number]))


@dataclass
class _Open:
    """An item whose classes are being made. `waiting` holds, a bucket, the answers that have no class yet."""

    answers: Sequence[str | None]
    distinct: list[str]
    waiting: dict[str, list[str]] = field(default_factory=dict)
    leader_of: dict[str, str] = field(default_factory=dict)


def ballots(rule: AnswerRule, items: Sequence[Sequence[str | None]], graders: Graders | None) -> list[Ballot]:
    """The classes of each item, given the answers of its samples in the order of their numbers.

    `graders` may be None where the rule compares as text only.
    """
    opened = [_Open(answers, _by_frequency(answers)) for answers in items]
    _fill_buckets(rule, opened, graders)
    while rounds := [(item, bucket) for item in opened for bucket in item.waiting.values() if bucket]:
        pairs = []
        for item, bucket in rounds:
            leader = bucket.pop(0)
            item.leader_of[leader] = leader
            pairs += [(item, bucket, other, leader) for other in bucket]
        same = _same(rule, [(other, leader) for _, _, other, leader in pairs], graders)
        for (item, bucket, other, leader), joined in zip(pairs, same, strict=True):
            if joined:
                item.leader_of[other] = leader
                bucket.remove(other)
    return [_ballot(item) for item in opened]


def _by_frequency(answers: Sequence[str | None]) -> list[str]:
    counts: dict[str, int] = {}
    for answer in answers:
        if answer is not None:
            counts[answer] = counts.get(answer, 0) + 1
    return sorted(counts, key=lambda answer: -counts[answer])  # stable: equal ones by their first sample


def _fill_buckets(rule: AnswerRule, items: Sequence[_Open], graders: Graders | None) -> None:
    """Sorts each item's answers into buckets; an answer that is alone in its item needs none."""
    asked: dict[str, str | None] = {}
    for item in items:
        for answer in item.distinct if len(item.distinct) > 1 else ():
            asked.setdefault(answer, rule.quick_bucket(answer))
    open_ones = [answer for answer, bucket in asked.items() if bucket is None]
    if open_ones:
        assert graders is not None
        questions = (Question("bucket", answer, rule=rule.name) for answer in open_ones)
        for answer, given in zip(open_ones, graders.ask(questions), strict=True):
            # What could not be computed within the limits equals nothing but its own text.
            asked[answer] = given.value if isinstance(given.value, str) else f"text {answer}"
    for item in items:
        for answer in item.distinct:
            item.waiting.setdefault(asked.get(answer) or "", []).append(answer)


def _same(rule: AnswerRule, pairs: Sequence[tuple[str, str]], graders: Graders | None) -> list[bool]:
    verdicts = [rule.quickly_same(*pair) for pair in pairs]
    open_ones = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is None]
    if not open_ones:
        return [bool(verdict) for verdict in verdicts]
    assert graders is not None
    asked = dict.fromkeys(open_ones)
    questions = (Question("same", *pair, rule=rule.name) for pair in asked)
    known = {pair: given.value is True for pair, given in zip(asked, graders.ask(questions), strict=True)}
    return [
        known[pair] if verdict is None else verdict for pair, verdict in zip(pairs, verdicts, strict=True)
    ]


def _ballot(item: _Open) -> Ballot:
    """Classes are numbered by the frequency of their representatives."""
    leaders = [answer for answer in item.distinct if item.leader_of[answer] == answer]
    number_of = {answer: leaders.index(item.leader_of[answer]) for answer in item.distinct}
    return Ballot(
        tuple(None if answer is None else number_of[answer] for answer in item.answers),
        tuple(leaders),
        tuple(item.answers.index(leader) for leader in leaders),
    )
