# SPDX-License-Identifier: Apache-2.0
"""What became of an item under a model, in one number that the page reads (script/states.js)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

UNJUDGED, RIGHT, WRONG, MIXED = 0, 1, 2, 3
MINERVA_ONLY, MATH_VERIFY_ONLY, PRESENT, PROGRAM, PROGRAM_FAILED = 4, 8, 16, 32, 64


def of_samples(samples: Sequence[Mapping[str, Any]], vote: Mapping[str, Any] | None) -> int:
    """The vote's verdict; without a vote, that of the samples where they agree, else MIXED. With flags for
    what any sample has: one grader's approval alone, a program, a program that failed."""
    state = PRESENT | _verdict(samples, vote)
    for sample in samples:
        pair = (sample.get("minerva"), sample.get("math_verify"))
        state |= {(True, False): MINERVA_ONLY, (False, True): MATH_VERIFY_ONLY}.get(pair, 0)  # type: ignore[arg-type]
        if sample.get("program"):
            state |= PROGRAM | (PROGRAM_FAILED if sample["program"].get("error") else 0)
    return state


def _verdict(samples: Sequence[Mapping[str, Any]], vote: Mapping[str, Any] | None) -> int:
    if vote is not None and vote["correct"] is not None:
        return RIGHT if vote["correct"] else WRONG
    verdicts = {sample.get("correct") for sample in samples} - {None}
    if not verdicts:
        return UNJUDGED
    return MIXED if len(verdicts) > 1 else RIGHT if True in verdicts else WRONG


def of_proof(proof: Mapping[str, Any]) -> int:
    """Whether it was proved."""
    return PRESENT | {True: RIGHT, False: WRONG, None: UNJUDGED}[proof["proved"]]
