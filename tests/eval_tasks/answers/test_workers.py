# SPDX-License-Identifier: Apache-2.0
"""Workers: an answer that would take for ever, or all memory, or end its process, costs its own question."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from eval_tasks.answers import workers as workers_module
from eval_tasks.answers.workers import Answer, Graders, Question, check_installed
from megatron.neox_arguments.errors import UserError

ROOT = Path(__file__).parents[3]
GOOD = Question("same", "x+1", "1+x", "math")
YES = Answer(True)
ATTACKS = [
    Question("same", "10^{10^{10}}", "5", "math"),
    Question("bucket", "((9^9)^9)^{9^9}", "", "math"),
    Question("same", "(" * 1_000_000 + "1" + ")" * 1_000_000, "5", "math"),
    Question("same", "\\frac{" * 2_000, "5", "math"),
    Question("same", "9**9**9**9**9", "5.0", "ocw"),
    Question("math_verify", "$5$", "$10^{10^{10}}$"),
    Question("math_verify", "$5$", "the answer is " + "9" * 1_000_000),
]


def workers() -> set[psutil.Process]:
    """The worker processes of this process; other tests may have some that are not collected yet."""
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "eval_tasks.answers" in " ".join(child.cmdline()):
                found.add(child)
    return found


def test_attacks_end_their_own_question_alone() -> None:
    with Graders(1, seconds=1.5) as graders:
        questions = [each for attack in ATTACKS for each in (attack, GOOD)]
        answers = list(graders.ask(questions))
        failures = graders.failures
    assert sum(failures.values()) == sum(answer.failed is not None for answer in answers)
    assert answers[1::2] == [YES] * len(ATTACKS)
    assert [answer.value for answer in answers[0::2] if answer.value is True] == []
    assert {answer.failed for answer in answers[0::2]} <= {None, "time", "memory", "died"}
    assert "time" in {answer.failed for answer in answers[0::2]}


SWALLOWS = """
import itertools
import sys
from eval_tasks.answers import worker
worker.answer = lambda question: sum(itertools.repeat(1, 10**12))  # one call in C, for hours
sys.argv = ["", "0.2", str(8 << 30)]
worker.main()
"""


def test_a_question_that_cannot_be_interrupted_is_ended_by_the_kernel() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWS], cwd=ROOT, input='{"kind": "same"}\n', capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-signal.SIGXCPU, "ready\n")


def test_a_killed_worker_is_replaced() -> None:
    before = workers()
    with Graders(1) as graders:
        assert list(graders.ask([GOOD])) == [YES]
        (child,) = workers() - before
        os.kill(child.pid, signal.SIGKILL)
        child.wait(timeout=60)
        assert list(graders.ask([GOOD, GOOD])) == [Answer(None, "died"), YES]


def test_answers_come_in_the_order_of_the_questions() -> None:
    questions = [Question("same", f"x+{number}", f"{number % 7}+x", "math") for number in range(20)]
    with Graders(2) as graders:
        values = [answer.value for answer in graders.ask(questions)]
    assert values == [number == number % 7 for number in range(20)]


def test_nothing_is_left_running_when_it_ends_in_the_middle() -> None:
    before = workers()
    with Graders(2) as graders:
        next(graders.ask([GOOD, *ATTACKS]))
        assert len(workers() - before) == 2
    assert workers() - before == set()


def test_memory_is_limited() -> None:
    with Graders(1, seconds=2.0, memory_bytes=600 << 20) as graders:
        answer, after = graders.ask([Question("math_verify", "$5$", "$x$ " * 4_000_000), GOOD])
    assert answer.value is not True
    assert after == YES


def test_a_worker_that_does_not_start_is_an_error_and_no_wrong_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers_module, "_PROGRAM", "raise RuntimeError('no such thing')")
    with Graders(1) as graders, pytest.raises(UserError, match="does not start: RuntimeError: no such thing"):
        list(graders.ask([GOOD]))


def test_a_package_that_is_missing_is_an_error_and_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "4.13.2" if name.startswith("antlr4") else real(name)
    )
    with pytest.raises(UserError, match=r"4\.13\.2: sympy reads LaTeX with 4\.11 only; pip install"):
        Graders(1)

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match="is not installed"):
        check_installed()
