# SPDX-License-Identifier: Apache-2.0
"""deepy.py as a user types it: a process, its output, its exit status."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launcher.runs import write_run

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 120.0

# A rank that reads its configuration as train.py does, and tells what it found.
RANK = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from megatron.launcher.frozen import read_frozen
assert sys.argv[1] == "--config"
cfg = read_frozen(Path(sys.argv[2]), os.environ)
place = [os.environ[name] for name in ("RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES")]
print("iterations", cfg.schedule.train_iters, *place, file=sys.stderr)
"""


def deepy(
    folder: Path, *arguments: object, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """deepy.py run from `folder`, on a machine that looks as if it had no GPU and no SLURM."""
    base = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    return subprocess.run(
        [sys.executable, str(ROOT / "deepy.py"), *map(str, arguments)],
        cwd=folder,
        env={**base, "CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )


def cpu_seconds() -> float:
    """Of the processes that have ended so far: unlike the clock, untouched by what else the machine does."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "rank.py"
    path.write_text(RANK.format(root=str(ROOT)))
    return path


def data(folder: Path) -> str:
    """A token file as far as the checks of files look."""
    for suffix in (".bin", ".idx"):
        (folder / f"source{suffix}").write_bytes(b"MMIDIDX\x00\x00" + bytes(64))
    return str(folder / "source")


def runnable(folder: Path, **changes: object) -> Path:
    vocabulary = folder / "tokenizer.model"
    vocabulary.write_bytes(bytes(16))
    return write_run(
        folder / "run.yml",
        **{
            "train_data_paths": [data(folder)],
            "vocab_file": str(vocabulary),
            "save": str(folder / "out"),
            **changes,
        },
    )


def test_help_comes_in_a_blink_and_without_torch(tmp_path: Path) -> None:
    before = cpu_seconds()
    done = deepy(tmp_path, "--help", environment={"PYTHONPROFILEIMPORTTIME": "1"})
    seconds = cpu_seconds() - before
    assert done.returncode == 0
    assert "--set KEY=VALUE" in done.stdout
    assert "| torch" not in done.stderr
    assert seconds < 0.5, f"{seconds:.2f} s"


def test_a_run_is_loaded_frozen_and_started_on_its_ranks(tmp_path: Path, script: Path) -> None:
    config = runnable(tmp_path)
    done = deepy(tmp_path, script, config, "--cpu-ranks", 2, "--set", "train_iters=77")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert "iterations 77 0 2 " in lines
    assert "[rank 1] iterations 77 1 2 " in lines
    assert any("2 ranks on CPU (cpu_ranks=2)" in line and "sha256" in line for line in lines)
    assert len(list((tmp_path / "out" / "run_configs").glob("*.json"))) == 1


def test_files_are_looked_up_in_the_folder_with_or_without_suffix(tmp_path: Path, script: Path) -> None:
    runnable(tmp_path)
    (tmp_path / "more.yml").write_text("train_iters: 5\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = deepy(elsewhere, script, "-d", tmp_path, "run", "more.yml")
    assert done.returncode == 0, done.stderr
    assert "iterations 5 0 1 " in done.stderr
    assert "note: train_iters" in done.stderr  # set twice, and said


def test_the_status_of_a_dying_rank_is_the_status(tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    script.write_text("import sys; sys.exit(9)\n")
    done = deepy(tmp_path, script, runnable(tmp_path))
    assert done.returncode == 9
    assert "rank 0 (process " in done.stderr
    assert "ended with exit status 9" in done.stderr


def test_all_problems_in_one_list_and_nothing_started(tmp_path: Path) -> None:
    config = runnable(tmp_path, hidden_size=65, trian_iters=3, train_data_paths=[str(tmp_path / "absent")])
    before = cpu_seconds()
    done = deepy(tmp_path, "no-script.py", config, "--set", "seq_length=long")
    assert cpu_seconds() - before < 1.0
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for words in (
        "no-script.py",
        "trian_iters",
        "train_iters",
        "hidden_size=65",
        "seq_length=long",
        "absent",
    ):
        assert any(words in line for line in errors), (words, done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("changes", "arguments", "words"), [
    ({"model_parallel_size": 2}, ["--cpu-ranks", "3"], "does not divide 3 ranks"),
    ({"launcher": "slurm"}, [], "no SLURM on this machine"),
    ({"launcher": "pdsh"}, [], "--set launcher=local"),
    ({"num_gpus": 2}, [], "0 GPUs found here"),
    ({}, ["--cpu-ranks", "0"], "cpu_ranks=0"),
])  # fmt: skip
def test_what_cannot_start_here_is_refused(
    tmp_path: Path, script: Path, changes: dict[str, object], arguments: list[str], words: str
) -> None:
    no_programs = {"PATH": str(tmp_path)}
    done = deepy(tmp_path, script, runnable(tmp_path, **changes), *arguments, environment=no_programs)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "iterations" not in done.stderr


def test_an_unwritable_save_folder_is_refused(tmp_path: Path, script: Path) -> None:
    (tmp_path / "file").touch()
    done = deepy(tmp_path, script, runnable(tmp_path, save=str(tmp_path / "file" / "out")))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "file") in done.stderr


def test_a_dry_run_says_what_it_amounts_to_and_starts_nothing(tmp_path: Path, script: Path) -> None:
    done = deepy(tmp_path, script, runnable(tmp_path, launcher="slurm"), "--dry-run", "--cpu-ranks", 4)
    assert done.returncode == 0, done.stderr
    assert "4 data parallel = 24 sequences a step; x 128 tokens = 3,072 tokens a step" in done.stdout
    assert "train_iters: 10" in done.stdout
    assert "a start here would end with: launcher=slurm" in done.stderr
    assert "iterations 10" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_a_dry_run_prints_is_a_configuration_of_the_same_run(tmp_path: Path, script: Path) -> None:
    first = deepy(tmp_path, script, runnable(tmp_path), "--dry-run").stdout
    marker = "# All keys, merged"
    assert marker in first
    again = tmp_path / "again.yml"
    again.write_text(first[first.index(marker) :])
    assert deepy(tmp_path, script, again, "--dry-run").stdout == first


def test_a_dry_run_for_another_machine_needs_none_of_its_files(tmp_path: Path, script: Path) -> None:
    config = write_run(
        tmp_path / "far.yml", train_data_paths=["/far/away"], model_parallel_size=2, launcher="slurm"
    )
    done = deepy(tmp_path, script, config, "--dry-run", "--world-size", 256)
    assert done.returncode == 0, done.stderr
    assert "256 ranks = tensor parallel 2 x pipeline 1 x data parallel 128" in done.stdout
    assert deepy(tmp_path, script, config, "--dry-run", "--world-size", 255).returncode == 2
    assert deepy(tmp_path, script, config, "--world-size", 256).returncode == 2


def test_a_configuration_error_comes_in_a_blink_and_without_torch(tmp_path: Path, script: Path) -> None:
    before = cpu_seconds()
    done = deepy(
        tmp_path, script, runnable(tmp_path, hidden_size=65), environment={"PYTHONPROFILEIMPORTTIME": "1"}
    )
    seconds = cpu_seconds() - before
    assert done.returncode == 2
    assert "error: hidden_size=65" in done.stderr
    assert "| torch" not in done.stderr
    assert seconds < 0.5, f"{seconds:.2f} s"


def test_a_dead_rank_is_followed_by_a_restart(tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    script.write_text("import os, sys; sys.exit(9 if os.environ['DEEPY_ATTEMPT'] == '0' else 0)\n")
    done = deepy(tmp_path, script, runnable(tmp_path, max_restarts=1, restart_seconds=0.1))
    assert done.returncode == 0, done.stderr
    assert "restart 1 of 1 in 0.1 s, from the last checkpoint" in done.stderr


def test_commands_are_printed_and_not_run(tmp_path: Path, script: Path) -> None:
    done = deepy(tmp_path, script, runnable(tmp_path), "--cpu-ranks", 2, "--print-commands", "--", "more")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("env ") and line.endswith(".json more &") for line in lines)
    assert "launcher local (neither a SLURM job nor a hostfile here)" in done.stderr
    assert "iterations" not in done.stderr
    # What is printed does what a start does.
    subprocess.run(["bash", "-c", done.stdout + "wait"], cwd=tmp_path, check=True, timeout=LIMIT_SECONDS)


def test_a_frozen_configuration_is_a_whole_one(tmp_path: Path, script: Path) -> None:
    assert deepy(tmp_path, script, runnable(tmp_path, train_iters=6)).returncode == 0
    [frozen] = (tmp_path / "out" / "run_configs").glob("*.json")
    done = deepy(tmp_path, script, "--frozen", frozen)
    assert done.returncode == 0, done.stderr
    assert "iterations 6 0 1 " in done.stderr
    both = deepy(tmp_path, script, "--frozen", frozen, "--set", "train_iters=7")
    assert both.returncode == 2
    assert "--frozen is a whole configuration" in both.stderr


def test_programs_that_are_no_runs_get_their_own_command_line(tmp_path: Path) -> None:
    tells = "import os, sys; print(os.environ['RANK'], os.environ['WORLD_SIZE'], sys.argv[1:])\n"
    for name in ("generate.py", "preprocess_data.py"):
        (tmp_path / name).write_text(tells)
    done = deepy(tmp_path, "generate.py", "--", "checkpoint", "--prompt", "a b")
    assert (done.returncode, done.stdout) == (0, "0 1 ['checkpoint', '--prompt', 'a b']\n"), done.stderr
    (tmp_path / "site.yml").write_text("slurm_partition: gpu\nslurm_time: 1:00:00\nnum_layers: 2\n")
    done = deepy(tmp_path, "preprocess_data.py", "site.yml", "--submit", "--dry-run", "--", "--input", "a b")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --partition=gpu" in done.stdout
    assert "#SBATCH --nodes=1" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(f"preprocess_data.py {tmp_path}/site.yml -- --input 'a b'")
    assert not list(tmp_path.glob("*.sbatch"))
    nodes = ["--set", "num_nodes=4", "--set", "cpu_ranks=4"]
    done = deepy(tmp_path, "preprocess_data.py", *nodes, "--submit", "--dry-run", "--", "--share", "auto")
    assert "#SBATCH --nodes=4" in done.stdout, done.stderr
    assert "#SBATCH --ntasks-per-node=1" in done.stdout
    done = deepy(tmp_path, "preprocess_data.py", "--set", "cpu_ranks=2", "--", "x")
    assert done.stdout == "0 2 ['x']\n", done.stderr  # of rank 1 only the log is kept
    for arguments, words in (
        (["generate.py"], "nothing follows `--`"),
        (["generate.py", "--set", "slurm_tim=1", "--", "x"], "did you mean slurm_time?"),
        (["absent/generate.py", "--", "x"], "no such file"),
    ):
        refused = deepy(tmp_path, *arguments)
        assert refused.returncode == 2
        assert words in refused.stderr
