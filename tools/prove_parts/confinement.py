# SPDX-License-Identifier: Apache-2.0
"""A prover in bubblewrap: it may read what its user may, write in its own folder only, and reach no network.

Which tactics are let through is decided elsewhere (`coq_text`); this is for what that misses. A model's
programs have a stricter place (eval_tasks/programs/sandbox.py): they need no library of the user's.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

# Nothing that answers in a blink when it works takes longer when it does not.
_TRIAL_SECONDS = 60.0


@cache
def find_bubblewrap() -> tuple[str | None, str]:
    """The program, tried once a process; or None, and why not."""
    program = shutil.which("bwrap")
    if program is None:
        return None, "bwrap is not on PATH (Debian and Ubuntu: apt install bubblewrap)"
    command = confined(program, [shutil.which("true") or "true"], Path("/"))
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TRIAL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"bwrap does not run here ({error})"
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()[-200:]
        return None, f"bwrap does not run here ({said or f'status {done.returncode}'})"
    return program, ""


def confined(bubblewrap: str | None, command: Sequence[str], folder: Path) -> list[str]:
    """The command within bubblewrap, with `folder` as the one place it may write in; as it is without."""
    if bubblewrap is None:
        return list(command)
    # --unshare-user is named beside --unshare-all, which goes on without it where it is refused.
    options = ["--unshare-all", "--unshare-user", "--die-with-parent", "--ro-bind", "/", "/"]
    options += ["--tmpfs", "/proc", "--tmpfs", "/dev"]
    for device in ("null", "zero", "random", "urandom"):
        options += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    if folder != Path("/"):
        options += ["--bind", str(folder), str(folder)]
    # Solvers (csdp of psatz) hand files over in the folder for temporary ones.
    options += ["--setenv", "TMPDIR", str(folder), "--chdir", str(folder)]
    return [bubblewrap, *options, "--", *command]
