# SPDX-License-Identifier: Apache-2.0
"""The local launcher with small programs as ranks, run as a user runs it: in a process of its own."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from megatron.launcher.local import Share, launch, rank_environment, to_blame
from megatron.neox_arguments.errors import UserError

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 120.0

# argv: ranks, folder, program of the ranks
LAUNCHER = """
import os, sys
from megatron.launcher.local import launch
from megatron.launcher.processes import Patience
status = launch([sys.executable, "-c", sys.argv[3], sys.argv[2]], int(sys.argv[1]), environment=os.environ,
                on_gpu=False, patience=Patience(report_seconds=0.3, exit_seconds=0.5))
sys.exit(status)
"""

RANK_PRELUDE = """
import os, signal, sys, time
from pathlib import Path
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
def note(name, text=""):
    (folder / f"{name}{rank}").write_text(text or str(os.getpid()))
"""

# Works until asked to stop; then takes a moment, as a checkpoint does.
WORKER = (
    RANK_PRELUDE
    + """
asked = []
for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(signum, lambda number, frame: asked.append(number))
note("ready")
while not asked:
    time.sleep(0.02)
time.sleep(0.7)
note("saved", " ".join(map(str, asked)))
"""
)

STUBBORN = RANK_PRELUDE + """
for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, signal.SIG_IGN)
child = __import__("subprocess").Popen(["sleep", "1000"])
note("child", str(child.pid))
note("ready")
time.sleep(1000)
"""  # fmt: skip


@contextmanager
def start(program: str, ranks: int, folder: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The launcher in a process group of its own; what a failing test leaves of it is killed."""
    arguments = [sys.executable, "-c", LAUNCHER, str(ranks), str(folder), program]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen(arguments, cwd=ROOT, text=True, start_new_session=True, **settings) as launcher:
        try:
            yield launcher
        finally:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)


def wait_for(folder: Path, *names: str) -> list[int]:
    """The process ids the ranks wrote into `names`."""
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end:
        if all((folder / name).exists() and (folder / name).read_text() for name in names):
            return [int((folder / name).read_text()) for name in names]
        time.sleep(0.02)
    raise AssertionError(f"{names} not seen within {LIMIT_SECONDS:.0f} s")


def alive(pid: int) -> bool:
    """A process that runs; one that has ended and is not yet collected does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def assert_gone(pids: list[int], within_seconds: float = 5.0) -> None:
    end = time.monotonic() + within_seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.02)
    assert [pid for pid in pids if alive(pid)] == []


def test_each_rank_gets_its_place(tmp_path: Path) -> None:
    names = [
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "OMP_NUM_THREADS",
    ]
    program = RANK_PRELUDE + f"import json; note('env', json.dumps([os.environ[n] for n in {names}]))"
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    with start(program, 3, tmp_path, env=environment) as launcher:
        launcher.communicate(timeout=LIMIT_SECONDS)
    assert launcher.returncode == 0
    places = [json.loads((tmp_path / f"env{rank}").read_text()) for rank in range(3)]
    cores = len(os.sched_getaffinity(0))
    for rank, place in enumerate(places):
        assert place[:5] == [str(rank), str(rank), "3", "3", "127.0.0.1"]
        assert place[6] == str(max(1, cores // 3))
    ports = {int(place[5]) for place in places}
    assert len(ports) == 1
    assert 1024 <= ports.pop() < 65536


def test_threads_that_are_set_stay_and_cpu_ranks_see_no_gpu() -> None:
    base = {"OMP_NUM_THREADS": "7", "CUDA_VISIBLE_DEVICES": "0,1", "PATH": "/bin"}
    on_cpu = rank_environment(1, Share(0, 2, (0, 1)), "127.0.0.1", 29500, base, on_gpu=False)
    on_gpu = rank_environment(1, Share(0, 2, (0, 1)), "127.0.0.1", 29500, base, on_gpu=True)
    assert on_cpu["OMP_NUM_THREADS"] == "7"
    assert on_cpu["CUDA_VISIBLE_DEVICES"] == ""
    assert on_gpu["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert on_gpu["PATH"] == "/bin"


def test_output_is_rank_0s_and_the_errors_of_others_with_their_number(tmp_path: Path) -> None:
    program = RANK_PRELUDE + "print(f'out {rank}'); print(f'err {rank}\\nno end', file=sys.stderr, end='')"
    with start(program, 3, tmp_path) as launcher:
        out, err = launcher.communicate(timeout=LIMIT_SECONDS)
    assert out == "out 0\n"
    # Rank 0 writes to the same stream by itself, so its unfinished line may be followed by another's.
    assert err.count("err 0\nno end") == 1
    rest = err.replace("err 0\nno end", "")
    assert sorted(rest.splitlines()) == [
        "[rank 1] err 1",
        "[rank 1] no end",
        "[rank 2] err 2",
        "[rank 2] no end",
    ]


def test_a_great_deal_on_standard_error_does_not_block_a_rank(tmp_path: Path) -> None:
    program = RANK_PRELUDE + "sys.stderr.write(('x' * 99 + '\\n') * 20000 if rank else '')"
    with start(program, 2, tmp_path) as launcher:
        _, err = launcher.communicate(timeout=LIMIT_SECONDS)
    assert launcher.returncode == 0
    assert err.count("[rank 1] " + "x" * 99 + "\n") == 20000


def test_a_terminal_stays_a_terminal_for_rank_0(tmp_path: Path) -> None:
    program = RANK_PRELUDE + "note('tty', str((sys.stdout.isatty(), sys.stderr.isatty())))"
    controller, terminal = pty.openpty()
    with start(program, 2, tmp_path, stdout=terminal, stderr=terminal) as launcher:
        assert launcher.wait(timeout=LIMIT_SECONDS) == 0
    os.close(terminal)
    os.close(controller)
    assert (tmp_path / "tty0").read_text() == "(True, True)"
    assert (tmp_path / "tty1").read_text() == "(False, False)"


@pytest.mark.parametrize(("death", "status", "words"), [
    ("sys.exit(7)", 7, "ended with exit status 7"),
    ("os.kill(os.getpid(), signal.SIGKILL)", 137, "was killed by SIGKILL"),
])  # fmt: skip
def test_a_rank_that_dies_ends_the_others(tmp_path: Path, death: str, status: int, words: str) -> None:
    dying = f"import os\nif os.environ['RANK'] == '1':\n    import sys, signal\n    {death}\n"
    with start(dying + STUBBORN, 3, tmp_path) as launcher:
        pids = wait_for(tmp_path, "ready0", "ready2", "child0", "child2")
        _, err = launcher.communicate(timeout=LIMIT_SECONDS)
    assert launcher.returncode == status
    assert "rank 1 (process " in err
    assert words in err
    assert "2 other ranks end within 0.8 s" in err  # asked after 0.3 s, killed 0.5 s later
    assert_gone(pids)


def test_the_rank_killed_by_a_signal_is_blamed_before_those_that_fell_over_it() -> None:
    assert to_blame({0: 1, 1: -signal.SIGSEGV, 2: 1}) == 1
    assert to_blame({2: 5, 1: 4}) == 1


@pytest.mark.parametrize(("signum", "status"), [
    (signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGUSR1, 0),
])  # fmt: skip
def test_a_stop_reaches_every_rank_once_and_they_save(
    tmp_path: Path, signum: signal.Signals, status: int
) -> None:
    with start(WORKER, 2, tmp_path) as launcher:
        pids = wait_for(tmp_path, "ready0", "ready1")
        # As a terminal does: to the launcher's whole process group.
        os.killpg(launcher.pid, signum)
        _, err = launcher.communicate(timeout=LIMIT_SECONDS)
    assert [(tmp_path / f"saved{rank}").read_text() for rank in (0, 1)] == [str(int(signum))] * 2
    assert launcher.returncode == status
    assert f"{signum.name}: the ranks finish their step, save and stop" in err
    assert_gone(pids)


def test_a_second_stop_kills(tmp_path: Path) -> None:
    with start(STUBBORN, 2, tmp_path) as launcher:
        pids = wait_for(tmp_path, "ready0", "ready1", "child0", "child1")
        launcher.send_signal(signal.SIGINT)
        time.sleep(0.8)
        assert launcher.poll() is None
        launcher.send_signal(signal.SIGINT)
        _, err = launcher.communicate(timeout=LIMIT_SECONDS)
    assert launcher.returncode == 128 + signal.SIGINT
    assert "all ranks are killed" in err
    assert_gone(pids)


def test_one_request_that_arrives_twice_at_once_is_one(tmp_path: Path) -> None:
    with start(WORKER, 2, tmp_path) as launcher:
        wait_for(tmp_path, "ready0", "ready1")
        launcher.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        launcher.send_signal(signal.SIGTERM)
        launcher.communicate(timeout=LIMIT_SECONDS)
    assert (tmp_path / "saved1").exists()
    assert launcher.returncode == 0


def test_a_rank_that_a_stop_killed_has_not_saved(tmp_path: Path) -> None:
    program = RANK_PRELUDE + "note('ready')\nif rank:\n    time.sleep(1000)"
    with start(program, 2, tmp_path) as launcher:
        wait_for(tmp_path, "ready0", "ready1")
        launcher.send_signal(signal.SIGUSR1)
        launcher.communicate(timeout=LIMIT_SECONDS)
    assert launcher.returncode == 128 + signal.SIGUSR1


def test_a_rank_that_fails_while_stopping_gives_its_status(tmp_path: Path) -> None:
    program = WORKER + "sys.exit(3 if rank == 1 else 0)"
    with start(program, 2, tmp_path) as launcher:
        wait_for(tmp_path, "ready0", "ready1")
        launcher.send_signal(signal.SIGINT)
        _, err = launcher.communicate(timeout=LIMIT_SECONDS)
    assert launcher.returncode == 3
    assert "rank 1" in err


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent death signal is Linux's")
def test_ranks_die_with_a_killed_launcher(tmp_path: Path) -> None:
    with start(WORKER, 2, tmp_path) as launcher:
        pids = wait_for(tmp_path, "ready0", "ready1")
        launcher.kill()
        launcher.communicate(timeout=LIMIT_SECONDS)
    assert_gone(pids)
    assert not (tmp_path / "saved0").exists()


def test_a_terminal_that_has_gone_does_not_keep_the_ranks_from_saving(tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    with start(WORKER, 2, tmp_path, stdout=terminal, stderr=terminal) as launcher:
        wait_for(tmp_path, "ready0", "ready1")
        os.close(terminal)
        os.close(controller)
        launcher.send_signal(signal.SIGHUP)
        launcher.wait(timeout=LIMIT_SECONDS)
    assert launcher.returncode == 128 + signal.SIGHUP
    assert [(tmp_path / f"saved{rank}").read_text() for rank in (0, 1)] == [str(int(signal.SIGHUP))] * 2


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(UserError, match=f"master_port={port}: "):
            launch(["true"], 1, environment=os.environ, on_gpu=False, master_port=port)


def test_a_command_that_cannot_start_is_a_user_error_and_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match="no-such-program"):
        launch([str(tmp_path / "no-such-program")], 2, environment=os.environ, on_gpu=False)
    assert signal.getsignal(signal.SIGTERM) == before
