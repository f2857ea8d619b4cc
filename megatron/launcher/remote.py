# SPDX-License-Identifier: Apache-2.0
"""Ranks that another program starts (srun, mpirun, pdsh): run it, pass its messages and stop requests on.

These programs report one exit status for all ranks, and it may be that of a rank they killed themselves. So
the status of the rank that died first is read from what they write to standard error.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from megatron.launcher.job import Commands
from megatron.launcher.processes import (
    POLL_SECONDS,
    SCHEDULERS_SIGNALS,
    Patience,
    Stop,
    die_with,
    kill_group,
    shell_status,
    write_error,
)
from megatron.neox_arguments.errors import UserError

STOP_COMMAND_SECONDS = 30.0


def run_commands(
    commands: Commands,
    environment: Mapping[str, str],
    stop: Stop,
    say: Callable[[str], None],
    patience: Patience | None = None,
) -> int:
    """Runs the start command to its end, on the main thread.

    Returns:
        0 when every rank ended with 0, or the exit status of the one that died first. After a stop that all
        obeyed 0 where a scheduler asked for it (SIGTERM or USR1: its batch script looks at the requeue file),
        128 + the signal where a person did.

    Raises:
        UserError: the command cannot be started.
    """
    with _written(commands.private_files):
        return _run(commands, environment, stop, say, patience or Patience())


@contextmanager
def _written(files: Mapping[Path, str]) -> Iterator[None]:
    """Files that only this user can read, there for the time being."""
    try:
        for path, text in files.items():
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(handle, "w", encoding="utf-8") as file:
                    file.write(text)
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}; the agents find credentials there") from error
        yield
    finally:
        for path in files:
            path.unlink(missing_ok=True)


def _run(
    commands: Commands,
    environment: Mapping[str, str],
    stop: Stop,
    say: Callable[[str], None],
    patience: Patience,
) -> int:
    try:
        process = subprocess.Popen(
            commands.start,
            env={**environment, **commands.environment},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            # Told, not killed: it must end the ranks on other machines.
            preexec_fn=die_with(os.getpid(), signal.SIGTERM),
        )
    except OSError as error:
        raise UserError(
            f"{commands.start[0]}: {error.strerror}; install it, or use another launcher"
        ) from error
    try:
        return _Watch(process, commands, environment, stop, patience, say).run()
    finally:
        kill_group(process.pid)
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


class _Watch:
    """The wait for the start command."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        commands: Commands,
        environment: Mapping[str, str],
        stop: Stop,
        patience: Patience,
        say: Callable[[str], None],
    ) -> None:
        self._process, self._commands, self._environment = process, commands, environment
        self._stop, self._patience, self._say = stop, patience, say
        self._handled = 0  # stop requests acted on
        self._failure: int | None = None  # exit status of the rank that died first
        self._deadlines: list[tuple[float, str]] = []  # (time, signal) for the others
        self._tail = b""

    def run(self) -> int:
        assert self._process.stderr is not None
        with selectors.DefaultSelector() as selector:
            os.set_blocking(self._process.stderr.fileno(), False)
            selector.register(self._process.stderr, selectors.EVENT_READ)
            while self._process.poll() is None:
                self._pass_on(selector, POLL_SECONDS)
                self._forward_stop()
                self._press_others()
            self._pass_on(selector, 0)
        if self._tail:
            self._line(self._tail)
        return self._status()

    def _pass_on(self, selector: selectors.BaseSelector, wait_seconds: float) -> None:
        if not selector.get_map():
            time.sleep(wait_seconds)
            return
        for key, _ in selector.select(wait_seconds):
            chunk = os.read(key.fd, 1 << 20)
            if not chunk:
                selector.unregister(key.fileobj)
            *lines, self._tail = (self._tail + chunk).split(b"\n")
            for line in lines:
                self._line(line)

    def _line(self, raw: bytes) -> None:
        line = raw.decode(errors="replace")
        write_error(line)
        found = self._commands.failure.search(line)
        if found and self._failure is None and int(found[1]):
            self._failure = int(found[1])
            now, patience = time.monotonic(), self._patience
            self._deadlines = [
                (now + patience.report_seconds, "TERM"),
                (now + patience.report_seconds + patience.exit_seconds, "KILL"),
            ]

    def _forward_stop(self) -> None:
        while self._handled < len(self._stop.received):
            signum = self._stop.received[self._handled]
            self._handled += 1
            name = signal.Signals(signum).name
            if self._handled == 1:
                self._say(
                    f"{name}: the ranks finish their step, save and stop; the same command goes on from "
                    "there. Ctrl-C once more ends them at once, without saving."
                )
                self._tell(signum)
            elif signum == signal.SIGINT:
                self._say("SIGINT again: all ranks are killed; the last checkpoint is the one to go on from.")
                self._end("KILL")

    def _tell(self, signum: int) -> None:
        """Passes a stop request on to all ranks."""
        if self._commands.stop is None:
            self._process.send_signal(self._commands.signals.get(signum, signum))
        else:
            self._run_stop(signal.Signals(signum).name.removeprefix("SIG"))

    def _end(self, name: str) -> None:
        if self._commands.stop is not None:
            self._run_stop(name)
        elif name == "KILL":
            self._process.kill()
        else:
            self._process.terminate()

    def _run_stop(self, name: str) -> None:
        assert self._commands.stop is not None
        try:
            subprocess.run(
                self._commands.stop[name],
                env=dict(self._environment),
                stdin=subprocess.DEVNULL,
                timeout=STOP_COMMAND_SECONDS,
                check=False,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            self._say(f"warning: the ranks could not be told to stop ({error}); the start command is ended")
            self._process.terminate()

    def _press_others(self) -> None:
        """Ends what goes on after a rank has died, where the start command does not do so itself."""
        while self._deadlines and time.monotonic() >= self._deadlines[0][0]:
            _, name = self._deadlines.pop(0)
            if self._commands.stop is not None:
                self._say(f"a rank has died: the others get SIG{name}")
                self._end(name)

    def _status(self) -> int:
        returned = shell_status(self._process.returncode)
        if self._stop.received:
            first = self._stop.received[0]
            by_person = first not in SCHEDULERS_SIGNALS
            obeyed = returned in (0, 128 + first) and self._failure in (None, 128 + first)
            if obeyed or self._handled > 1:
                return 128 + first if by_person else 0 if obeyed else returned
        if self._failure is not None and returned:
            return self._failure
        return returned


def failure_line(pattern: str) -> re.Pattern[str]:
    """A pattern whose first group is the exit status of a dead rank."""
    return re.compile(pattern)
