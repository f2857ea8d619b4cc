# SPDX-License-Identifier: Apache-2.0
"""A pool of worker processes that stay, for questions to sympy and math-verify that may never end.

A worker that dies of a question is replaced, and its question is answered "failed": an answer such as
10^10^10 ends its own item alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from megatron.neox_arguments.errors import UserError

SECONDS = 5.0  # Minerva's limit for a comparison, appendix D
MEMORY_BYTES = 2 << 30
_ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop()); from eval_tasks.answers.worker import main; main()"
)
_AT_ONCE = 256  # questions that wait, for each process


@dataclass(frozen=True)
class Question:
    """See `worker.answer`."""

    kind: str
    first: str
    second: str = ""
    rule: str = ""


@dataclass(frozen=True)
class Answer:
    """`value`, or why there is none: `time`, `memory`, `died`, or the name of an exception."""

    value: bool | str | None
    failed: str | None = None


class Worker:
    """One process, started when it is first asked and again after each death."""

    def __init__(self, seconds: float, memory_bytes: int) -> None:
        self._limits = [str(seconds), str(memory_bytes)]
        self._process: subprocess.Popen[str] | None = None
        self._ending = False

    def ask(self, question: Question) -> Answer:
        """Waits for the answer; the limits in the process see to it that there is one.

        Raises:
            UserError: the process does not start.
        """
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(asdict(question)) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line.endswith("\n"):
            self.close()
            return Answer(None, "died")
        fields: dict[str, Any] = json.loads(line)
        return Answer(fields.get("value"), fields.get("failed"))

    def _start(self) -> subprocess.Popen[str]:
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # one worker is one processor's work
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *self._limits, str(_ROOT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                encoding="utf-8",
                env=os.environ | threads,
            )
            self._process = process
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n" and not self._ending:
                # Else every answer would look wrong.
                self.close()
                said.seek(0)
                why = said.read()[-2_000:].decode("utf-8", "replace").strip() or "it said nothing"
                raise UserError(f"a process that judges answers does not start: {why.splitlines()[-1]}")
        return process

    def kill(self) -> None:
        """Ends the process for good, also while another thread waits for its answer."""
        self._ending = True
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Ends the process and frees what it held."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class Graders:
    """`processes` workers (by default one for each processor this process may use).

    `with Graders() as graders: graders.ask(questions)`. `failures` counts the questions without an answer by
    their cause.

    Raises:
        UserError: sympy's reader of LaTeX or math-verify is not installed.
    """

    def __init__(
        self, processes: int | None = None, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        check_installed()
        self.failures: Counter[str] = Counter()
        self._count = processes or len(os.sched_getaffinity(0))
        self._workers = [Worker(seconds, memory_bytes) for _ in range(self._count)]
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="grader")

    def ask(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """The answers in the order of the questions, which are read a few hundred ahead."""
        waiting = iter(questions)
        pending = deque(
            self._threads.submit(self._ask, each) for each in islice(waiting, _AT_ONCE * self._count)
        )
        while pending:
            answer = pending.popleft().result()
            if answer.failed is not None:
                self.failures[answer.failed] += 1
            yield answer
            pending.extend(self._threads.submit(self._ask, each) for each in islice(waiting, 1))

    def _ask(self, question: Question) -> Answer:
        worker = self._idle.get()
        try:
            return worker.ask(question)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends all processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()  # whoever waits for it is told that it died
        self._threads.shutdown(wait=True)
        for worker in self._workers:
            worker.close()

    def __enter__(self) -> Graders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_installed() -> None:
    """Refuses to grade without what graders need: its absence must not look like wrong answers.

    Raises:
        UserError: one is missing, or of another version than sympy's grammar was made with.
    """
    from importlib.metadata import PackageNotFoundError, version

    remedy = "; pip install -r requirements/requirements-eval.txt"
    for package in ("sympy", "math-verify", "antlr4-python3-runtime"):
        try:
            found = version(package)
        except PackageNotFoundError:
            raise UserError(f"{package}: is not installed, and answers are judged with it{remedy}") from None
        if package.startswith("antlr4") and not found.startswith("4.11."):
            raise UserError(f"{package}=={found}: sympy reads LaTeX with 4.11 only{remedy}")
