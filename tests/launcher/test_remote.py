# SPDX-License-Identifier: Apache-2.0
"""srun, mpirun and pdsh as fakes on PATH: what they are given, and what is made of how they end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron.launcher import openmpi, pdsh, slurm
from megatron.launcher.hosts import Host, World
from megatron.launcher.job import Commands, Job, travelling
from megatron.launcher.processes import Patience, Stop
from megatron.launcher.remote import run_commands
from megatron.neox_arguments.config import SlurmConfig
from megatron.neox_arguments.errors import UserError

ROOT = Path(__file__).parents[2]
JOB = Job(("py", "train.py", "--config", "/s/f.json"), Path("/work"), {"DEEPY_CONFIG_SHA256": "ab"})
WORLD = World((Host("n0", (0, 1)), Host("n1", (0, 1))), True, "", "n0", 21000)
ALLOCATION = slurm.Allocation(7, ("n0", "n1"), 2, 16, inside_step=False)


def test_srun() -> None:
    found = slurm.srun(JOB, WORLD, SlurmConfig(), ALLOCATION, {"PYTHONPATH": "/mine"})
    options, _, rest = " ".join(found.start).partition(" py -m ")
    assert options == (
        "srun --nodes=2 --ntasks=4 --ntasks-per-node=2 --cpus-per-task=8 --distribution=block:block "
        "--kill-on-bad-exit=1 --export=ALL"
    )
    assert rest == "megatron.launcher.rank py train.py --config /s/f.json"
    assert found.environment == {
        "DEEPY_CONFIG_SHA256": "ab", "PYTHONPATH": f"{ROOT}:/mine", "DEEPY_RANKS_FROM": "slurm",
        "DEEPY_SLOTS": "0,1|0,1", "MASTER_ADDR": "n0", "MASTER_PORT": "21000",
    }  # fmt: skip
    inside = slurm.Allocation(7, ("n0", "n1"), 2, 16, inside_step=True)
    assert "--overlap" in slurm.srun(JOB, WORLD, SlurmConfig(), inside, {}).start


def test_containers() -> None:
    pyxis = SlurmConfig(slurm_container="/i.sqsh", slurm_container_mounts=("/data", "/a:/b"))
    start = slurm.srun(JOB, WORLD, pyxis, ALLOCATION, {}).start
    assert "--container-image=/i.sqsh" in start
    assert "--container-mounts=/work:/work,/data:/data,/a:/b" in start
    apptainer = SlurmConfig(slurm_container="/i.sif", slurm_container_runtime="apptainer")
    text = " ".join(slurm.srun(JOB, WORLD, apptainer, ALLOCATION, {}).start)
    words = (
        "apptainer exec --nv --pwd /work --bind /work:/work /i.sif py -m megatron.launcher.rank py train.py"
    )
    assert words in text


def test_mpirun() -> None:
    found = openmpi.mpirun(
        JOB, WORLD, {"NCCL_DEBUG": "INFO", "HOME": "/root"}, as_root=True, on_terminal=True
    )
    text = " ".join(found.start)
    assert text.startswith("mpirun --allow-run-as-root -np 4 --host n0:2,n1:2 --map-by slot --bind-to none ")
    assert "-x NCCL_DEBUG" in text
    assert "-x HOME" not in text
    assert "--allow-run-as-root" not in openmpi.mpirun(JOB, WORLD, {}, as_root=False, on_terminal=True).start
    assert found.signals[signal.SIGTERM] == signal.SIGUSR1
    assert "TERM" not in found.environment
    into_a_file = openmpi.mpirun(JOB, WORLD, {}, as_root=True, on_terminal=False)
    assert "-x TERM" in " ".join(into_a_file.start)
    assert into_a_file.environment["TERM"] == "dumb"


def test_pdsh() -> None:
    job = Job(JOB.command, JOB.folder, {"TEXT": "50% it's"})
    found = pdsh.pdsh(job, WORLD, {}, run="r1")
    assert found.start[:7] == ("pdsh", "-S", "-R", "ssh", "-f", "32", "-w")
    assert found.start[7] == "n0,n1"
    remote = found.start[8]
    assert remote.startswith("cd /work && exec env ")
    assert "--node %n --slots '0,1|0,1' --master n0:21000 --run r1 -- py train.py" in remote
    assert "50%% it" in remote, "pdsh replaces %h, %n and %u"
    assert found.stop is not None
    assert found.stop["TERM"][-1] == "kill -TERM $(cat /tmp/deepy-r1-%n.pid)"


SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "hush1", "WANDB_API_KEY": "hush2", "HF_TOKEN": "hush3",
    "https_proxy": "http://me:hush4@proxy:3128", "http_proxy": "me:hush5@proxy",
}  # fmt: skip


def test_credentials_are_in_no_command_and_in_nothing_shown() -> None:
    job = Job(JOB.command, JOB.folder, {"MY_PASSWORD": "hush6"}, shared=Path("/s/50%"))
    inherited = {**SECRETS, "NCCL_DEBUG": "INFO", "no_proxy": "a@b"}
    found = pdsh.pdsh(job, WORLD, inherited, run="r1")
    assert "hush" not in " ".join([*found.start, found.shown()])
    assert "--credentials /s/50%%/.deepy-r1- --" in found.start[-1]
    assert "NCCL_DEBUG=INFO no_proxy=a@b" in found.start[-1]
    assert list(found.private_files) == [Path("/s/50%/.deepy-r1-0"), Path("/s/50%/.deepy-r1-1")]
    for text in found.private_files.values():
        assert json.loads(text) == {**SECRETS, "MY_PASSWORD": "hush6"}
    by_mpi = openmpi.mpirun(job, WORLD, inherited, as_root=False, on_terminal=True)
    assert "hush" not in " ".join([*by_mpi.start, by_mpi.shown()])
    assert "HF_TOKEN=…" in by_mpi.shown()
    assert by_mpi.environment["HF_TOKEN"] == "hush3"
    assert pdsh.pdsh(JOB, WORLD, {}, run="r1").private_files == {}


def test_private_files_are_their_owners_and_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "waiting-0"
    text = f"import os; open({str(tmp_path / 'mode')!r}, 'w').write(oct(os.stat({str(path)!r}).st_mode))"
    assert run(commands(tmp_path, text, private_files={path: "{}"})) == 0
    assert (tmp_path / "mode").read_text() == "0o100600"
    assert not path.exists()
    nowhere = tmp_path / "absent" / "waiting-0"
    with pytest.raises(UserError, match="No such file"):
        run(commands(tmp_path, "", private_files={nowhere: "{}"}))


def test_an_agent_gives_its_ranks_the_credentials_that_wait_for_it(tmp_path: Path) -> None:
    (tmp_path / "waiting-1").write_text('{"HF_TOKEN": "hush"}')
    program = f"import os; open({str(tmp_path / 'found')!r}, 'w').write(os.environ['HF_TOKEN'])"
    agent = [sys.executable, "-m", pdsh.AGENT_MODULE, "--node", "1", "--slots", "0|0", "--master", "n0:21000",
             "--run", tmp_path.name, "--on-cpu", "--credentials", str(tmp_path / "waiting-"), "--",
             sys.executable, "-c", program]  # fmt: skip
    read_end, write_end = os.pipe()  # an end of standard input would end the ranks
    try:
        for status in (0, 2):
            done = subprocess.run(
                agent, cwd=ROOT, stdin=read_end, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == status, done.stderr
    finally:
        os.close(read_end)
        os.close(write_end)
    assert (tmp_path / "found").read_text() == "hush"
    assert not (tmp_path / "waiting-1").exists()
    assert "a disk that all machines must share" in done.stderr


def test_what_travels() -> None:
    here = {"NCCL_DEBUG": "1", "PATH": "/bin", "HOME": "/root", "SSH_TTY": "x", "CUDA_VISIBLE_DEVICES": "0"}
    assert travelling({**here, "DEEPY_REQUEUE_FILE": "/r", "https_proxy": "p", "NCCL_X": "a\nb"}) == {
        "NCCL_DEBUG": "1", "PATH": "/bin", "DEEPY_REQUEUE_FILE": "/r", "https_proxy": "p",
    }  # fmt: skip


def fake(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return str(path)


def commands(folder: Path, text: str, **more: object) -> Commands:
    failure = re.compile(r"exit code (\d+)")
    return Commands((fake(folder, "starter", text),), {"GIVEN": "1"}, failure, **more)  # type: ignore[arg-type]


def run(found: Commands, stop: Stop | None = None, patience: Patience | None = None) -> int:
    return run_commands(found, os.environ, stop or Stop(), lambda line: None, patience)


@pytest.mark.parametrize(("text", "status"), [
    ("import os; assert os.environ['GIVEN'] == '1'", 0),
    ("import sys; sys.exit(5)", 5),
    # The first rank to die ended with 2; those that were killed for it ended with 137.
    ("import sys; print('exit code 2\\nexit code 9', file=sys.stderr); sys.exit(137)", 2),
    ("import os; os.kill(os.getpid(), 9)", 137),
])  # fmt: skip
def test_the_status_is_that_of_the_rank_that_died_first(tmp_path: Path, text: str, status: int) -> None:
    assert run(commands(tmp_path, text)) == status


WAITING = """
import signal, sys, time
asked = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda number, frame: asked.append(number))
open("ready", "w").close()
while not asked:
    time.sleep(0.01)
open("asked", "w").write(str(asked[0]))
"""


@pytest.mark.parametrize(("sent", "arrives", "status"), [
    (signal.SIGINT, signal.SIGUSR1, 130),
    (signal.SIGTERM, signal.SIGUSR1, 0),
    (signal.SIGUSR1, signal.SIGUSR1, 0),
])  # fmt: skip
def test_a_request_to_stop_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: int, arrives: int, status: int
) -> None:
    monkeypatch.chdir(tmp_path)
    found = commands(tmp_path, WAITING, signals=openmpi.USR1_FOR_ALL)
    stop = Stop()

    class WhenReady(list[int]):
        def __len__(self) -> int:
            if not super().__len__() and (tmp_path / "ready").exists():
                self.append(sent)
            return super().__len__()

    stop.received = WhenReady()
    assert run(found, stop) == status
    assert int((tmp_path / "asked").read_text()) == arrives


def test_others_are_ended_by_a_command_when_a_rank_has_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stopper = fake(tmp_path, "stopper", "import sys; open('stopped', 'a').write(sys.argv[1] + ' ')")
    stop = {name: (stopper, name) for name in ("TERM", "KILL", "INT")}
    text = """
import os, sys, time
print("exit code 9", file=sys.stderr, flush=True)
while not (os.path.exists("stopped") and "KILL" in open("stopped").read()):
    time.sleep(0.02)
sys.exit(143)
"""
    started = time.monotonic()
    assert run(commands(tmp_path, text, stop=stop), patience=Patience(0.2, 0.3)) == 9
    assert time.monotonic() - started < 30
    assert (tmp_path / "stopped").read_text() == "TERM KILL "


def test_a_submission_on_a_fake_login_node(tmp_path: Path) -> None:
    """What sbatch is given, without SLURM: shown, written, handed over; a dry run does neither."""
    from tests.cluster.runs import data_files
    from tests.launcher.runs import write_run

    programs = tmp_path / "bin"
    programs.mkdir()
    given = tmp_path / "given"
    accept = f"open({str(given)!r}, 'w').write(sys.argv[1])"
    fake(programs, "sbatch", f"import sys\n{accept}\nprint('Submitted batch job 5')")
    fake(programs, "srun", "")
    save = tmp_path / "save"
    config = write_run(
        tmp_path / "run.yml", **data_files(tmp_path), save=str(save), model_parallel_size=2,
        slurm_time="2-00:00:00", slurm_partition="gpu", slurm_prologue=["module load cuda"],
    )  # fmt: skip
    arguments = [sys.executable, str(ROOT / "deepy.py"), str(ROOT / "train.py"), str(config)]
    size = ["--set", "num_nodes=32", "--set", "num_gpus=8"]
    environment = {"PATH": str(programs), "HOME": str(tmp_path)}

    def deepy(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*arguments, *more], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )

    refused = deepy("--submit")
    assert refused.returncode == 2
    assert "--set num_nodes=32" in refused.stderr
    assert "--set num_gpus=8" in refused.stderr
    torn = deepy("--submit", "--dry-run", "--set", "num_nodes=2", "--set", "num_gpus=7")
    assert "warning: 1 tensor parallel group lies on more than one machine" in torn.stderr
    unclosed = deepy("--submit", "--dry-run", *size, "--set", "slurm_prologue=['echo a \\']")
    assert unclosed.returncode == 2
    assert "error: slurm_prologue=" in unclosed.stderr
    odd = deepy("--submit", "--set", "num_nodes=3", "--set", "num_gpus=1")
    assert "which does not divide 3 ranks" in odd.stderr
    shown = deepy("--submit", "--dry-run", *size)
    assert shown.returncode == 0, shown.stderr
    assert not save.exists()
    assert not (tmp_path / "given").exists()
    done = deepy("--submit", *size)
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown.stdout
    script = Path((tmp_path / "given").read_text())
    assert script.read_text() == shown.stdout
    lines = shown.stdout.splitlines()
    for option in (
        "--job-name=save", "--nodes=32", "--ntasks-per-node=8", "--gpus-per-node=8", "--partition=gpu",
        "--time=2-00:00:00", "--signal=USR1@300", "--requeue", "--open-mode=append",
        f"--output={save}/logs/slurm-%j.out",
    ):  # fmt: skip
        assert f"#SBATCH {option}" in lines
    assert "module load cuda" in lines
    [frozen] = (save / "run_configs").glob("*.json")
    assert any(f"train.py --frozen {frozen}" in line for line in lines)
    assert json.loads(frozen.read_text())["launch"]["num_nodes"] == 32
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "256 ranks = tensor parallel 2 x pipeline 1 x data parallel 128" in done.stderr
