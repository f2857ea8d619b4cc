# SPDX-License-Identifier: Apache-2.0
"""What a user sees who types a wrong configuration: every error, status 2, no traceback, at once."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.neox_arguments import ConfigError, Problem, UserError, exit_on_user_error

from .files import CONFIGS, ROOT, small


def _check(*arguments: object) -> tuple[subprocess.CompletedProcess[str], float]:
    """The command, and its seconds of processor time, which other work on the machine does not stretch."""
    command = [sys.executable, "-m", "megatron.neox_arguments", *map(str, arguments)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_all_errors_of_a_run_in_under_a_second(tmp_path: Path) -> None:
    path = small(tmp_path, hiden_size="3", lr="fast", num_attention_heads="5", vocab_file="/no/file")
    done, seconds = _check(path, CONFIGS / "proof_pile_2.yml")
    lines = done.stderr.splitlines()
    assert done.returncode == 2
    assert done.stdout == ""
    assert all(line.startswith("error: ") for line in lines)
    for key in ("hiden_size=3", "lr=fast", "hidden_size=64", "vocab_file=/no/file"):
        assert sum(line.startswith(f"error: {key}: ") for line in lines) == 1, done.stderr
    assert sum("_data_paths=" in line for line in lines) == 11
    assert seconds < 1.0


def test_a_correct_run_is_printed_merged(tmp_path: Path) -> None:
    done, _ = _check(small(tmp_path), "--no-files", "--set", "seed=3", "--set", "seed=4")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "notice: seed is set more than once: 3 (--set), then 4 (--set); 4 is used\n"
    (tmp_path / "merged.yml").write_text(done.stdout)
    again, _ = _check(tmp_path / "merged.yml", "--no-files")
    assert again.stdout == done.stdout


def test_no_torch_is_imported() -> None:
    code = (
        "import sys, megatron.neox_arguments as n;"
        "n.load_config(['configs/llemma_7b.yml'], check_files=False);"
        "print([m for m in sys.modules if m.partition('.')[0] in ('torch', 'numpy', 'transformers')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240, check=True
    )
    assert done.stdout.strip() == "[]"


def test_only_errors_of_users_are_caught(capsys: pytest.CaptureFixture[str]) -> None:
    @exit_on_user_error
    def wrong() -> None:
        raise ConfigError(
            [Problem("a", 1, "is odd", "use 2", "x.yml:3"), Problem("b", None, "is not set", "set it")]
        )

    @exit_on_user_error
    def broken() -> None:
        raise ValueError("ours")

    @exit_on_user_error
    def silent() -> int:
        raise UserError

    with pytest.raises(SystemExit) as caught:
        wrong()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: a=1: is odd; use 2 (x.yml:3)\nerror: b: is not set; set it\n"
    with pytest.raises(ValueError, match="ours"):
        broken()
    with pytest.raises(SystemExit):
        silent()
    assert capsys.readouterr().err == "error: UserError\n"
