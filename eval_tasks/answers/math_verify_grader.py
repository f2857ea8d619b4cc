# SPDX-License-Identifier: Apache-2.0
"""math-verify, the second grader: it looks for the answer anywhere in a generation and knows sets, intervals
and units, where Minerva's rule knows one phrase. Its own time limits are off: it runs in workers that have
them."""

from __future__ import annotations


def agrees(reference: str, generation: str) -> bool:
    """Whether math-verify finds the reference's answer in the generation, with its default settings, as
    lm-eval's MATH tasks call it."""
    from math_verify import parse, verify

    gold = parse(reference, parsing_timeout=None)
    target = parse(generation, parsing_timeout=None)
    return bool(verify(gold=gold, target=target, timeout_seconds=None))
