# SPDX-License-Identifier: Apache-2.0
"""Four ssh hosts on this machine: one sshd on 127.0.2.1 to 127.0.2.4, key only, for mpirun and pdsh.

Neither /etc/ssh nor ~/.ssh is read or changed. Needs root and Debian's openssh-server.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HOSTS = ("w1", "w2", "w3", "w4")

SSHD_CONFIG = """\
{listen}
HostKey {folder}/host
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
MaxStartups 200
"""
SSH_CONFIG = """\
{names}
Host *
  Port {port}
  User root
  IdentityFile {folder}/id
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


@dataclass(frozen=True)
class SshHosts:
    """Running hosts; `environment` makes ssh, pdsh and mpirun find them."""

    folder: Path
    environment: dict[str, str]

    def hostfile(self, slots: int) -> Path:
        path = self.folder / "hostfile"
        path.write_text("".join(f"{name} slots={slots}  # 127.0.2.x\n" for name in HOSTS))
        return path


def missing(*programs: str) -> str | None:
    """Why no hosts can be started here, or `programs` are not there; None where all is well."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    absent = [
        name for name in ("sshd", "ssh", "ssh-keygen", *programs) if shutil.which(name, path=path) is None
    ]
    if absent:
        return f"{', '.join(absent)} not installed (apt install openssh-server openmpi-bin pdsh)"
    return None if os.geteuid() == 0 else "sshd without a password needs root"


@contextlib.contextmanager
def running() -> Iterator[SshHosts]:
    """The hosts w1 to w4."""
    with tempfile.TemporaryDirectory(prefix="ssh-") as name:
        folder = Path(name)
        with socket.socket() as probe:
            probe.bind(("127.0.2.1", 0))
            port = probe.getsockname()[1]
        _configure(folder, port)
        Path("/run/sshd").mkdir(exist_ok=True)
        subprocess.run(
            ["/usr/sbin/sshd", "-f", folder / "sshd_config", "-E", folder / "sshd.log"], check=True
        )
        pid_file = folder / "sshd.pid"
        deadline = time.monotonic() + 10
        while not pid_file.is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        try:
            yield SshHosts(folder, _environment(folder))
        finally:
            os.kill(int(pid_file.read_text()), signal.SIGTERM)


def _configure(folder: Path, port: int) -> None:
    for name in ("host", "id"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "id.pub", folder / "authorized_keys")
    addresses = {name: f"127.0.2.{number}" for number, name in enumerate(HOSTS, 1)}
    listen = "\n".join(f"ListenAddress {address}:{port}" for address in addresses.values())
    names = "\n".join(f"Host {name}\n  HostName {address}" for name, address in addresses.items())
    (folder / "sshd_config").write_text(SSHD_CONFIG.format(listen=listen, folder=folder))
    (folder / "ssh_config").write_text(SSH_CONFIG.format(names=names, port=port, folder=folder))


def _environment(folder: Path) -> dict[str, str]:
    dropped = ("SLURM_", "DEEPY_", "OMPI_", "PMI")
    base = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    ssh = f"ssh -F {folder}/ssh_config"
    return {
        **base,
        "OMP_NUM_THREADS": "1",
        "PDSH_SSH_ARGS_APPEND": f"-F {folder}/ssh_config",
        "OMPI_MCA_plm_rsh_agent": ssh,
        # Four daemons of one machine: they must not take each other's shared memory files away.
        "OMPI_MCA_orte_tmpdir_base": str(folder),
    }
