# SPDX-License-Identifier: Apache-2.0
"""Ranks by SLURM: the srun line inside an allocation, and the batch script that asks for one.

The batch script starts deepy.py with the frozen configuration of the moment it was submitted. When the ranks
were asked to stop (USR1 ahead of the time limit, TERM at preemption) they save, leave the requeue file and
end with 0, and the script puts the job back into the queue. An exit status would not do: srun makes another
one of it when it kills the rest.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.launcher.frozen import HASH_VARIABLE
from megatron.launcher.hosts import World
from megatron.launcher.job import (
    RANK_MODULE,
    USR1_FOR_ALL,
    Commands,
    Job,
    with_root,
)
from megatron.launcher.ports import FIRST_PORT, PORTS
from megatron.launcher.rank import ON_CPU_VARIABLE, SLOTS_VARIABLE, SOURCE_VARIABLE, write_slots
from megatron.launcher.remote import failure_line
from megatron.neox_arguments.config import LaunchConfig, SlurmConfig
from megatron.neox_arguments.errors import ConfigError, Problem, UserError, shown

JOB_VARIABLE = "SLURM_JOB_ID"
REQUEUE_VARIABLE = "DEEPY_REQUEUE_FILE"
REQUEUE_FILE = "requeue"
_FAILURE = failure_line(r"srun: error: .*: task.*: Exited with exit code (\d+)")


@dataclass(frozen=True)
class Allocation:
    """What SLURM has given: the job, its machines in order, GPUs and cores of each."""

    job_id: int
    nodes: tuple[str, ...]
    gpus_per_node: int | None
    cores_per_node: int | None
    inside_step: bool


def read_allocation(environment: Mapping[str, str]) -> Allocation:
    """The allocation this process is in; scontrol writes its machines out.

    Raises:
        UserError: scontrol does not answer.
    """
    listed = environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_NODELIST", "")
    gpus = environment.get("SLURM_GPUS_ON_NODE") or environment.get("SLURM_GPUS_PER_NODE", "")
    cores = re.match(r"\d+", environment.get("SLURM_JOB_CPUS_PER_NODE", ""))
    last = gpus.rpartition(":")[2]
    return Allocation(
        job_id=int(environment[JOB_VARIABLE]),
        nodes=expand(listed, environment),
        gpus_per_node=int(last) if last.isdigit() else None,
        cores_per_node=int(cores[0]) if cores else None,
        inside_step=environment.get("SLURM_STEP_ID", "").isdigit(),
    )


def expand(nodelist: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The names in a SLURM node list such as `n[0-3]`."""
    if not re.search(r"[\[,]", nodelist):
        return (nodelist,) if nodelist else ()
    program = shutil.which("scontrol", path=environment.get("PATH"))
    if program is None:
        raise UserError(
            f"SLURM_JOB_NODELIST={nodelist}: scontrol, which writes it out, is not on PATH; start deepy.py "
            "where SLURM's commands are"
        )
    done = subprocess.run(
        [program, "show", "hostnames", nodelist],
        capture_output=True, text=True, timeout=60, env=dict(environment), check=False,
    )  # fmt: skip
    if done.returncode or not done.stdout.split():
        raise UserError(f"scontrol show hostnames {nodelist}: {done.stderr.strip()}; try again")
    return tuple(done.stdout.split())


def master_port(job_id: int, attempt: int) -> int:
    """A port that two jobs on one machine, or two attempts of one, hardly share."""
    return FIRST_PORT + (job_id * 101 + attempt * 7) % PORTS


def srun(
    job: Job,
    world: World,
    slurm: SlurmConfig,
    allocation: Allocation,
    inherited: Mapping[str, str],
) -> Commands:
    """The command that starts one task a rank, those of a machine next to each other."""
    nodes, each = len(world.hosts), len(world.hosts[0].slots)
    assert all(len(host.slots) == each for host in world.hosts)
    cores = slurm.slurm_cpus_per_task or max(1, (allocation.cores_per_node or each) // each)
    options = [
        f"--nodes={nodes}",
        f"--ntasks={nodes * each}",
        f"--ntasks-per-node={each}",
        f"--cpus-per-task={cores}",
        "--distribution=block:block",  # cyclic would tear tensor parallel groups apart
        "--kill-on-bad-exit=1",
        "--export=ALL",
    ]
    if allocation.inside_step:
        options.append("--overlap")  # the step we are in holds the machines
    options += pyxis_options(slurm, job)
    environment = {
        **job.environment,
        "PYTHONPATH": with_root(inherited),
        SOURCE_VARIABLE: "slurm",
        SLOTS_VARIABLE: write_slots([host.slots for host in world.hosts]),
        "MASTER_ADDR": world.master_addr,
        "MASTER_PORT": str(world.master_port),
        **({} if world.on_gpu else {ON_CPU_VARIABLE: "1"}),
    }
    python = job.command[0]
    command = [*apptainer(slurm, job), python, "-m", RANK_MODULE, *job.command]
    return Commands(("srun", *options, *command), environment, _FAILURE, USR1_FOR_ALL)


def _mounts(slurm: SlurmConfig, job: Job) -> list[str]:
    wanted = [str(job.folder), *slurm.slurm_container_mounts]
    return [mount if ":" in mount else f"{mount}:{mount}" for mount in wanted]


def pyxis_options(slurm: SlurmConfig, job: Job) -> list[str]:
    """Options of srun that put the ranks into a container."""
    if slurm.slurm_container is None or slurm.slurm_container_runtime != "pyxis":
        return []
    return [
        f"--container-image={slurm.slurm_container}",
        f"--container-mounts={','.join(_mounts(slurm, job))}",
        f"--container-workdir={job.folder}",
    ]


def apptainer(slurm: SlurmConfig, job: Job) -> list[str]:
    """The words before a rank's command that put it into a container."""
    if slurm.slurm_container is None or slurm.slurm_container_runtime != "apptainer":
        return []
    binds = [part for mount in _mounts(slurm, job) for part in ("--bind", mount)]
    return ["apptainer", "exec", "--nv", "--pwd", str(job.folder), *binds, slurm.slurm_container]


@dataclass(frozen=True)
class Submission:
    """What a batch script is made of beside the configuration."""

    python: str  # of deepy.py
    deepy: Path
    script: str
    arguments: tuple[str, ...]  # for deepy.py, after the script
    folder: Path
    save: Path | None
    sha256: str | None  # of the frozen configuration among the arguments
    nodes: int
    ranks_per_node: int
    gpus_per_node: int | None


def batch_script(wanted: Submission, launch: LaunchConfig, slurm: SlurmConfig) -> str:
    """The text for sbatch."""
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in sbatch_options(wanted, slurm))]
    lines += ["# Written by deepy.py --submit.", ""]
    lines += [f"cd {shlex.quote(str(wanted.folder))} || exit 2"]
    # Inside the allocation deepy.py sets them again for the ranks; here they are there for the prologue.
    lines += [f"export {name}={shlex.quote(value)}" for name, value in launch.environment.items()]
    lines += [*slurm.slurm_prologue]
    if wanted.sha256 is not None:
        lines.append(f"export {HASH_VARIABLE}={wanted.sha256}")
    command = shlex.join([wanted.python, str(wanted.deepy), wanted.script, *wanted.arguments])
    if wanted.save is None:
        return "\n".join([*lines, f"exec {command}", ""])
    marker = shlex.quote(str(wanted.save / REQUEUE_FILE))
    limit = slurm.slurm_max_requeues
    return "\n".join([
        *lines,
        f"export {REQUEUE_VARIABLE}={marker}",
        "# USR1 or TERM asks the ranks to stop; this shell waits, and requeues the job when they have left",
        "# that file.",
        "trap : USR1 TERM",
        f'rm -f "${REQUEUE_VARIABLE}"',
        command,
        "status=$?",
        f'if [ "$status" -eq 0 ] && [ -e "${REQUEUE_VARIABLE}" ]; then',
        f'    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {limit} ]; then',
        '        echo "deepy: saved on request; job $SLURM_JOB_ID goes back into the queue" >&2',
        '        scontrol requeue "$SLURM_JOB_ID"',
        "    else",
        f'        echo "deepy: slurm_max_requeues={limit} is reached; the same command goes on" >&2',
        "    fi",
        "fi",
        'exit "$status"',
        "",
    ])  # fmt: skip


def _quoted(option: str) -> str:
    """An option as one word of an #SBATCH line.

    To sbatch a blank ends a word, an # the line, and a backslash takes the next character as it is; within
    double quotes only the last holds.
    """
    if re.fullmatch(r"[\w.,:@%+=/()\[\]&|*-]+", option):
        return option
    return '"' + option.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _own_option(option: str) -> str:
    """An option of the user's, quoted unless it has quotes of its own."""
    return option if re.search(r"[\"'\\]", option) else _quoted(option)


def _log_option(folder: Path) -> str:
    """Where SLURM writes the job's log; it replaces %j by the job's number and %% by %.

    Raises:
        UserError: SLURM cannot write a file of that name.
    """
    path = str(folder)
    if "\\" in path or not path.isprintable():
        raise UserError(
            f"{shown(folder)}: holds a backslash or a control character, which the log of a SLURM job cannot "
            "have in its name; choose another folder"
        )
    return _quoted(f"--output={path.replace('%', '%%')}/slurm-%j.out")


def sbatch_options(wanted: Submission, slurm: SlurmConfig) -> list[str]:
    """The options at the head of the batch script, each as one word."""
    name = slurm.slurm_job_name or (wanted.save.name if wanted.save is not None else Path(wanted.script).stem)
    log = wanted.save / "logs" if wanted.save is not None else wanted.folder
    optional = {
        "partition": slurm.slurm_partition,
        "account": slurm.slurm_account,
        "qos": slurm.slurm_qos,
        "time": slurm.slurm_time,
        "constraint": slurm.slurm_constraint,
        "mem": slurm.slurm_memory,
        "cpus-per-task": slurm.slurm_cpus_per_task,
        "gpus-per-node": wanted.gpus_per_node,
    }
    return [
        _quoted(f"--job-name={name}"),
        f"--nodes={wanted.nodes}",
        f"--ntasks-per-node={wanted.ranks_per_node}",
        *(f"--{option}={value}" for option, value in optional.items() if value is not None),
        f"--signal=USR1@{slurm.slurm_signal_seconds}",
        "--requeue",
        "--open-mode=append",
        _log_option(log),
        *map(_own_option, slurm.slurm_options),
    ]


def submission_problems(launch: LaunchConfig) -> list[Problem]:
    """What a batch script cannot be written without."""
    problems = []
    if launch.num_nodes is None:
        constraint = "is not set, and --submit must ask SLURM for machines"
        problems.append(Problem("num_nodes", None, constraint, "add for instance --set num_nodes=32"))
    if launch.num_gpus is None and launch.cpu_ranks is None:
        constraint = "is not set, and a login node cannot tell what the machines have"
        problems.append(Problem("num_gpus", None, constraint, "add for instance --set num_gpus=8"))
    return problems


def prologue_problems(slurm: SlurmConfig) -> list[Problem]:
    """What would make the prologue swallow the lines after it, or not run at all; bash looks at it."""
    lines = slurm.slurm_prologue
    if not lines:
        return []
    constraint = None
    if re.search(r"(^|[^\\])(\\\\)*\\$", lines[-1]):
        constraint = "ends in a backslash, which joins the next line of the script to it"
    bash = shutil.which("bash")
    if constraint is None and bash is not None:
        # It warns of a here-document without an end, and returns 0.
        text = "\n".join([*lines, ""])
        looked = [bash, "--norc", "--noprofile", "-n"]
        done = subprocess.run(looked, input=text, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode or done.stderr:
            said = done.stderr.splitlines()[0] if done.stderr else f"exit status {done.returncode}"
            constraint = f"is not a script that bash can read ({said.rpartition(': ')[2].strip()})"
    remedy = "look for a quote, a bracket, an `if` or a `<<` without its end"
    return [Problem("slurm_prologue", list(lines), constraint, remedy)] if constraint is not None else []


def submit(path: Path) -> str:
    """Hands a script to sbatch; returns its answer.

    Raises:
        UserError: it is refused, or there is no sbatch.
    """
    program = shutil.which("sbatch")
    if program is None:
        raise UserError(
            "--submit: there is no sbatch on PATH; run this on a login node of a cluster with SLURM, or add "
            "--dry-run to see the script"
        )
    done = subprocess.run([program, str(path)], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise UserError(f"sbatch {path}: {done.stderr.strip()}; change the keys that begin with slurm_")
    return done.stdout.strip()


def started_in_many_tasks(environment: Mapping[str, str]) -> int:
    """How many copies of this process srun started; 1 where it started one or none."""
    return int(environment.get("SLURM_STEP_NUM_TASKS", "1")) if "SLURM_STEP_ID" in environment else 1


def node_counts_agree(nodes: Sequence[str], launch: LaunchConfig) -> None:
    """The allocation is what the configuration asks for.

    Raises:
        ConfigError: it has another number of machines.
    """
    if launch.num_nodes is not None and launch.num_nodes != len(nodes):
        constraint = f"this allocation has {len(nodes)}"
        raise ConfigError([Problem("num_nodes", launch.num_nodes, constraint, "leave num_nodes out")])
