# SPDX-License-Identifier: Apache-2.0
"""One worker process that answers questions about answers, each within limits that the kernel keeps.

A question is one line of JSON on standard input, its answer one line on what was standard output. A
question that takes longer than its share of processor time gets an exception, and if it does not end by
that, as in one long multiplication, the kernel ends the process. Time is the processor's, not the clock's,
so that a verdict does not depend on what else the machine does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import sys
from types import FrameType
from typing import Any

from eval_tasks.answers.rules import RULES

GRACE_SECONDS = 2  # from the exception to the end of the process


class OutOfTime(BaseException):
    """The question took too long. No `Exception`: libraries catch those."""


def _raise(_: int, __: FrameType | None) -> None:
    raise OutOfTime


def answer(question: dict[str, str]) -> bool | str:
    """What a question asks for.

    Kinds: `same` (rule, first, second), `bucket` (rule, first), `math_verify` (first: reference, second:
    generation).
    """
    if question["kind"] == "math_verify":
        from eval_tasks.answers.math_verify_grader import agrees

        return agrees(question["first"], question["second"])
    rule = RULES[question["rule"]]
    if question["kind"] == "same":
        return rule.same(question["first"], question["second"])
    return rule.bucket(question["first"])


def answered(question: dict[str, str], seconds: float) -> dict[str, Any]:
    """The answer as `{"value": …}`, or `{"failed": why}`."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(used + seconds) + 1 + GRACE_SECONDS, hard))
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            return {"value": answer(question)}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except OutOfTime:
        return {"failed": "time"}
    except (MemoryError, RecursionError):
        return {"failed": "memory"}
    except Exception as error:  # a grader that fails has not found the answer to be right
        return {"failed": type(error).__name__}
    finally:
        with contextlib.suppress(OutOfTime):
            signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    """Reads limits from the command line (seconds, bytes), then questions until standard input ends."""
    seconds, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    # Whatever a library prints goes nowhere: the answers have a channel of their own.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, who ends this process
    signal.signal(signal.SIGPROF, _raise)
    # What is read at first use is read now, so that it costs no question its time.
    from eval_tasks.answers.math_verify_grader import agrees
    from eval_tasks.answers.minerva import same_expression

    assert same_expression("x+1", "1+x")
    assert agrees("$x+1$", "$1+x$")
    channel.write("ready\n")
    channel.flush()
    os.dup2(1, 2)
    for line in sys.stdin:
        channel.write(json.dumps(answered(json.loads(line), seconds)) + "\n")
        channel.flush()
