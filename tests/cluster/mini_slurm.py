# SPDX-License-Identifier: Apache-2.0
"""A real SLURM of many nodes on this machine: its own munge, controller and one slurmd a node, on loopback.

Each slurmd has a hostname and an /etc/hosts of its own (UTS and mount namespaces), so that node n3 calls
itself n3 and all names resolve. GPUs are device files that are clones of /dev/null. Nothing outside the
folder is written, and every process that was started ends with the cluster. Needs root and Debian's slurm-wlm
and munge.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "unshare")
CORES, GPUS = 16, 8
START_SECONDS = 60.0

# Several nodes on one machine need no special build of SLURM, but these settings: see the comments.
CONF = """\
ClusterName=mini
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for its old credential to expire: 121 s by default; 3 is ignored.
AuthInfo=socket={folder}/munge/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
# No cgroups: there is no systemd in a container.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
GresTypes=gpu
ReturnToService=2
# Nodes have the cores written here, not those of the machine.
SlurmdParameters=config_overrides
CommunicationParameters=NoAddrCache
TreeWidth=65533
JobRequeue=1
KillWait=15
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge=600
SlurmctldTimeout=30
SlurmdTimeout=10
InactiveLimit=0
MailProg=/bin/true
NodeName=DEFAULT CPUs={cores} RealMemory=1000 Gres=gpu:{gpus} State=UNKNOWN
"""


@dataclass(frozen=True)
class Cluster:
    """A running cluster; `environment` is what its commands need."""

    folder: Path
    environment: dict[str, str]
    nodes: int

    def run(self, *command: str, **variables: str) -> str:
        """The output of one of SLURM's commands; raises with its complaint. Logs fall into our folder."""
        done = subprocess.run(
            command, cwd=self.folder, env={**self.environment, **variables}, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What scontrol says about a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", number)))

    def wait(self, number: str, *states: str, limit_seconds: float) -> dict[str, str]:
        """Waits until a job has one of the states; a job that ended in another fails the test."""
        ended = {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY"}
        deadline = time.monotonic() + limit_seconds
        while (job := self.job(number))["JobState"] not in states:
            assert job["JobState"] not in ended, f"the job ended {job['JobState']} ({job.get('ExitCode')})"
            assert time.monotonic() < deadline, f"job is {job['JobState']} after {limit_seconds} s: {job}"
            time.sleep(0.2)
        return job


def missing() -> str | None:
    """Why no cluster can be started here; None where one can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"{', '.join(absent)} not installed (apt install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "a cluster of namespaces needs root"
    done = subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True, text=True)
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else None


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@contextlib.contextmanager
def running(nodes: int) -> Iterator[Cluster]:
    """A cluster of nodes n0, n1, …, stopped at the end."""
    # A socket's path is limited to 108 bytes, so no folder of pytest's.
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/slurm-XXXXXX"], text=True).strip())
    base = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "DEEPY_"))}
    environment = {**base, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    cluster = Cluster(folder, environment, nodes)
    try:
        _configure(cluster)
        _start(cluster)
        yield cluster
    finally:
        _stop(cluster)
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    """Ports below those that the kernel hands out itself."""
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        port = 14_000 + os.getpid() % 2_000
        while len(found) < count:
            probe = stack.enter_context(socket.socket())
            port += 1
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
        return found


def _configure(cluster: Cluster) -> None:
    folder, last = cluster.folder, cluster.nodes - 1
    folder.chmod(0o755)
    for name in ("state", "log", "munge", "dev", *(f"spool.n{i}" for i in range(cluster.nodes))):
        (folder / name).mkdir()
    (folder / "munge").chmod(0o711)
    controller_port, *ports = _free_ports(cluster.nodes + 1)
    conf = CONF.format(folder=folder, controller_port=controller_port, cores=CORES, gpus=GPUS)
    for i, port in enumerate(ports):
        conf += f"NodeName=n{i} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port}\n"
    for name, more in (
        ("main", "Default=YES PriorityTier=1 GraceTime=20"),
        ("high", "PriorityTier=9 PreemptMode=OFF"),
    ):
        conf += f"PartitionName={name} Nodes=n[0-{last}] MaxTime=INFINITE State=UP {more}\n"
    (folder / "slurm.conf").write_text(conf)
    for gpu in range(GPUS):
        os.mknod(folder / "dev" / f"nvidia{gpu}", 0o600 | 0o020000, os.makedev(1, 3))
    (folder / "gres.conf").write_text(
        f"Name=gpu Flags=nvidia_gpu_env File={folder}/dev/nvidia[0-{GPUS - 1}]\n"
    )
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    names = "".join(f"127.0.1.{i + 1} n{i}\n" for i in range(cluster.nodes))
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)


def _start(cluster: Cluster) -> None:
    folder, munge = cluster.folder, cluster.folder / "munge"
    options = {
        "key-file": "key",
        "socket": "munge.sock",
        "pid-file": "pid",
        "log-file": "log",
        "seed-file": "seed",
    }
    cluster.run("munged", "--force", *(f"--{name}={munge / file}" for name, file in options.items()))
    cluster.run("slurmctld", "-f", f"{folder}/slurm.conf")
    for i in range(cluster.nodes):
        slurmd = f"slurmd -f {folder}/slurm.conf -N n{i}"
        inside = f"hostname n{i} && mount --bind {folder}/hosts /etc/hosts && exec {slurmd}"
        cluster.run("unshare", "--uts", "--mount", "sh", "-c", inside)
    deadline = time.monotonic() + START_SECONDS
    while cluster.run("sinfo", "-h", "-t", "idle", "-p", "main", "-o", "%D").strip() != str(cluster.nodes):
        assert time.monotonic() < deadline, cluster.run("sinfo")
        time.sleep(0.1)


def _pids(files: Mapping[str, Path]) -> list[int]:
    return [int(path.read_text()) for path in files.values() if path.is_file() and path.read_text().strip()]


def _stop(cluster: Cluster) -> None:
    with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
        cluster.run("scancel", "--user=root")
        deadline = time.monotonic() + 10
        while cluster.run("squeue", "-h").strip() and time.monotonic() < deadline:
            time.sleep(0.1)
    folder = cluster.folder
    files = {path.name: path for path in folder.glob("slurmd.*.pid")}
    pids = _pids({**files, "controller": folder / "slurmctld.pid", "munge": folder / "munge" / "pid"})
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + 10
        while (pids := [pid for pid in pids if _lives(pid)]) and time.monotonic() < deadline:
            time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
