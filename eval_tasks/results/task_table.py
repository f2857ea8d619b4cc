# SPDX-License-Identifier: Apache-2.0
"""What is known of each task for scoring it: its answer rule, its number of items, what was published for it.

A task ending in `_maj` has the same data and prompt as the one without, k samples an item, and is decided
by vote.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from eval_tasks.answers.rules import GSM8K, MATH, MULTIPLE_CHOICE, OCW, AnswerRule
from eval_tasks.results.published import FIGURES, Figures
from megatron.neox_arguments.errors import UserError

VOTED = "_maj"


@dataclass(frozen=True)
class Task:
    """A task of the paper.

    Args:
        title: for tables.
        items: of the whole test set.
        rule: for answers in text.
        program: the name of the rule in `eval_tasks.programs` for answers of programs.
        figures: what was published, None where nothing was.
        caveat: why its figures are not those of the released evaluation even with equal samples.
    """

    name: str
    title: str
    items: int
    rule: AnswerRule | None = None
    program: str | None = None
    figures: Figures | None = None
    caveat: str | None = None

    @property
    def is_likelihood(self) -> bool:
        """Whether what counts is how likely a text is."""
        return self.rule is None and self.program is None

    @property
    def reference_rule(self) -> AnswerRule | None:
        """The rule that reads the answer of a reference; None where what counts is the text itself."""
        programs = {"gsm8k_python": GSM8K, "math_python": MATH}
        return self.rule if self.program is None else programs[self.program]


_TRUNCATED = (
    "the released scorer cuts numbers to integers before it compares them and takes pi, e and i for "
    "variables; here numbers are compared as they are, and these are constants"
)
_TASKS = (
    Task("llemma_math", "MATH", 5_000, MATH, figures=FIGURES["math"]),
    Task(
        "llemma_math500", "MATH-500", 500, MATH, figures=FIGURES["math"],
        caveat="500 problems; the published figures are for all 5,000",
    ),
    Task("llemma_gsm8k", "GSM8k", 1_319, GSM8K, figures=FIGURES["gsm8k"]),
    Task(
        "llemma_ocwcourses", "OCWCourses", 272, OCW, figures=FIGURES["ocwcourses"],
        caveat="zero, negative numbers, numbers within 1% and equations can be right; the released code "
        "called them wrong",
    ),
    Task("llemma_mmlu_stem", "MMLU-STEM", 3_018, MULTIPLE_CHOICE, figures=FIGURES["mmlu_stem"]),
    Task("llemma_sat", "SAT, May 2023", 32, MULTIPLE_CHOICE, figures=FIGURES["sat"]),
    Task(
        "llemma_gsm8k_python", "GSM8k+Python", 1_319, program="gsm8k_python", figures=FIGURES["gsm8k_python"],
    ),
    Task(
        "llemma_math_python", "MATH+Python", 5_000, program="math_python", figures=FIGURES["math_python"],
        caveat=_TRUNCATED,
    ),
    Task("llemma_math_perplexity", "MATH, solutions", 5_000),
    Task("llemma_gsm8k_perplexity", "GSM8k, solutions", 1_319),
)  # fmt: skip
TASKS = {task.name: task for task in _TASKS}


def task_named(name: str) -> Task:
    """The task of a name, with or without `_maj`.

    Raises:
        UserError: there is none.
    """
    task = TASKS.get(name.removesuffix(VOTED))
    if task is None:
        near = difflib.get_close_matches(name, TASKS, 1)
        remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(TASKS)}"
        raise UserError(f"--task={name}: no such task; {remedy}")
    return task
