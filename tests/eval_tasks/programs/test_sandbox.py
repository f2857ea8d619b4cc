# SPDX-License-Identifier: Apache-2.0
"""Programs that attack the sandbox harm nothing and fail alone; honest ones get their results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_tasks.programs import sandbox as module
from eval_tasks.programs.inside import described
from eval_tasks.programs.pool import in_parallel
from eval_tasks.programs.sandbox import IsolationError, Limits, Sandbox, open_sandbox
from eval_tasks.programs.system_calls import REFUSED, system_call_filter
from megatron.neox_arguments.errors import UserError
from tests.eval_tasks.programs.boxes import gone, running, sandbox_or_skip


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return sandbox_or_skip(Limits(cpu_seconds=2, memory_bytes=512 << 20))


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LLEMMA_SECRET", "the-secret-of-this-test")
    return "the-secret-of-this-test"


def test_mappings_of_files_and_private_memory_work(box: Sandbox) -> None:
    outcome = box.run(
        "import mmap\nown = mmap.mmap(-1, 1 << 16, mmap.MAP_PRIVATE)\nown[5] = 7\n"
        "with open('/tmp/x', 'w+b') as file:\n    file.write(bytes(8192))\n    file.flush()\n"
        "    shared = mmap.mmap(file.fileno(), 8192)\n    shared[0] = 65\n"
        "print(own[5], open('/tmp/x').read(1))"
    )
    assert (outcome.output, outcome.end) == ("7 A\n", "ok"), outcome


def test_copies_and_other_commands_of_fcntl_work(box: Sandbox) -> None:
    outcome = box.run(
        "import fcntl, os, shutil\nopen('/tmp/x', 'w').write('text')\nshutil.copy2('/tmp/x', '/tmp/y')\n"
        "file = open('/tmp/y')\nfcntl.flock(file, fcntl.LOCK_EX)\nother = os.dup(file.fileno())\n"
        "print(file.read(), fcntl.fcntl(other, fcntl.F_GETFD), fcntl.fcntl(other, fcntl.F_DUPFD, 20) >= 20)"
    )
    assert (outcome.output, outcome.end) == ("text 1 True\n", "ok"), outcome


def test_what_a_program_prints_and_its_variable(box: Sandbox) -> None:
    outcome = box.run(
        "import sys\nprint('ä', 6 * 7)\nprint('note', file=sys.stderr)\nanswer = 3 / 4", "answer"
    )
    assert (outcome.output, outcome.errors, outcome.end, outcome.error) == ("ä 42\n", "note\n", "ok", None)
    assert json.loads(outcome.value or "") == {"kind": "number", "text": "0.75"}


def test_a_variable_is_told_after_an_exception(box: Sandbox) -> None:
    outcome = box.run("answer = 5\nraise ValueError('no')", "answer")
    assert json.loads(outcome.value or "") == {"kind": "number", "text": "5"}
    assert (outcome.end, outcome.error) == ("error", "ValueError: no")
    assert "inside.py" not in outcome.errors


def test_packages_can_be_imported() -> None:
    pytest.importorskip("sympy")
    box = sandbox_or_skip(Limits(cpu_seconds=60))
    outcome = box.run(
        "import numpy, sympy\nanswer = sympy.sqrt(8)\nprint(numpy.linalg.det(numpy.eye(30)))", "answer"
    )
    assert json.loads(outcome.value or "") == {"kind": "sympy", "text": "2*sqrt(2)"}
    assert outcome.output == "1.0\n"


# (program, how it ends, what stands in its output or errors)
CONTAINED = {
    "fork bomb": ("import os\nwhile True:\n    os.fork()", "error", "Operation not permitted"),
    "threads without end": (
        "import threading\nthreading.Thread(target=print).start()",
        "error",
        "new thread",
    ),
    "a daemon": (
        "import subprocess\nsubprocess.Popen(['sleep', '1000'])",
        "error",
        "Operation not permitted",
    ),
    "multiprocessing": (
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "error",
        "Operation not permitted",
    ),
    "a shell's background job": (
        "import os\nos.execv('/bin/sh', ['sh', '-c', 'sleep 1000 & echo left'])",
        "error",
        "fork",
    ),
    "a list of 100 GB": ("x = [0] * (100 * 2**30 // 8)", "error", "MemoryError"),
    "memory bit by bit": (
        "import mmap\nx = []\nwhile True:\n    x.append(mmap.mmap(-1, 1 << 24, mmap.MAP_PRIVATE))",
        "error",
        "allocate memory",
    ),
    "more memory than it may": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "error",
        "not allowed",
    ),
    "memory beside the process": ("import os\nos.memfd_create('x')", "error", "Operation not permitted"),
    "shared memory that is given back in part": (
        "import mmap\nx = []\nwhile True:\n    m = mmap.mmap(-1, 200 << 20)\n"
        "    for n in range(0, len(m), 4096):\n        m[n] = 1\n    m.resize(4096)\n    x.append(m)",
        "error",
        "Operation not permitted",
    ),
    "shared memory by the library": (
        "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\nc.mmap.restype = ctypes.c_ssize_t\n"
        "if c.mmap(None, ctypes.c_size_t(4096), 3, 0x21, -1, ctypes.c_ssize_t(0)) == -1:\n"
        "    raise OSError(ctypes.get_errno(), 'refused')",
        "error",
        "refused",
    ),
    "shared memory of a device": ("open('/dev/zero', 'r+b')", "error", "No such file"),
    "pages held by a pipe": (
        "import ctypes, os, platform\nc = ctypes.CDLL(None, use_errno=True)\n"
        "vmsplice = {'x86_64': 278}.get(platform.machine(), 75)\npage = ctypes.create_string_buffer(4096)\n"
        "vector = (ctypes.c_size_t * 2)(ctypes.addressof(page), 4096)\n"
        "if c.syscall(vmsplice, os.pipe()[1], vector, 1, 0) < 0:\n"
        "    raise OSError(ctypes.get_errno(), 'refused')",
        "error",
        "refused",
    ),
    "an endless loop": ("while True:\n    pass", "cpu", ""),
    "signals ignored": (
        "import signal\nfor n in range(1, 65):\n    try:\n        signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass",
        "cpu",
        "",
    ),
    "endless output": ("while True:\n    print('x' * 1000)", "output", "xxx"),
    "endless errors": ("import sys\nwhile True:\n    sys.stderr.write('y' * 1000)", "output", "yyy"),
    "outputs closed, then endless": (
        "import os\nos.closerange(0, 100)\nwhile True:\n    pass",
        "cpu",
        "",
    ),
    "a huge power": ("print(9**9**9)", "cpu", ""),
    "a number too long to print": ("print(10**100000)", "error", "ValueError"),
    "recursion": ("def f(): f()\nf()", "error", "RecursionError"),
    "a crash of the interpreter": ("import ctypes\nctypes.string_at(0)", "signal", ""),
    "nested brackets": ("print(eval('(' * 100000))", "output", "("),
    "a socket": ("import socket\nsocket.socket()", "error", "Operation not permitted"),
    "a socket of a virtual machine": (
        "import socket\nsocket.socket(40, 1)",
        "error",
        "Operation not permitted",
    ),
    "a name server": ("import urllib.request as u\nu.urlopen('http://example.org')", "error", "Error"),
    "/proc": ("import os\nos.listdir('/proc')", "error", "No such file"),
    "the parent's environment": ("print(open('/proc/1/environ').read())", "error", "No such file"),
    "/etc/shadow": ("print(open('/etc/shadow').read())", "error", "No such file"),
    "/etc/passwd": ("print(open('/etc/passwd').read())", "error", "No such file"),
    "a write to /usr": ("open('/usr/x', 'w')", "error", "Read-only file system"),
    "a write to /": ("open('/x', 'w')", "error", "Read-only file system"),
    "a write to /dev": ("open('/dev/x', 'w')", "error", "Read-only file system"),
    "its own program changed": ("open('/program/program.py', 'w')", "error", "Read-only file system"),
    "a file too large": (
        "with open('/tmp/x', 'wb') as f:\n    while True:\n        f.write(bytes(1 << 20))",
        "error",
        "too large",
    ),
    "a full folder": (
        "for i in range(1000):\n    open(f'/tmp/{i}', 'wb').write(bytes(1 << 20))",
        "error",
        "No space left",
    ),
    "too many open files": ("x = [open('/dev/null') for _ in range(1000)]", "error", "Too many open files"),
    "attributes of a file": (
        "import os\nopen('/tmp/x', 'w').close()\nos.setxattr('/tmp/x', 'user.x', bytes(60000))",
        "error",
        "Operation not permitted",
    ),
    "attributes of an open file": (
        "import os\nos.setxattr(os.open('/tmp/x', os.O_CREAT | os.O_RDWR), 'user.x', bytes(60000))",
        "error",
        "Operation not permitted",
    ),
    "attributes of a link": (
        "import os\nopen('/tmp/x', 'w').close()\n"
        "os.setxattr('/tmp/x', 'user.x', bytes(60000), follow_symlinks=False)",
        "error",
        "Operation not permitted",
    ),
    "locks of single bytes": (
        "import fcntl\nx = open('/tmp/x', 'w')\n"
        "for n in range(1 << 20):\n    fcntl.lockf(x, fcntl.LOCK_EX, 1, 2 * n)",
        "error",
        "Operation not permitted",
    ),
    "locks of open files": (
        "import fcntl, struct\nx = open('/tmp/x', 'w')\n"
        "fcntl.fcntl(x, fcntl.F_OFD_SETLK, struct.pack('hhqqi', fcntl.F_WRLCK, 0, 0, 1, 0))",
        "error",
        "Operation not permitted",
    ),
    "a large pipe": (
        "import fcntl, os\nfcntl.fcntl(os.pipe()[1], 1031, 1 << 20)",
        "error",
        "Operation not permitted",
    ),
    "a watch of a folder": (
        "import fcntl, os\nfcntl.fcntl(os.open('/tmp', os.O_RDONLY), fcntl.F_NOTIFY, fcntl.DN_CREATE)",
        "error",
        "Operation not permitted",
    ),
    "watches": (
        "import ctypes, os\nc = ctypes.CDLL(None, use_errno=True)\n"
        "if c.inotify_init() < 0:\n    raise OSError(ctypes.get_errno(), 'refused')",
        "error",
        "refused",
    ),
    "key rings": (
        "import ctypes, platform\nc = ctypes.CDLL(None, use_errno=True)\n"
        "add_key = {'x86_64': 248}.get(platform.machine(), 217)\n"
        "if c.syscall(add_key, b'user', b'x', b'y', 1, -3) < 0:\n"
        "    raise OSError(ctypes.get_errno(), 'refused')",
        "error",
        "refused",
    ),
    "rules of Landlock": (
        "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\n"
        "if c.syscall(444, None, 0, 1) < 0 and ctypes.get_errno() == 1:\n    raise OSError('refused')",
        "error",
        "refused",
    ),
    "message queues": (
        "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\n"
        "if c.msgget(0, 0o1600) < 0:\n    raise OSError(ctypes.get_errno(), 'refused')",
        "error",
        "refused",
    ),
    "timers without end": (
        "import ctypes\nc, x = ctypes.CDLL(None, use_errno=True), ctypes.c_void_p()\n"
        "for n in range(100_000):\n    if c.timer_create(1, None, ctypes.byref(x)):\n"
        "        raise OSError(ctypes.get_errno(), f'refused: {n < 2000}')",
        "error",
        "refused: True",
    ),
    "pollers without end": (
        "import select\nx = [select.epoll() for _ in range(1000)]",
        "error",
        "Too many open files",
    ),
    "counters without end": (
        "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\n"
        "for n in range(1000):\n    if c.eventfd(0, 0) < 0:\n"
        "        raise OSError(ctypes.get_errno(), 'refused')",
        "error",
        "refused",
    ),
    "mounting": (
        "import ctypes, os\nc = ctypes.CDLL(None, use_errno=True)\n"
        "if c.mount(b'none', b'/tmp', b'tmpfs', 0, None):\n    raise OSError(ctypes.get_errno(), 'refused')",
        "error",
        "refused",
    ),
    "a namespace of its own": (
        "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\n"
        "if c.unshare(0x10000000):\n    raise OSError(ctypes.get_errno(), 'refused')",
        "error",
        "refused",
    ),
    "tracing": (
        "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\n"
        "if c.ptrace(16, 1, 0, 0):\n    raise OSError(ctypes.get_errno(), 'refused')",
        "error",
        "refused",
    ),
    "another machine's calls": (
        "import ctypes, platform\nif platform.machine() != 'x86_64':\n    ctypes.string_at(0)\n"
        "ctypes.CDLL(None).syscall(0x40000000 + 39)",
        "signal",
        "",
    ),
}


@pytest.mark.parametrize("attack", CONTAINED)
def test_attack_is_contained(box: Sandbox, attack: str) -> None:
    program, end, said = CONTAINED[attack]
    outcome = box.run(program, "answer")
    assert outcome.end == end, outcome
    assert said in outcome.output + outcome.errors
    assert outcome.error is not None
    assert len(outcome.output) <= box.limits.output_bytes
    assert len(outcome.errors) <= box.limits.output_bytes
    # The next one is not touched by it.
    assert box.run("print('fine')").output == "fine\n"


def test_its_parent_and_all_others_survive_a_program_that_kills(box: Sandbox) -> None:
    outcome = box.run(
        "import os, signal\nprint(os.getpid())\nfor target in (os.getppid(), 1, -1):\n    try:\n"
        "        os.kill(target, signal.SIGKILL)\n    except ProcessLookupError:\n        print('nobody')\n"
        f"try:\n    os.kill({os.getpid()}, 9)\nexcept ProcessLookupError:\n    print('not seen')"
    )
    assert outcome.end == "ok"
    assert outcome.output.splitlines()[1:] == ["nobody", "not seen"]


def test_no_environment_no_files_of_others(box: Sandbox, secret: str, tmp_path: Path) -> None:
    (tmp_path / "private").write_text(secret)
    known = (sys.base_prefix, *box._packages)
    program = (
        "import os\nprint(sorted(os.environ.items()))\n"
        f"for path in ({str(tmp_path)!r}, {str(Path.home())!r}, {str(Path(__file__).parents[3])!r}):\n"
        f"    for folder, _, names in os.walk(path):\n        if folder.startswith({known!r}):\n"
        "            continue\n"
        "        for name in names:\n            print(os.path.join(folder, name))\n"
        f"open({str(tmp_path / 'private')!r})"
    )
    outcome = box.run(program)
    assert outcome.end == "error"
    assert "No such file" in outcome.errors
    assert secret not in outcome.output
    assert [line for line in outcome.output.splitlines() if line.startswith("/")] == []


def test_links_and_deletion_reach_nothing_outside(box: Sandbox, tmp_path: Path) -> None:
    target = tmp_path / "kept"
    target.write_text("kept")
    package = psutil.__file__
    outcome = box.run(
        f"import os, shutil\nos.symlink({str(target)!r}, '/tmp/link')\n"
        "try:\n    open('/tmp/link', 'a').write('changed')\nexcept OSError as error:\n    print(error)\n"
        f"shutil.rmtree({str(tmp_path)!r}, ignore_errors=True)\nprint('removed')\n"
        f"try:\n    open({package!r}, 'a')\nexcept OSError as error:\n    print(error.strerror)"
    )
    assert outcome.output.splitlines()[1:] == ["removed", "Read-only file system"]
    assert target.read_text() == "kept"


def test_nothing_is_left_from_one_program_to_the_next(box: Sandbox) -> None:
    assert box.run("open('/tmp/left', 'w').write('x')\nprint('written')").output == "written\n"
    assert "No such file" in box.run("open('/tmp/left')").errors


def test_a_sleeper_is_ended_at_the_wall(box: Sandbox) -> None:
    sleeper = sandbox_or_skip(Limits(wall_seconds=2))
    outcome = sleeper.run(
        "import os\nprint('before', flush=True)\nos.execv('/usr/bin/sleep', ['sleep', '98761'])"
    )
    assert (outcome.end, outcome.output) == ("wall", "before\n")
    assert gone("98761")


def test_closed_outputs_do_not_hide_a_sleeper() -> None:
    sleeper = sandbox_or_skip(Limits(wall_seconds=2))
    outcome = sleeper.run("import os\nos.closerange(0, 60)\nos.execv('/usr/bin/sleep', ['sleep', '98762'])")
    assert outcome.end == "wall"
    assert gone("98762")


def test_the_sandbox_dies_with_who_started_it(box: Sandbox) -> None:
    program = "import os\nos.execv('/usr/bin/sleep', ['sleep', '98763'])"
    text = f"from eval_tasks.programs.sandbox import open_sandbox\nopen_sandbox().run({program!r})"
    starter = subprocess.Popen([sys.executable, "-c", text], cwd=Path(__file__).parents[3])
    try:
        while not running("98763"):
            assert starter.poll() is None
    finally:
        starter.send_signal(signal.SIGKILL)
        starter.wait()
    assert gone("98763")


def test_bytes_that_are_no_text_are_replaced(box: Sandbox) -> None:
    outcome = box.run("import sys\nsys.stdout.buffer.write(b'a\\xff\\x00b')")
    assert outcome.output == "a\ufffd\x00b"


@pytest.mark.parametrize(
    "program", ["", "def", "print('\ud800')", "\x00", "print(1)\n\x0c", "é = 1\nprint(é)"]
)
def test_any_text_is_a_program(box: Sandbox, program: str) -> None:
    assert box.run(program).end in ("ok", "error")


@given(st.binary(max_size=200))
@settings(max_examples=8)
def test_whatever_is_written_to_the_channel_is_text(box: Sandbox, content: bytes) -> None:
    program = (
        f"import os\nfor f in range(3, 60):\n    try:\n        os.write(f, {content!r})\n"
        "    except OSError:\n        pass"
    )
    outcome = box.run(program, "answer")
    assert outcome.end == "ok"
    assert isinstance(outcome.value, str)


def test_many_at_a_time_keep_their_order(box: Sandbox) -> None:
    programs = [f"print({number})" if number % 3 else "raise SystemExit(3)" for number in range(12)]
    outcomes = list(in_parallel(box.run, programs, 4))
    assert [outcome.output for outcome in outcomes] == [f"{n}\n" if n % 3 else "" for n in range(12)]
    assert [outcome.end for outcome in outcomes] == ["ok" if n % 3 else "error" for n in range(12)]


def test_a_sandbox_that_does_not_come_up_is_tried_again_and_then_told() -> None:
    tries = []

    def work(number: int) -> int:
        tries.append(number)
        raise IsolationError("no namespaces")

    with pytest.raises(IsolationError, match="no namespaces"):
        list(in_parallel(work, [1], 1))
    assert tries == [1, 1, 1]


def test_without_isolation_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="install it .*--unsafe-programs"):
        open_sandbox()
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(UserError, match=r"No permissions .*--unsafe-programs"):
        open_sandbox()


def test_unsafe_programs_have_limits_of_the_process() -> None:
    box = open_sandbox(Limits(cpu_seconds=1, wall_seconds=30), unsafe=True)
    assert not box.isolated
    assert box.run("print(6 * 7)").output == "42\n"
    assert box.run("while True:\n    pass").end == "cpu"
    assert "MemoryError" in box.run("x = bytearray(1 << 36)").errors
    assert "LLEMMA" not in box.run("import os\nprint(os.environ)").output
    left = box.run("import subprocess\nsubprocess.Popen(['sleep', '98764'])\nprint('left')")
    assert left.output == "left\n"
    assert gone("98764")


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (True, "number", "1"),
        (None, "none", ""),
        (2.5, "number", "2.5"),
        ([1], "other", "[1]"),
        ("x", "other", "x"),
    ],
)
def test_values_are_told_as_text(value: object, kind: str, text: str) -> None:
    assert described(value) == {"kind": kind, "text": text}


def test_the_filter_is_of_this_machine_or_refused() -> None:
    for machine in ("x86_64", "aarch64"):
        program = system_call_filter(machine)
        assert len(program) % 8 == 0
        assert program[-8:] == b"\x06\x00\x00\x00\x00\x00\xff\x7f"  # what is not refused is allowed
    with pytest.raises(UserError, match="machine=riscv64"):
        system_call_filter("riscv64")


def test_the_numbers_of_system_calls_are_those_of_the_headers() -> None:
    header = Path("/usr/include/asm-generic/unistd.h")
    table = Path(f"/usr/include/{os.uname().machine}-linux-gnu/asm/unistd_64.h")
    found = 0
    for column, path in ((1, header), (0, table)):
        if not path.is_file():
            continue
        numbers = dict(
            line.removeprefix("#define __NR_").split()[:2]
            for line in path.read_text().splitlines()
            if line.startswith("#define __NR_") and len(line.split()) == 3
        )
        for name, row in REFUSED.items():
            if name in numbers and row[column] is not None and numbers[name].isdigit():
                assert int(numbers[name]) == row[column], name
                found += 1
    if not found:
        pytest.skip("needs the kernel's headers (Debian: linux-libc-dev)")


def test_the_view_holds_no_folder_twice() -> None:
    view = module._view(1, module.package_folders())
    bound = [view[at + 2] for at, word in enumerate(view) if word == "--ro-bind"]
    assert len(bound) == len(set(bound))
