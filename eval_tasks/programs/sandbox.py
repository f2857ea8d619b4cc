# SPDX-License-Identifier: Apache-2.0
"""Runs one program that a model wrote, where it can harm nothing: bubblewrap, limits, and a filter of system
calls.

The program sees a read-only /usr, this Python with its packages, and an empty /tmp of bounded size that
vanishes with it. It has no network, no /proc, no environment, no other user's files, cannot make a process
or a thread (system_calls.py), and its memory, processor time, files and output are bounded. What comes back
is bytes of bounded length, decoded with replacement characters: nothing of it is unpickled or evaluated
here.

docs/programs.md says what this does not protect against.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eval_tasks.programs.system_calls import system_call_filter
from megatron.neox_arguments.errors import UserError

MIB = 1 << 20

# Why a program ended: by itself; with a traceback or a status; by a signal; of one of the limits.
End = Literal["ok", "error", "signal", "cpu", "wall", "output"]


@dataclass(frozen=True)
class Limits:
    """Bounds of one program.

    `cpu_seconds` decides rather than `wall_seconds`, so that verdicts do not depend on how busy the machine
    is. Llemma's scorer gave 5 s of wall time in a process that had sympy imported
    (EleutherAI/lm-evaluation-harness, unsafe_score_sympy_math.py); here a program imports it in its own
    time.
    """

    cpu_seconds: int = 10
    wall_seconds: float = 60.0
    memory_bytes: int = 1024 * MIB
    folder_bytes: int = 32 * MIB
    file_bytes: int = 16 * MIB
    # of standard output, and again of standard error
    output_bytes: int = 64 * 1024
    open_files: int = 64
    # Timers count among them.
    pending_signals: int = 1024


@dataclass(frozen=True)
class Outcome:
    """What a program did. `value` is the JSON object that inside.py wrote for the variable asked for,
    unread."""

    output: str
    errors: str
    value: str | None
    end: End
    seconds: float

    @property
    def error(self) -> str | None:
        """One line: the limit that ended it, or the last line of its traceback; None where it ended well."""
        if self.end == "ok":
            return None
        if self.end in ("cpu", "wall", "output"):
            return f"ended by its limit: {self.end}"
        lines = self.errors.strip().splitlines()
        return (lines[-1][:500] if lines else "") or f"ended by {self.end}"


class IsolationError(RuntimeError):
    """The sandbox itself did not come up; the program is not to blame and has no verdict."""


def open_sandbox(limits: Limits | None = None, *, unsafe: bool = False) -> Sandbox:
    """A sandbox that has been tried.

    Args:
        limits: bounds of each program.
        unsafe: run without isolation, with limits of the process only.

    Raises:
        UserError: there is no isolation here, and `unsafe` is not set.
    """
    limits = limits or Limits()
    if unsafe:
        return Sandbox(limits, None)
    remedy = (
        "score the samples on a machine that has it (they are files), or use --unsafe-programs on one that "
        "you can afford to lose"
    )
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise UserError(
            "programs of a model are run in bubblewrap only, and bwrap is not on PATH: install it (Debian "
            f"and Ubuntu: apt-get install bubblewrap), {remedy}"
        )
    sandbox = Sandbox(limits, bubblewrap)
    try:
        outcome = sandbox.run("print(6 * 7)")
    except IsolationError as error:
        raise UserError(
            f"programs of a model are run in bubblewrap only, and it fails here ({error}): allow user "
            "namespaces (sysctl kernel.unprivileged_userns_clone, "
            f"kernel.apparmor_restrict_unprivileged_userns), {remedy}"
        ) from error
    if outcome.output != "42\n":
        raise UserError(
            f"the sandbox does not run Python here ({outcome.error}: {outcome.errors[-300:]}); {remedy}"
        )
    return sandbox


class Sandbox:
    """Runs programs, any number at a time from any number of threads."""

    def __init__(self, limits: Limits, bubblewrap: str | None) -> None:
        self.limits = limits
        self.isolated = bubblewrap is not None
        self._bubblewrap = bubblewrap
        self._packages = package_folders()
        self._filter = system_call_filter() if self.isolated else b""
        self._inside = Path(__file__).with_name("inside.py").read_bytes()

    def run(
        self, program: str, variable: str | None = None, files: Mapping[str, bytes] | None = None
    ) -> Outcome:
        """Runs Python text to its end or to a limit.

        Args:
            program: the text.
            variable: a global of the program whose value is told in `Outcome.value`.
            files: read-only files for it, in /program (isolated) or beside it.

        Raises:
            IsolationError: the sandbox did not come up.
        """
        begin = time.monotonic()
        reader, writer = os.pipe()
        contents = {
            **(files or {}),
            "inside.py": self._inside,
            "program.py": program.encode("utf-8", "surrogatepass"),
            "settings.json": self._settings(variable, writer),
        }
        try:
            with contextlib.ExitStack() as stack:
                stack.callback(os.close, reader)
                with self._command(contents) as (command, folder, descriptors):
                    process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        env=_environment(folder or "/tmp"),
                        cwd=folder or "/",
                        pass_fds=(writer, *descriptors),
                        start_new_session=True,
                    )
                    stack.callback(self._end, process)
                    os.close(writer)
                    writer = -1
                    return self._watched(process, reader, begin)
        finally:
            if writer >= 0:
                os.close(writer)

    def _watched(self, process: subprocess.Popen[bytes], channel: int, begin: float) -> Outcome:
        """Reads what the program says until all of it has ended, or ends it."""
        assert process.stdout is not None
        assert process.stderr is not None
        with process.stdout, process.stderr:
            names = {process.stdout.fileno(): "output", process.stderr.fileno(): "errors", channel: "value"}
            said: dict[str, bytes] = dict.fromkeys(names.values(), b"")
            limit = self._read(process, names, said, begin + self.limits.wall_seconds)
            if limit is None:
                # It may have closed its outputs and go on.
                try:
                    process.wait(max(0.0, begin + self.limits.wall_seconds - time.monotonic()))
                except subprocess.TimeoutExpired:
                    limit = "wall"
            self._end(process)
        seconds = time.monotonic() - begin
        started, _, value = said["value"].partition(b"\n")
        errors = said["errors"].decode("utf-8", "replace")
        if started != b"started" and limit is None:
            raise IsolationError(errors.strip()[-500:] or f"status {process.returncode}")
        return Outcome(
            output=said["output"].decode("utf-8", "replace"),
            errors=errors,
            value=value.decode("ascii", "replace") or None,
            end=limit or self._end_of(process.returncode, seconds),
            seconds=seconds,
        )

    def _end_of(self, status: int, seconds: float) -> End:
        if status == 0:
            return "ok"
        # bubblewrap ends with 128 + the number of the signal that ended the program; Popen says minus it.
        number = -status if status < 0 else status - 128
        # The hard limit kills; so does the kernel where the machine's memory is short.
        late = number == signal.SIGKILL and seconds >= self.limits.cpu_seconds
        if number == signal.SIGXCPU or late:
            return "cpu"
        return "signal" if 0 < number < 65 else "error"

    def _read(
        self,
        process: subprocess.Popen[bytes],
        names: Mapping[int, str],
        said: dict[str, bytes],
        deadline: float,
    ) -> End | None:
        """Fills `said` until every pipe is at its end; the limit that was reached, if one was."""
        with selectors.DefaultSelector() as selector:
            for descriptor in names:
                selector.register(descriptor, selectors.EVENT_READ)
            while selector.get_map():
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return "wall"
                if not self.isolated and process.poll() is not None:
                    _kill_session(process)  # what it left behind holds the pipes open
                for key, _ in selector.select(remaining if self.isolated else min(remaining, 0.1)):
                    chunk = os.read(key.fd, 65536)
                    if not chunk:
                        selector.unregister(key.fd)
                        continue
                    name = names[key.fd]
                    said[name] += chunk
                    if len(said[name]) > self.limits.output_bytes:
                        said[name] = said[name][: self.limits.output_bytes]
                        return "output"
        return None

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Ends all of it: bubblewrap's death is that of its process namespace; else the session is killed."""
        if process.poll() is None or not self.isolated:
            _kill_session(process)
        process.wait()

    def _settings(self, variable: str | None, descriptor: int) -> bytes:
        limits = self.limits
        bounds = {
            # The soft limit sends SIGXCPU, which a program may ignore; the hard one kills.
            "RLIMIT_CPU": [limits.cpu_seconds, limits.cpu_seconds + 1],
            "RLIMIT_AS": [limits.memory_bytes, limits.memory_bytes],
            "RLIMIT_FSIZE": [limits.file_bytes, limits.file_bytes],
            "RLIMIT_NOFILE": [limits.open_files, limits.open_files],
            "RLIMIT_CORE": [0, 0],
            "RLIMIT_MEMLOCK": [0, 0],
            "RLIMIT_SIGPENDING": [limits.pending_signals, limits.pending_signals],
        }
        settings = {
            "limits": bounds,
            "packages": self._packages,
            "variable": variable,
            "descriptor": descriptor,
        }
        return json.dumps(settings).encode()

    @contextlib.contextmanager
    def _command(self, contents: Mapping[str, bytes]) -> Iterator[tuple[list[str], str | None, list[int]]]:
        """The command, its working folder (None: /tmp of the sandbox), and the descriptors it needs."""
        interpreter = [os.path.realpath(sys.executable), "-I", "-S", "-B"]
        if self._bubblewrap is None:
            with tempfile.TemporaryDirectory(prefix="program-") as folder:
                for name, content in contents.items():
                    Path(folder, name).write_bytes(content)
                yield [*interpreter, f"{folder}/inside.py", folder], folder, []
            return
        with contextlib.ExitStack() as stack:
            descriptors = {name: _descriptor_of(stack, content) for name, content in contents.items()}
            filter_descriptor = _descriptor_of(stack, self._filter)
            command = [self._bubblewrap, *_view(self.limits.folder_bytes, self._packages)]
            for name, descriptor in descriptors.items():
                command += ["--ro-bind-data", str(descriptor), f"/program/{name}"]
            command += ["--remount-ro", "/", "--seccomp", str(filter_descriptor), "--"]
            command += [*interpreter, "/program/inside.py", "/program"]
            yield command, None, [*descriptors.values(), filter_descriptor]


def package_folders() -> list[str]:
    """Where this Python's installed packages lie (sympy, numpy, …)."""
    names = ("site-packages", "dist-packages")
    return [folder for folder in sys.path if os.path.basename(folder) in names and os.path.isdir(folder)]


def _view(folder_bytes: int, packages: list[str]) -> list[str]:
    """bubblewrap's options: what a program sees of this machine."""
    # Named beside --unshare-all, which goes on without it where it is refused.
    options = [
        "--unshare-all",
        "--unshare-user",
        "--die-with-parent",
        "--new-session",
        "--hostname",
        "sandbox",
    ]
    options += ["--uid", "65534", "--gid", "65534", "--chdir", "/tmp"]
    # First, so that an environment below /tmp is laid over it.
    options += ["--size", str(folder_bytes), "--tmpfs", "/tmp"]
    seen = ["/usr"]
    options += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "lib", "lib32", "lib64", "libx32", "sbin"):
        path = f"/{name}"
        if os.path.islink(path):
            options += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            options += ["--ro-bind", path, path]
    # Where libraries are found: the linker's cache, Debian's choices, Nix's store.
    for path in ("/etc/ld.so.cache", "/etc/alternatives", "/nix/store"):
        options += ["--ro-bind-try", path, path]
    interpreter_prefix = os.path.dirname(os.path.dirname(os.path.realpath(sys.executable)))
    for folder in (sys.base_prefix, sys.base_exec_prefix, interpreter_prefix, *packages):
        if not any(folder == place or folder.startswith(f"{place}/") for place in seen):
            options += ["--ro-bind", folder, folder]
            seen.append(folder)
    # Not zero: shared mappings of it are memory of the kernel's, as those of no file (system_calls.py).
    for device in ("null", "random", "urandom"):
        options += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    return options


def _environment(home: str) -> dict[str, str]:
    # One thread each: more are refused, and numpy's libraries would try.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": home, "TMPDIR": home, **threads}


def _descriptor_of(stack: contextlib.ExitStack, content: bytes) -> int:
    """A file without a name that holds `content`, open for reading from its beginning."""
    file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    file.write(content)
    file.flush()
    file.seek(0)
    return file.fileno()


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    # The session has the number of its first process, also after that one's end.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
