# SPDX-License-Identifier: Apache-2.0
"""MMLU-STEM and the SAT: a letter in "(A)" to "(D)" behind the phrase that ends a solution of the prompt."""

from __future__ import annotations

import re

_ANSWER = re.compile(r"Final Answer: The final answer is \(([ABCD])\)\.?")
_REFERENCE = re.compile(r"\s*\(?([ABCD])\)?\.?\s*")


def taken(generation: str) -> str | None:
    """`(A)` to `(D)`; None where the phrase is not there or something else follows it."""
    match = _ANSWER.search(generation)
    return None if match is None else f"({match[1]})"


def reference(text: str) -> str | None:
    """`(A)` to `(D)`, of a reference that is the letter with or without brackets."""
    match = _REFERENCE.fullmatch(text)
    return None if match is None else f"({match[1]})"
