# SPDX-License-Identifier: Apache-2.0
"""Small data sets in the form of the hub's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MATH_ROWS: list[dict[str, Any]] = [
    {"problem": "What is the remainder of $7$ modulo $3$?", "level": "Level 1", "type": "Number Theory",
     "solution": "We have $7 = 2 \\cdot 3 + 1$, so the remainder is $\\boxed{1}$."},
    {"problem": "Solve $x^2 = 9$ for $x > 0$.", "level": "Level 5", "type": "Algebra",
     "solution": "The positive root is $\\boxed{3}$."},
    {"problem": "In how many ways can $3$ letters be arranged?", "level": "Level ?",
     "type": "Counting & Probability", "solution": "There are $3! = \\boxed{6}$ ways."},
    {"problem": "Simplify $\\frac{4}{8}$.", "level": "Level 3", "type": "Algebra",
     "solution": "It is $\\boxed{\\frac{1}{2}}$."},
]  # fmt: skip
GSM8K_ROWS: list[dict[str, Any]] = [
    {"question": f"Ann has {n} apples and buys {n + 3} more. How many has she?",
     "answer": f"She has {n} + {n + 3} = <<{n}+{n + 3}={2 * n + 3}>>{2 * n + 3} apples.\n#### {2 * n + 3}"}
    for n in range(2, 9)
]  # fmt: skip


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """A JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
