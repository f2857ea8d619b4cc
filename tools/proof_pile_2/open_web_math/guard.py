# SPDX-License-Identifier: Apache-2.0
"""Extraction in a process of its own, which a page can end but not stop.

A parser in C or Rust cannot be interrupted from Python, and a page may make it work for hours, fill the
memory or crash. So the kernel bounds it: the process has a limit of memory, and of CPU time for each page,
and where a page ends it, the page is counted and another process goes on with the next. Limits are far above
what any page of the allowed size honestly takes, so that the outcome does not depend on the machine; CPU
time is counted, not time, for the same reason."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import struct
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import orjson

from tools.proof_pile_2.open_web_math.html_to_text import PageText, extract_text

_LENGTH = struct.Struct("<Q")
_PAGES_A_PROCESS = 20_000  # a new process now and then, so that nothing that a library keeps can pile up
_ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class PageLimits:
    """What one page may take."""

    cpu_seconds: float = 20.0
    memory_bytes: int = 3 << 30


@dataclass(frozen=True)
class Ended:
    """A page that ended its process, and why, in words that do not vary with the page."""

    reason: str


class GuardedExtractor:
    """`extract_text` under limits. One at a time; not to be shared between threads."""

    def __init__(self, limits: PageLimits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._pages = 0

    def __call__(self, html: str) -> PageText | Ended:
        """The page's text, or why there is none."""
        if self._process is None or self._pages >= _PAGES_A_PROCESS:
            self.close()
            self._process = self._start()
            self._pages = 0
        self._pages += 1
        answer = self._ask(self._process, html.encode("utf-8", "replace"))
        if answer is not None:
            return PageText(**orjson.loads(answer)) if answer[:1] == b"{" else Ended("took too much memory")
        process, self._process = self._process, None
        status = process.wait()
        _close(process)
        if status == -signal.SIGPROF:
            return Ended(f"took more than {self._limits.cpu_seconds:g} seconds of CPU")
        return Ended(f"ended the parser ({_in_words(status)})")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.wait()
            _close(process)

    def _start(self) -> subprocess.Popen[bytes]:
        program = "from tools.proof_pile_2.open_web_math.guard import serve; serve()"
        limits = [f"{self._limits.cpu_seconds:g}", str(self._limits.memory_bytes)]
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return subprocess.Popen(
            [sys.executable, "-c", program, *limits],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
        )  # fmt: skip

    @staticmethod
    def _ask(process: subprocess.Popen[bytes], page: bytes) -> bytes | None:
        """The answer; None if the process ended without one."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(_LENGTH.pack(len(page)))
            process.stdin.write(page)
            process.stdin.flush()
            return _receive(process.stdout)
        except OSError:  # a broken pipe
            return None


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # what was not written any more
                stream.close()


def _receive(stream: IO[bytes]) -> bytes | None:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    return data if len(data) == length else None


def _in_words(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def serve() -> None:
    """The process: pages in on standard input, texts out on standard output, until the input ends.

    A page that takes too long is ended by SIGPROF, whose default action ends the process even inside a
    library."""
    cpu_seconds, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    incoming, outgoing = sys.stdin.buffer, sys.stdout.buffer
    while (page := _receive(incoming)) is not None:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        answer = b"memory"
        try:
            answer = orjson.dumps(asdict(extract_text(page.decode("utf-8"))))
        except MemoryError:
            pass
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        outgoing.write(_LENGTH.pack(len(answer)) + answer)
        outgoing.flush()
