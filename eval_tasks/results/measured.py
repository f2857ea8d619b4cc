# SPDX-License-Identifier: Apache-2.0
"""From the verdicts of a task to its measures: what results.json says of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval_tasks.answers.votes import Ballot
from eval_tasks.measures.intervals import Estimate, mean, ratio
from eval_tasks.measures.sampling import maj_at_k, pass_at_k, powers_up_to
from eval_tasks.results.samples import Sample, Verdict, Vote, natural_order
from megatron.neox_arguments.errors import UserError


@dataclass
class ItemVerdicts:
    """An item with the verdicts of its samples in the order of their numbers."""

    item: str
    level: int | None
    subject: str | None
    verdicts: list[Verdict] = field(default_factory=list)

    def share(self, name: str) -> float:
        """The share of samples that a grader (`correct`, `minerva`, `math_verify`) calls right."""
        return sum(bool(getattr(verdict, name)) for verdict in self.verdicts) / len(self.verdicts)


def grouped(
    verdicts: Iterable[Verdict], about: Mapping[str, tuple[int | None, str | None]]
) -> list[ItemVerdicts]:
    """The items in natural order; `about` has level and subject of each."""
    items: dict[str, ItemVerdicts] = {}
    for verdict in verdicts:
        if verdict.item not in items:
            items[verdict.item] = ItemVerdicts(verdict.item, *about[verdict.item])
        items[verdict.item].verdicts.append(verdict)
    for item in items.values():
        item.verdicts.sort(key=lambda verdict: verdict.sample)
    return [items[name] for name in sorted(items, key=natural_order)]


class Unfinished(UserError):
    """The samples of a task are not all there, and what there is has no measures."""


def samples_an_item(items: Sequence[ItemVerdicts], task: str) -> int:
    """How many samples each item has.

    Raises:
        Unfinished: they do not have equally many; the run was not finished.
    """
    counts = sorted({len(item.verdicts) for item in items})
    if len(counts) > 1:
        few = next(item.item for item in items if len(item.verdicts) == counts[0])
        raise Unfinished(
            f"task={task}: item {few} has {counts[0]} samples, others up to {counts[-1]}; finish the run "
            "with the command that began it"
        )
    return counts[0]


def answer_metrics(items: Sequence[ItemVerdicts], math_verify: bool) -> dict[str, Estimate]:
    """Accuracy by the paper's rule and by math-verify, and how many samples have an answer at all.

    Of several samples an item it is the mean over its samples, that is pass@1.
    """
    metrics = {"accuracy": mean([item.share("correct") for item in items])}
    if math_verify:
        metrics["math_verify"] = mean([item.share("math_verify") for item in items])
    has_answer = [
        sum(each.answer is not None for each in item.verdicts) / len(item.verdicts) for item in items
    ]
    return {**metrics, "answered": mean(has_answer)}


def vote_metrics(
    items: Sequence[ItemVerdicts], ballots: Sequence[Ballot], votes: Sequence[Vote]
) -> dict[str, Estimate]:
    """maj@k and pass@k for k = 1, 2, 4, … up to all samples; with all of them maj@k is the vote itself."""
    of = len(items[0].verdicts)
    metrics = {f"maj@{of}": mean([vote.correct for vote in votes])}
    right_of = [[verdict.correct for verdict in item.verdicts] for item in items]
    for k in powers_up_to(of):
        metrics[f"pass@{k}"] = mean([pass_at_k(sum(right), of, k) for right in right_of])
        if k == of:
            continue
        metrics[f"maj@{k}"] = mean([
            maj_at_k(ballot.class_of, [right[first] for first in ballot.first_samples], k)
            for ballot, right in zip(ballots, right_of, strict=True)
        ])  # fmt: skip
    return metrics


def pass_metrics(items: Sequence[ItemVerdicts]) -> dict[str, Estimate]:
    """pass@k alone, where answers have no classes to vote by."""
    of = len(items[0].verdicts)
    right = [sum(verdict.correct for verdict in item.verdicts) for item in items]
    return {f"pass@{k}": mean([pass_at_k(each, of, k) for each in right]) for k in powers_up_to(of)}


def by_group(items: Sequence[ItemVerdicts]) -> dict[str, dict[str, Any]]:
    """Accuracy of each level and each subject, where items have them."""
    groups: dict[str, dict[str, Any]] = {}
    for kind in ("level", "subject"):
        names = {getattr(item, kind) for item in items} - {None}
        if not names:
            continue
        of_kind = {}
        for name in sorted(names):
            members = [item.share("correct") for item in items if getattr(item, kind) == name]
            of_kind[str(name)] = {"items": len(members), **mean(members).as_fields()}
        groups[f"by_{kind}"] = of_kind
    return groups


def likelihood_metrics(samples: Sequence[Sample]) -> dict[str, Estimate]:
    """Bits per byte, and perplexity per byte (exp of minus the mean log-likelihood of a byte).

    Raises:
        UserError: a sample has no log-likelihood, or no bytes.
    """
    for sample in samples:
        if sample.loglikelihood is None or not sample.bytes:
            raise UserError(
                f"task={sample.task} item={sample.item}: has no finite loglikelihood over at least one byte; "
                "look at the model, or remove the line and run again"
            )
    bits = ratio(
        [-(sample.loglikelihood or 0.0) / math.log(2) for sample in samples],
        [float(sample.bytes or 0) for sample in samples],
    )
    perplexity = Estimate(2**bits.value, 2**bits.low, 2**bits.high, bits.method)
    return {"bits_per_byte": bits, "byte_perplexity": perplexity}
