# SPDX-License-Identifier: Apache-2.0
"""Commands in a row: what is run, what is not run again, and what an interruption leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron.neox_arguments.errors import UserError
from tools.quickstart_parts.steps import (
    Command,
    Record,
    Records,
    Runner,
    Step,
    key_of,
    peak_bytes,
    total_seconds,
)

ROOT = Path(__file__).resolve().parents[2]
# Writes a line into `log` for each start, then its output.
WRITE = "import sys; open('log', 'a').write(sys.argv[1] + ' '); open(sys.argv[2], 'w').write('made')"
# Goes on from its own file: a number that each start raises, done at 2. It ends itself the first time.
RESUMING = """
import pathlib, sys
place = pathlib.Path(sys.argv[1])
place.mkdir(exist_ok=True)
count = place / "count"
before = int(count.read_text()) if count.exists() else 0
count.write_text(str(before + 1))
sys.exit(0 if before + 1 >= 2 else 3)
"""


def writes(
    folder: Path, name: str, *after: str, inputs: tuple[Path, ...] = (), script: str = WRITE
) -> Command:
    return Command(
        name,
        (sys.executable, "-c", script, name, f"{name}.out"),
        outputs=(folder / f"{name}.out",),
        inputs=inputs,
        after=after,
    )


def start(folder: Path, *commands: Command) -> str:
    """Runs the commands as one step; returns the names of those that were started, in order."""
    (folder / "log").unlink(missing_ok=True)
    runner = Runner(folder, folder, os.environ)
    with runner.at_work():
        runner.run(Step("Title", "What it does.", commands), 1, 1)
    return (folder / "log").read_text().strip() if (folder / "log").exists() else ""


def test_what_is_done_is_not_done_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    commands = [writes(tmp_path, "a"), writes(tmp_path, "b", "a")]
    assert start(tmp_path, *commands) == "a b"
    said = capfd.readouterr().out
    assert "── 1/1 Title ──" in said
    assert "What it does." in said
    assert f"$ {sys.executable} -c " in said
    assert "done, in " in said
    assert start(tmp_path, *commands) == ""
    assert "done before, in " in capfd.readouterr().out


def test_a_changed_input_a_changed_command_or_a_lost_output_runs_what_follows(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("one")
    a, b, c = writes(tmp_path, "a", inputs=(source,)), writes(tmp_path, "b", "a"), writes(tmp_path, "c")
    assert start(tmp_path, a, b, c) == "a b c"
    source.write_text("two")
    assert start(tmp_path, a, b, c) == "a b"
    other = writes(tmp_path, "b", "a", script=WRITE + " # changed")
    assert start(tmp_path, a, other, c) == "b"
    (tmp_path / "c.out").unlink()
    assert start(tmp_path, a, other, c) == "c"
    (tmp_path / ".steps" / "a.json").write_text("{ damaged")
    (tmp_path / "a.out").unlink()
    assert start(tmp_path, a, other, c) == "a"


def test_a_failed_command_is_named_and_run_again_from_nothing(tmp_path: Path) -> None:
    script = WRITE + "; open(sys.argv[2] + '.part', 'w'); sys.exit(0 if open('log').read() == 'a a ' else 3)"
    command = writes(tmp_path, "a", script=script)
    runner = Runner(tmp_path, tmp_path, os.environ)
    with pytest.raises(UserError, match="a: ended with status 3"), runner.at_work():
        runner.run(Step("T", "w", (command,)), 1, 1)
    (tmp_path / ".a.out.77.unfinished").mkdir()  # what a killed program may leave beside its output
    runner = Runner(tmp_path, tmp_path, os.environ)
    with runner.at_work():
        runner.run(Step("T", "w", (command,)), 1, 1)
    assert not (tmp_path / ".a.out.77.unfinished").exists()
    record = Records(tmp_path / ".steps").read("a")
    assert record is not None
    assert record.is_done


def test_a_command_that_resumes_keeps_what_it_has_until_its_inputs_change(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("one")
    train = Command(
        "train", (sys.executable, "-c", RESUMING, "run"), (tmp_path / "run",), inputs=(source,), resumes=True
    )
    with pytest.raises(UserError, match="train: ended with status 3"):
        start(tmp_path, train)
    first = Records(tmp_path / ".steps").read("train")
    assert first is not None
    start(tmp_path, train)
    assert (tmp_path / "run" / "count").read_text() == "2"
    second = Records(tmp_path / ".steps").read("train")
    assert second is not None
    assert second.seconds > first.seconds  # of both starts
    source.write_text("two")
    with pytest.raises(UserError, match="train: ended with status 3"):
        start(tmp_path, train)
    assert (tmp_path / "run" / "count").read_text() == "1"


def test_what_the_user_has_there_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "a.out").write_text("mine")
    with pytest.raises(UserError, match=r"a\.out: is there, and no quickstart has made it"):
        start(tmp_path, writes(tmp_path, "a"))
    assert (tmp_path / "a.out").read_text() == "mine"


def test_standard_output_that_is_a_result_goes_to_its_file(tmp_path: Path) -> None:
    text = tmp_path / "samples" / "base.txt"
    command = Command("s", (sys.executable, "-c", "print('2x.')"), (text,), stdout=text)
    start(tmp_path, command)
    assert text.read_text() == "2x.\n"


def test_memory_and_time_are_recorded(tmp_path: Path) -> None:
    """In a process of its own: a child's peak counts the memory of the parent it was forked from."""
    call = f"from tests.tools.test_quickstart_steps import record_a_hungry_command as r; r({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", call], cwd=Path(__file__).parents[2], check=True, timeout=240)


def record_a_hungry_command(folder: str) -> None:
    tmp_path = Path(folder)
    hungry = "x = bytearray(300 * 2**20); import time; time.sleep(0.3)"
    command = Command("big", (sys.executable, "-c", hungry), ())
    small = writes(tmp_path, "small")
    start(tmp_path, command, small)
    records, step = Records(tmp_path / ".steps"), Step("T", "w", (command, small))
    count, name = peak_bytes(records, [step])
    assert name == "big"
    assert 300 * 2**20 < count < 500 * 2**20
    assert 0.3 < total_seconds(records, [step]) < 20


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    runner = Runner(tmp_path / "file" / "below", tmp_path, os.environ)
    with pytest.raises(UserError, match="below: cannot be written"), runner.at_work():
        pass


def test_keys_depend_on_content_not_on_time(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.write_text("one")
    command = writes(tmp_path, "a", "before", inputs=(source,))
    key = key_of(command, {"before": "k"})
    os.utime(source, (1, 1))
    assert key_of(command, {"before": "k"}) == key
    assert key_of(command, {"before": "other"}) != key
    source.unlink()
    assert key_of(command, {"before": "k"}) != key


DRIVER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tools.quickstart_parts.steps import Command, Runner, Step, Stopped
folder = Path({folder!r})
work = '''
import pathlib, signal, sys, time
def stop(number, frame):
    if {stubborn}: return
    pathlib.Path("got").write_text(signal.Signals(number).name); sys.exit(130)
signal.signal(signal.SIGINT, stop); signal.signal(signal.SIGTERM, stop)
pathlib.Path("child").write_text(str(__import__("os").getpid()))
time.sleep(60)
'''
runner = Runner(folder, folder, os.environ)
try:
    with runner.at_work():
        runner.run(Step("T", "w", (Command("c", (sys.executable, "-c", work), (), resumes={resumes}),)), 1, 1)
except Stopped as stopped:
    sys.exit(128 + stopped.signum)
"""


def driven(folder: Path, resumes: bool = False, stubborn: bool = False) -> tuple[subprocess.Popen[str], int]:
    """A process that runs one sleeping command, and the command's process id."""
    source = DRIVER.format(root=str(ROOT), folder=str(folder), resumes=resumes, stubborn=stubborn)
    process = subprocess.Popen([sys.executable, "-c", source], stderr=subprocess.PIPE, text=True)
    child = folder / "child"
    deadline = time.monotonic() + 30
    while not (child.exists() and child.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.02)
    return process, int(child.read_text())


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        assert time.monotonic() < deadline, f"process {pid} still lives"
        time.sleep(0.02)


@pytest.mark.parametrize(("resumes", "received"), [(True, "SIGINT"), (False, "SIGTERM")])
def test_ctrl_c_stops_the_command_and_says_130(tmp_path: Path, resumes: bool, received: str) -> None:
    process, child = driven(tmp_path, resumes=resumes)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert (tmp_path / "got").read_text() == received
    wait_until_gone(child)
    record = Records(tmp_path / ".steps").read("c")
    assert record is not None
    assert not record.is_done


def test_a_second_ctrl_c_ends_a_command_that_does_not_listen(tmp_path: Path) -> None:
    process, child = driven(tmp_path, stubborn=True)
    process.send_signal(signal.SIGINT)
    time.sleep(0.7)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=240)
    assert process.returncode == 130
    wait_until_gone(child)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death is Linux's")
def test_a_killed_quickstart_leaves_no_command_behind(tmp_path: Path) -> None:
    process, child = driven(tmp_path)
    process.kill()
    process.communicate(timeout=240)
    wait_until_gone(child)
    assert start(tmp_path, writes(tmp_path, "a")) == "a"  # the folder is free again


def test_two_at_once_in_one_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.quickstart_parts.steps.LOCK_WAIT_SECONDS", 0.3)
    first = Runner(tmp_path, tmp_path, os.environ)
    with first.at_work(), pytest.raises(UserError, match="another quickstart is at work there"):
        start(tmp_path, writes(tmp_path, "a"))
    assert start(tmp_path, writes(tmp_path, "a")) == "a"


def test_records_survive_damage(tmp_path: Path) -> None:
    records = Records(tmp_path)
    assert records.read("x") is None
    records.write("x", Record("k", True, 1.5, 7))
    assert records.read("x") == Record("k", True, 1.5, 7)
    for damaged in ("", "[]", '{"key": "k"}', '{"surplus": 1}', "\0"):
        (tmp_path / "x.json").write_text(damaged)
        assert records.read("x") is None
