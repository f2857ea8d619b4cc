# SPDX-License-Identifier: Apache-2.0
"""Where an answer stands: behind the phrase that ends a solution, or in the last box of a reference.

Nothing here depends on how long a text is but in proportion, so it is done outside the workers that have a
limit.
"""

from __future__ import annotations

import math
import re

# Minerva's prompts (arXiv:2206.14858, appendix D.2) end each solution so. The stop string cuts it at the end.
HOPE = "I hope it is correct."
# No reference answer of MATH, GSM8k or OCWCourses has half as many. What is longer is a model that goes
# round in circles, and would only cost time.
LONGEST_ANSWER_CHARACTERS = 1_000
_PLAIN_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\s*")


def after_phrase(generation: str, phrase: str) -> str | None:
    """What follows the first `phrase` on its line, without the stop string and a full stop; else None.

    Minerva's pattern `phrase(.*?). I hope it is correct.` needs the stop string in the text; here it may
    have been cut off together with the blank before it, as lm-eval and others do.
    """
    start = generation.find(phrase)
    if start < 0:
        return None
    answer = generation[start + len(phrase) : start + len(phrase) + 2 * LONGEST_ANSWER_CHARACTERS]
    answer = answer.split(HOPE)[0].split("\n")[0].strip()
    answer = answer.removesuffix(".").strip()
    return answer if answer and len(answer) <= LONGEST_ANSWER_CHARACTERS else None


def last_boxed(solution: str) -> str | None:
    r"""The content of the last `\boxed` or `\fbox`, with or without braces, as references of MATH have it.

    None where there is none, or its braces do not close.
    """
    start = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    if start < 0:
        return None
    rest = solution[start:].removeprefix("\\boxed").removeprefix("\\fbox")
    if rest.startswith(" "):  # \boxed 5$
        return rest[1:].split("$")[0]
    if not rest.startswith("{"):
        return None
    depth = 0
    for at, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:at]
    return None


def plain_number(text: str) -> float | None:
    """A finite number as `4.5e33` or `-3`, blanks around it allowed; None for all else.

    Python's own `float` takes digits of every script and `1_000` too.
    """
    if not _PLAIN_NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None
