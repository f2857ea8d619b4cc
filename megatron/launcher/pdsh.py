# SPDX-License-Identifier: Apache-2.0
"""Ranks by pdsh over ssh: one agent a machine, which starts the ranks there.

pdsh tells its remote commands nothing: ended by a signal it leaves every one of them alive, and its exit
status without -S is always 0. So an agent ends its ranks when its standard input, the ssh connection, ends;
and a request to stop is a second pdsh, which signals the agents by the process ids they have left in /tmp.

Every user of a machine can read the arguments of ssh and of a shell, and pdsh hands on no standard input. So
credentials go by files on the shared disk, one a machine, which only their owner can read and the agent
removes when it has read it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from megatron.launcher.hosts import World
from megatron.launcher.job import Commands, Job, assignments, travelling, with_root
from megatron.launcher.rank import write_slots
from megatron.launcher.remote import failure_line
from megatron.neox_arguments.urls import is_secret

AGENT_MODULE = "megatron.launcher.agent"
_FAILURE = failure_line(r"^pdsh@.*: .*ssh exited with exit code (\d+)")
_SIGNALS = ("INT", "TERM", "HUP", "USR1")


def pid_file(run: str, node: str) -> str:
    """Where the agent of a machine leaves its process id."""
    return f"/tmp/deepy-{run}-{node}.pid"


def pdsh(job: Job, world: World, inherited: Mapping[str, str], *, run: str) -> Commands:
    """The command that starts the agents, and those that stop them. `run` names this attempt and no other."""
    variables = {**travelling(inherited), **job.environment, "PYTHONPATH": with_root(inherited)}
    secrets = {name: variables.pop(name) for name, value in list(variables.items()) if is_secret(name, value)}
    waiting = str((job.shared or job.folder) / f".deepy-{run}-")
    files = {Path(f"{waiting}{node}"): json.dumps(secrets) for node in range(len(world.hosts)) if secrets}
    agent = [
        job.command[0], "-m", AGENT_MODULE,
        "--node", "%n",
        "--slots", write_slots([host.slots for host in world.hosts]),
        "--master", f"{world.master_addr}:{world.master_port}",
        "--run", run,
        *([] if world.on_gpu else ["--on-cpu"]),
        *(["--credentials", waiting] if secrets else []),
        "--", *job.command,
    ]  # fmt: skip
    words = ["env", *assignments(variables), *agent]
    remote = f"cd {_quoted(str(job.folder))} && exec {' '.join(map(_quoted, words))}"
    names = ",".join(host.name for host in world.hosts)
    base = ("pdsh", "-R", "ssh", "-f", str(max(32, len(world.hosts))), "-w", names)
    signals = {name: (*base, f"kill -{name} $(cat {pid_file(run, '%n')})") for name in _SIGNALS}
    # USR2 is the agent's order to kill its ranks and go.
    signals["KILL"] = (*base, f"kill -USR2 $(cat {pid_file(run, '%n')})")
    start = (*base[:1], "-S", *base[1:], remote)
    return Commands(start, {}, _FAILURE, stop=signals, private_files=files)


def _quoted(word: str) -> str:
    """For the remote shell; pdsh itself replaces %h, %n and %u, and %% by %."""
    return "%n" if word == "%n" else shlex.quote(word).replace("%", "%%")
