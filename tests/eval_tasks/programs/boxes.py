# SPDX-License-Identifier: Apache-2.0
"""A sandbox for tests, or the reason why there is none on this machine."""

from __future__ import annotations

import time

import psutil
import pytest

from eval_tasks.programs.sandbox import Limits, Sandbox, open_sandbox
from megatron.neox_arguments.errors import UserError


def sandbox_or_skip(limits: Limits | None = None) -> Sandbox:
    """An isolated sandbox; skips where bubblewrap is missing or refused."""
    try:
        return open_sandbox(limits)
    except UserError as error:
        pytest.skip(f"needs bubblewrap: {error}")


def running(word: str) -> list[int]:
    """Processes of this machine that have `word` as an argument."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if word in (process.info["cmdline"] or []):
            found.append(process.pid)
    return found


def gone(word: str) -> bool:
    """Whether no process has `word` as an argument any more; a death takes a moment to be seen."""
    for _ in range(600):
        if not running(word):
            return True
        time.sleep(0.05)
    return False
