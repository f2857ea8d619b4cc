# SPDX-License-Identifier: Apache-2.0
"""Runs a function on several ranks: processes on gloo, one thread each, a free port and a time limit."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron.launcher.ports import free_port
from tests.warm import warm_python

ROOT = Path(__file__).resolve().parents[1]


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *arguments: Any,
    timeout_seconds: float = 400,
    is_cold: bool = False,
    on_gpu: bool = False,
) -> list[Any]:
    """Calls `function(*arguments)` in `world_size` processes that see each other; returns each one's result.

    A cold process has imported nothing yet, and neither has one that is to see the machine's GPUs.

    `function` is importable by name. A rank that fails, or the time limit, fails the test with that
    rank's output; no process outlives the call.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        call = (function.__module__, function.__qualname__, arguments)
        (folder / "call").write_bytes(pickle.dumps(call))
        ranks = []
        for rank in range(world_size):
            with open(folder / f"output{rank}", "wb") as output:
                python = sys.executable if is_cold or on_gpu else str(warm_python())
                command = [python, str(ROOT / "tests" / "ranks.py"), name, str(rank)]
                environment = rank_environment(rank, world_size, port)
                if on_gpu:
                    del environment["CUDA_VISIBLE_DEVICES"]
                    environment |= {k: v for k, v in os.environ.items() if k == "CUDA_VISIBLE_DEVICES"}
                ranks.append(
                    subprocess.Popen(
                        command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
                    )
                )
        try:
            _wait(ranks, folder, timeout_seconds)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        return [pickle.loads((folder / f"result{rank}").read_bytes()) for rank in range(world_size)]


def _wait(ranks: list[subprocess.Popen[bytes]], folder: Path, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while any(process.poll() is None for process in ranks):
        failed = [rank for rank, process in enumerate(ranks) if process.poll() not in (None, 0)]
        if failed or time.monotonic() > deadline:
            time.sleep(0.5)  # the others may be about to say why
            break
        time.sleep(0.05)
    failed = [rank for rank, process in enumerate(ranks) if process.poll() != 0]
    if failed:
        texts = [
            f"--- rank {r}\n" + (folder / f"output{r}").read_text(errors="replace")[-4000:] for r in failed
        ]
        raise AssertionError(f"ranks {failed} failed or ran over {timeout_seconds} s\n" + "\n".join(texts))


def _child(folder: Path, rank: int) -> None:
    import importlib

    module, qualified_name, arguments = pickle.loads((folder / "call").read_bytes())
    function: Any = importlib.import_module(module)
    for part in qualified_name.split("."):
        function = getattr(function, part)
    result = function(*arguments)
    (folder / f"result{rank}").write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    # The folder of a script is where Python looks first, and `tests/tools` is not `tools`.
    sys.path[:] = [place for place in sys.path if Path(place) != ROOT / "tests"]
    _child(Path(sys.argv[1]), int(sys.argv[2]))
