# SPDX-License-Identifier: Apache-2.0
"""Commands in a row, each recorded, so that a second start goes on where the first one was ended.

A record says under which key a command was begun or done. The key is a hash of the command line, of the
content of its input files and of the keys of the commands whose results it reads: where any of it differs,
the command is run again. A command that was begun and not done is run again from nothing, but for those that
resume by themselves. Nothing is removed that has no record, since it is not ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.whole_files import write_whole

RECORDS, LOCK = ".steps", ".lock"
# An earlier start that was killed has told its command to stop; training saves before it does.
LOCK_WAIT_SECONDS = 60.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Command:
    """One program to run.

    `inputs` are files whose content decides the result, `after` names of earlier commands whose results are
    read, `outputs` what it makes. `stdout` takes the standard output, where it is a result. `resumes`: it
    goes on by itself where it was stopped, and takes SIGINT as the request to stop.
    """

    name: str
    argv: tuple[str, ...]
    outputs: tuple[Path, ...]
    inputs: tuple[Path, ...] = ()
    after: tuple[str, ...] = ()
    stdout: Path | None = None
    resumes: bool = False


@dataclass(frozen=True)
class Step:
    """What a heading stands over: a title, one line of explanation, and commands."""

    title: str
    what: str
    commands: tuple[Command, ...]


@dataclass(frozen=True)
class Record:
    """What is known of a command. Seconds are those of all its starts."""

    key: str
    is_done: bool
    seconds: float
    peak_bytes: int


class Stopped(Exception):
    """The user, or the system, asked to stop; `signum` is how."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Records:
    """The records of a folder, one small file for each command; a damaged one counts as none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> Record | None:
        try:
            return Record(**json.loads((self._folder / f"{name}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, name: str, record: Record) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._folder / f"{name}.json", json.dumps(asdict(record)) + "\n")


def content_digest(path: Path) -> str:
    """sha256 of a file; "" where there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def key_of(command: Command, keys: Mapping[str, str]) -> str:
    """The key of a command, from those of the commands before it."""
    parts = [
        list(command.argv),
        [content_digest(path) for path in command.inputs],
        [keys[name] for name in command.after],
    ]
    return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()


class Runner:
    """Runs steps in `folder`; commands are run in, and shown as typed in, `root`."""

    def __init__(self, folder: Path, root: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._root, self._environment = folder, root, dict(environment)
        self.records = Records(folder / RECORDS)
        self._keys: dict[str, str] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._child_resumes = False
        self._signals: list[int] = []
        self._last_signal_seconds = float("-inf")
        self._lock: int | None = None

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Takes the folder for this process and handles signals meanwhile.

        Raises:
            UserError: another process is at work there, or the folder cannot be written.
        """
        self._lock = _locked(self._folder)
        before = {
            number: signal.signal(number, self._note)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN)  # under nohup
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._lock)

    def run(self, step: Step, number: int, of: int) -> None:
        """Runs what is not done yet of a step, under its heading.

        Raises:
            Stopped: a signal came. UserError: a command failed, or something of the user's is in its way.
        """
        heading = f"── {number}/{of} {step.title} "
        print(f"\n{heading}{'─' * max(0, 78 - len(heading))}\n{step.what}", flush=True)
        seconds = 0.0
        was_done = True
        for command in step.commands:
            key = self._keys[command.name] = key_of(command, self._keys)
            record = self.records.read(command.name)
            if record is None or not _is_current(record, key, command):
                was_done = False
                record = self._start(command, key, record)
            seconds += record.seconds
        print(f"{'done before' if was_done else 'done'}, in {seconds:.0f} s", flush=True)

    def _start(self, command: Command, key: str, record: Record | None) -> Record:
        self._raise_if_stopped()
        spent = 0.0
        if record is not None and record.key == key and not record.is_done and command.resumes:
            spent = record.seconds
        else:
            self._clear(command, record)
        self.records.write(command.name, Record(key, False, spent, 0))
        started = time.perf_counter()
        status, peak_bytes = self._execute(command)
        done = Record(key, status == 0, spent + time.perf_counter() - started, peak_bytes)
        self.records.write(command.name, done)
        self._raise_if_stopped()
        if status:
            raise UserError(
                f"{command.name}: ended with status {status}, what it said stands above; when that is put "
                "right, the same command goes on from here"
            )
        return done

    def _clear(self, command: Command, record: Record | None) -> None:
        """Removes what an earlier start of this command left."""
        for output in command.outputs:
            if output.exists() and record is None:
                raise UserError(
                    f"{output}: is there, and no quickstart has made it; give another folder with "
                    "--output, or move it away"
                )
            for path in (output, *output.parent.glob(f".{output.name}.*")):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def _execute(self, command: Command) -> tuple[int, int]:
        """Returns the exit status (128 + signal) and the peak memory of its largest process, in bytes."""
        print(f"$ {shlex.join(command.argv)}", flush=True)
        with contextlib.ExitStack() as stack:
            stdout = None
            if command.stdout is not None:
                command.stdout.parent.mkdir(parents=True, exist_ok=True)
                stdout = stack.enter_context(open(command.stdout, "wb"))
            self._child_resumes = command.resumes
            assert self._lock is not None
            self._child = subprocess.Popen(
                command.argv,
                cwd=self._root,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                start_new_session=True,  # a Ctrl-C reaches it once, and from us
                pass_fds=(self._lock,),  # held as long as a command lives, even without us
                preexec_fn=end_with(os.getpid()),
            )
            if self._signals:  # one came while it was started
                self._pass_on()
            _, status, usage = os.wait4(self._child.pid, 0)
            self._child.returncode = status
            self._child = None
        code = os.waitstatus_to_exitcode(status)
        # Linux counts in KiB, macOS in bytes.
        peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return (code if code >= 0 else 128 - code), peak_bytes

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last_signal_seconds < 0.5:
            return  # `timeout` and terminals may send one twice
        self._last_signal_seconds = now
        self._signals.append(signum)
        self._pass_on()

    def _pass_on(self) -> None:
        """Asks the command to stop; asked once more, ends it."""
        if self._child is None:
            return
        soft = signal.SIGINT if self._child_resumes else signal.SIGTERM
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, soft if len(self._signals) == 1 else signal.SIGKILL)

    def _raise_if_stopped(self) -> None:
        if self._signals:
            raise Stopped(self._signals[0])


def _is_current(record: Record, key: str, command: Command) -> bool:
    return record.is_done and record.key == key and all(path.exists() for path in command.outputs)


def _locked(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"--output={folder}: cannot be written ({error.strerror}); choose another folder"
        ) from None
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    said = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise UserError(
                    f"--output={folder}: another quickstart is at work there; wait for it, or give another"
                ) from None
        if not said:
            print(f"waiting for an earlier quickstart in {folder} to end", file=sys.stderr, flush=True)
            said = True
        time.sleep(0.2)


def end_with(parent: int):  # type: ignore[no-untyped-def]
    """For a child before it becomes its program: the kernel asks it to stop when we die, however we die."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def in_child() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return in_child


def total_seconds(records: Records, steps: Sequence[Step]) -> float:
    """The time of all commands, over all starts."""
    found = [records.read(command.name) for step in steps for command in step.commands]
    return sum(record.seconds for record in found if record is not None)


def peak_bytes(records: Records, steps: Sequence[Step]) -> tuple[int, str]:
    """The memory of the largest process, in bytes, and the command it belonged to."""
    peaks = [
        (record.peak_bytes, command.name)
        for step in steps
        for command in step.commands
        if (record := records.read(command.name)) is not None
    ]
    return max(peaks, default=(0, ""))
