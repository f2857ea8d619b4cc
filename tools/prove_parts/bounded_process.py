# SPDX-License-Identifier: Apache-2.0
"""A prover's process with its bounds: time, memory, output, an own folder, and an end that is certain."""

from __future__ import annotations

import contextlib
import math
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.prove_parts.confinement import confined
from tools.prove_parts.provers import ProverDied
from tools.prove_parts.scratch import scratch_folder

_LARGEST_FILE_BYTES = 1 << 30


class NoAnswer(ProverDied):
    """It did not answer in time and was killed."""


class TooMuchOutput(ProverDied):
    """It printed more than it may and was killed."""


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a process that runs, and what it started (solvers, helpers): it leads a session of its own."""
    if process.poll() is None:  # its number may be another's as soon as it was waited for
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# Run in front of a prover: the kernel ends the prover with us, however we end, and whatever it starts has its
# limits. Not between fork and exec, where Python is not safe if there are threads. prctl(1, SIGKILL) is
# PR_SET_PDEATHSIG of linux/prctl.h.
_IN_FRONT = """\
import ctypes, os, resource, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
for limit, most in ((resource.RLIMIT_AS, int(sys.argv[2])), (resource.RLIMIT_FSIZE, int(sys.argv[3]))):
    hard = resource.getrlimit(limit)[1]
    if hard == resource.RLIM_INFINITY or most <= hard:
        resource.setrlimit(limit, (most, most))
try:
    os.execvp(sys.argv[4], sys.argv[4:])
except OSError as error:
    sys.exit(f"{sys.argv[4]} cannot be started: {error}")
"""


def _start(
    command: Sequence[str], folder: Path, memory_bytes: int, **streams: int
) -> subprocess.Popen[bytes]:
    front = [sys.executable, "-I", "-S", "-c", _IN_FRONT, str(os.getpid())]
    limits = [str(memory_bytes), str(_LARGEST_FILE_BYTES)]
    try:
        process: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
            [*front, *limits, *command], cwd=folder, start_new_session=True, **streams
        )
    except OSError as error:
        raise ProverDied(f"{command[0]} cannot be started: {error}") from error
    return process


def _bound_cpu(pid: int, seconds: float) -> None:
    """Has the kernel end a process that takes more than so many seconds from now on, on one processor.

    Helpers that it starts have the limit too; they outlive it where it is killed alone.
    """
    try:
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        limit = math.ceil(used + seconds) + 1
        _, most = resource.prlimit(pid, resource.RLIMIT_CPU)
        if most == resource.RLIM_INFINITY or limit <= most:
            resource.prlimit(pid, resource.RLIMIT_CPU, (limit, most))
    except (OSError, IndexError):  # it is gone, which the next read says
        pass


class Conversation:
    """A process that reads sentences and ends each answer with a prompt; both of its streams come as one."""

    def __init__(
        self,
        command: Sequence[str],
        prompt: re.Pattern[bytes],
        memory_bytes: int,
        output_bytes: int,
        bubblewrap: str | None = None,
    ) -> None:
        """Starts it, in bubblewrap where that is given; the first answer is that to nothing (`answer`)."""
        self._prompt, self._output_bytes = prompt, output_bytes
        self._is_confined = bubblewrap is not None
        self._scratch = contextlib.ExitStack()
        folder = self._scratch.enter_context(scratch_folder())
        self._unread = bytearray()
        try:
            self._process = _start(
                confined(bubblewrap, command, folder),
                folder,
                memory_bytes,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except ProverDied:
            self._scratch.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, text: str) -> None:
        """Writes a line.

        Raises:
            ProverDied: nobody reads it.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(text.encode("utf-8", "replace") + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            self.close()
            raise ProverDied(f"the prover ended: {error}") from error

    def answer(self, seconds: float) -> tuple[str, re.Match[bytes]]:
        """What it printed up to the next prompt, and the prompt.

        Raises:
            NoAnswer, TooMuchOutput: and it was killed.
            ProverDied: it ended by itself.
        """
        assert self._process.stdout is not None
        if not self._is_confined:  # where all that it starts ends with it
            _bound_cpu(self._process.pid, seconds)
        end, searched, descriptor = time.monotonic() + seconds, 0, self._process.stdout.fileno()
        while True:
            found = self._prompt.search(
                self._unread, max(0, searched - 200)
            )  # a prompt may lie over two reads
            if found:
                break
            searched = len(self._unread)
            left = end - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                self.close()
                raise NoAnswer(f"no answer in {seconds:g} s")
            new = os.read(descriptor, 1 << 16)
            if not new:
                self.close()
                raise ProverDied("the prover ended")
            self._unread += new
            if len(self._unread) > self._output_bytes:
                self.close()
                raise TooMuchOutput(f"it printed more than {self._output_bytes} bytes")
        text = bytes(self._unread[: found.start()]).decode("utf-8", "replace")
        prompt = self._prompt.match(bytes(self._unread[found.start() : found.end()]))
        assert prompt is not None
        del self._unread[: found.end()]
        return text, prompt

    def close(self) -> None:
        """Kills it and removes its folder."""
        end_group(self._process)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._scratch.close()


@dataclass(frozen=True)
class Finished:
    """A process that has run to its end, or was ended."""

    code: int
    output: str
    timed_out: bool


def run_bounded(
    command: Sequence[str],
    folder: Path,
    seconds: float,
    memory_bytes: int,
    output_bytes: int,
    bubblewrap: str | None = None,
) -> Finished:
    """Runs a command in a folder, in bubblewrap where that is given; its output is cut after `output_bytes`.

    Raises:
        ProverDied: it cannot be started.
    """
    with tempfile.TemporaryFile() as output:
        process = _start(
            confined(bubblewrap, command, folder),
            folder,
            memory_bytes,
            stdin=subprocess.DEVNULL,
            stdout=output.fileno(),
            stderr=subprocess.STDOUT,
        )
        timed_out = False
        # Should this program be killed meanwhile, the kernel ends the other one.
        if bubblewrap is None:
            cpu_seconds = math.ceil(seconds) + 1
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            end_group(process)
        output.seek(0)
        return Finished(process.returncode, output.read(output_bytes).decode("utf-8", "replace"), timed_out)
