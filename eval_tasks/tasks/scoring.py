# SPDX-License-Identifier: Apache-2.0
"""What a YAML file names as `process_results`, for those who run the tasks with lm-eval's own command.

evaluate.py does not use it: it saves samples, and its verdicts are made from them offline, by the same rules.
"""

from __future__ import annotations

import atexit
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from eval_tasks.answers.rules import GSM8K, MATH, MULTIPLE_CHOICE, OCW, AnswerRule
from eval_tasks.answers.verdicts import judged, vote
from eval_tasks.answers.votes import ballots
from eval_tasks.answers.workers import Graders
from eval_tasks.results.samples import Sample
from megatron.neox_arguments.errors import UserError

Doc = Mapping[str, Any]


def math_results(doc: Doc, results: Sequence[Any]) -> dict[str, float]:
    """Whether the answer, or the majority of k, is right by Minerva's rule."""
    return _results(MATH, doc, results)


def ocw_results(doc: Doc, results: Sequence[Any]) -> dict[str, float]:
    """The same by the rule of OCWCourses."""
    return _results(OCW, doc, results)


def gsm8k_results(doc: Doc, results: Sequence[Any]) -> dict[str, float]:
    """The same for an integer after `The answer is`."""
    return _results(GSM8K, doc, results)


def choice_results(doc: Doc, results: Sequence[Any]) -> dict[str, float]:
    """The same for a letter."""
    return _results(MULTIPLE_CHOICE, doc, results)


def process_results(doc: Doc, results: Sequence[Any]) -> dict[str, float]:
    """Of tasks whose answers must be run to be judged: lm-eval's own command does not isolate programs.

    Raises:
        UserError: always, with what judges them.
    """
    raise UserError(
        "this task is not scored by lm-eval's own command; evaluate.py runs programs in a sandbox, and "
        "tools/prove.py whole checks proofs"
    )


def likelihood_results(doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """The log-likelihood of the reference with its bytes; lm-eval makes a perplexity per byte of all."""
    likelihood, _ = results[0]
    # A blank stands before the reference and is scored with it.
    return {"byte_perplexity": (likelihood, len(f" {doc['reference']}".encode()))}


def _results(rule: AnswerRule, doc: Doc, results: Sequence[Any]) -> dict[str, float]:
    """`results` holds one text, or the list of k that the filter `take_first_k` leaves."""
    texts = results[0] if isinstance(results[0], list) else [results[0]]
    samples = [
        Sample(rule.name, "", number, doc["problem"], doc["reference"], generation=text)
        for number, text in enumerate(texts)
    ]
    verdicts = list(judged(samples, rule, _graders()))
    (ballot,) = ballots(rule, [[verdict.answer for verdict in verdicts]], _graders())
    return {"correct": float(vote("", ballot, [verdict.correct for verdict in verdicts]).correct)}


@functools.cache
def _graders() -> Graders:
    graders = Graders()
    atexit.register(graders.close)
    return graders
