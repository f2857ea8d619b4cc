# SPDX-License-Identifier: Apache-2.0
"""A Python that has the engine imported already: what a command would import in seconds, a fork has at once.

`warm_python()` returns an executable that stands for `sys.executable` in `python SCRIPT ARGUMENTS…`. It hands
its arguments, environment, folder and streams to one process per test process that has done the imports; that
process forks, and the fork runs the script as `__main__` with nothing else shared. Signals are passed on, the
exit status comes back, and the death of either side is the death of the other. `deepy.py` started this way
starts its ranks this way too.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
READY_SECONDS = 120

# What the commands import at some point. megatron.backend is first, as megatron.core asks for it.
IMPORTS = (
    "megatron.backend",
    "deepy",
    "megatron.checkpointing.convert",
    "megatron.checkpointing.inference",
    "megatron.checkpointing.verify",
    "megatron.data.blend",
    "megatron.data.tokenize_corpus",
    "megatron.launcher.plan",
    "megatron.text_generation",
    "megatron.monitoring.console",
    "megatron.monitoring.jsonl",
    "megatron.monitoring.plots",
    "megatron.neox_arguments.loader",
    "megatron.tokenizer.hf_tokenizer",
    "megatron.trainer.loop",
    "torch.utils.tensorboard",
    "transformers.models.llama.modeling_llama",
)
# The harness, where it is installed (requirements/requirements-eval.txt).
OPTIONAL_IMPORTS = ("lm_eval.tasks", "lm_eval.models.huggingface")

# The executable: small, because it is started for every rank, and with modules of the bare interpreter only.
CLIENT = """#!{python} -ISE
import array, json, os, signal, socket, struct, sys
if sys.argv[1:2] and sys.argv[1].startswith("-"):  # -c, -m: nothing of ours to be had at once
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd(), sys.argv[0]]).encode()
streams = array.array("i", [0, 1, 2])
server.sendmsg([struct.pack("!I", len(request))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
server.sendall(request)
pid, = struct.unpack("!i", server.recv(4, socket.MSG_WAITALL))
def pass_on(number, frame):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, pass_on)
status, = struct.unpack("!i", server.recv(4, socket.MSG_WAITALL) or struct.pack("!i", 9))
code = os.waitstatus_to_exitcode(status)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if code != -9 else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@functools.cache
def warm_python() -> Path:
    """The executable; its process starts with the first call and ends with this one."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    atexit.register(shutil.rmtree, folder)
    address = folder / "socket"
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.warm", str(address)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    atexit.register(server.wait, READY_SECONDS)
    atexit.register(server.stdin.close)  # it ends when it reads the end
    readable, _, _ = select.select([server.stdout], [], [], READY_SECONDS)
    assert readable, f"the imports took more than {READY_SECONDS} s"
    assert server.stdout.readline() == b"ready\n"
    client = folder / "python"
    client.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    client.chmod(0o755)
    return client


def serve(address: str) -> dict[str, Any] | None:
    """Forks for each client; returns the client's request in a fork, and None when the work is over."""
    for name in IMPORTS:
        importlib.import_module(name)
    for name in OPTIONAL_IMPORTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    print("ready", flush=True)
    running: dict[int, socket.socket] = {}
    try:
        while True:
            readable, _, _ = select.select([sys.stdin, listener, *running.values()], [], [], 0.01)
            if sys.stdin in readable:
                return None
            _end_orphans(running, readable)
            _report_ends(running)
            if listener in readable:
                client, _ = listener.accept()
                request = _read(client)
                pid = os.fork()
                if pid == 0:
                    for connection in (listener, client, *running.values()):
                        connection.close()
                    running.clear()
                    return request
                for stream in request["streams"]:
                    os.close(stream)
                running[pid] = client
                client.sendall(struct.pack("!i", pid))
    finally:
        for pid in running:
            _kill(pid)


def _read(client: socket.socket) -> dict[str, Any]:
    head, ancillary, _, _ = client.recvmsg(4, socket.CMSG_SPACE(12))
    streams = array.array("i")
    streams.frombytes(ancillary[0][2])
    content = client.recv(struct.unpack("!I", head)[0], socket.MSG_WAITALL)
    arguments, environment, folder, executable = json.loads(content)
    return {
        "arguments": arguments,
        "environment": environment,
        "folder": folder,
        "executable": executable,
        "streams": list(streams),
    }


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _end_orphans(running: dict[int, socket.socket], readable: list[Any]) -> None:
    """A client never writes again: what can be read is the end of one that was killed."""
    for pid, client in running.items():
        if client in readable:
            _kill(pid)


def _report_ends(running: dict[int, socket.socket]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        client = running.pop(pid)
        with contextlib.suppress(OSError):
            client.sendall(struct.pack("!i", status))
        client.close()


def become(request: dict[str, Any]) -> None:
    """Makes this fork look like a process that was started as the request says, and runs its script."""
    os.setsid()
    for number, stream in enumerate(request["streams"]):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.executable = request["executable"]
    sys.argv = request["arguments"]
    more = request["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[0:1] = [str(Path(sys.argv[0]).resolve().parent), *filter(None, more)]
    _exit(_status())


def _status() -> int:
    """Runs the script; what an interpreter would make of its end."""
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _exit(status: int) -> None:
    """Ends as an interpreter does, but for tearing down its modules: that would copy all that is shared."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    if (wanted := serve(sys.argv[1])) is not None:
        become(wanted)
