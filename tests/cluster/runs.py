# SPDX-License-Identifier: Apache-2.0
"""What the tests on clusters share: files a configuration needs, and a look at the machine's processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from megatron.monitoring.jsonl import read_history


def data_files(folder: Path) -> dict[str, object]:
    """A token file and a vocabulary, as far as checks of files look."""
    for suffix in (".bin", ".idx"):
        (folder / f"source{suffix}").write_bytes(b"MMIDIDX\x00\x00" + bytes(64))
    (folder / "tokenizer.model").write_bytes(bytes(16))
    return {"train_data_paths": [str(folder / "source")], "vocab_file": str(folder / "tokenizer.model")}


def last_iteration(save: Path) -> int:
    """The newest step in the record of a run, 0 before the first."""
    record = save / "logs" / "metrics.jsonl"
    if not record.is_file():
        return 0
    return max(read_history(record).steps, default=0)


def processes() -> Iterator[tuple[int, list[str], dict[str, str]]]:
    """(process id, arguments, environment) of all that can be read."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            words = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        yield int(entry.name), arguments, dict(word.split("=", 1) for word in words if "=" in word)


def rank_process(rank: int, **variables: str) -> int:
    """The process of a rank that runs train.py with these variables in its environment."""
    wanted = {"RANK": str(rank), **variables}
    found = [
        pid
        for pid, arguments, environment in processes()
        if any(word.endswith("train.py") for word in arguments[:3]) and wanted.items() <= environment.items()
    ]
    assert len(found) == 1, found
    return found[0]


def kill_rank(rank: int, **variables: str) -> None:
    """SIGKILL to one rank of a run."""
    os.kill(rank_process(rank, **variables), signal.SIGKILL)


def assert_no_process_mentions(text: str, within_seconds: float = 10.0) -> None:
    """No process is left that has `text` among its arguments."""
    deadline = time.monotonic() + within_seconds
    while found := [
        (pid, arguments)
        for pid, arguments, _ in processes()
        if pid != os.getpid() and any(text in word for word in arguments)
    ]:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
