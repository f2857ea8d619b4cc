# SPDX-License-Identifier: Apache-2.0
"""The batch script: what users write is one word of an #SBATCH line or is refused; bash can read the rest.

How a real sbatch reads such a word is in tests/cluster/test_slurm.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron.launcher.slurm import Submission, batch_script, prologue_problems
from megatron.neox_arguments.config import LaunchConfig, SlurmConfig
from megatron.neox_arguments.errors import ConfigError, UserError
from megatron.neox_arguments.loader import load_launch


def script(save: str = "/s/run", arguments: tuple[str, ...] = (), **keys: Any) -> list[str]:
    wanted = Submission("py", Path("/d.py"), "train.py", arguments, Path("/w"), Path(save), "ab", 2, 8, 8)
    return batch_script(wanted, LaunchConfig(), SlurmConfig(**keys)).splitlines()


@pytest.mark.parametrize(("save", "line"), [
    ("/s/run", "#SBATCH --output=/s/run/logs/slurm-%j.out"),
    ("/s p/a%b", '#SBATCH "--output=/s p/a%%b/logs/slurm-%j.out"'),
    ("/s#1", '#SBATCH "--output=/s#1/logs/slurm-%j.out"'),
    ('/a"b', '#SBATCH "--output=/a\\"b/logs/slurm-%j.out"'),
    ("/it's", '#SBATCH "--output=/it\'s/logs/slurm-%j.out"'),
    ("/größe", "#SBATCH --output=/größe/logs/slurm-%j.out"),
])  # fmt: skip
def test_the_log_is_one_word_to_sbatch(save: str, line: str) -> None:
    assert line in script(save)


@pytest.mark.parametrize("save", ["/a\\b", "/a\nb"])
def test_a_log_that_slurm_cannot_write_is_refused(save: str) -> None:
    with pytest.raises(UserError, match="choose another folder"):
        script(save)


def test_names_and_options_are_one_word() -> None:
    lines = script(slurm_job_name="a b", slurm_options=("--comment=x #1", '--comment="x y"', "--exclusive"))
    assert '#SBATCH "--job-name=a b"' in lines
    assert '#SBATCH "--comment=x #1"' in lines
    assert '#SBATCH --comment="x y"' in lines
    assert "#SBATCH --exclusive" in lines


def test_an_argument_cannot_begin_a_line_of_its_own() -> None:
    lines = script(arguments=("--", "a\ntouch /tmp/x"))
    assert not [line for line in lines if line.startswith("#") and line.endswith("a")]
    assert lines[lines.index("touch /tmp/x'") - 1].endswith("train.py -- 'a")


@pytest.mark.parametrize(("setting", "told"), [
    ('slurm_account="a\\ntouch /tmp/x"', "holds the control character U.000A; remove it"),
    ('slurm_job_name="a\\ntouch /tmp/x"', "holds the control character U.000A; remove it"),
    ("slurm_partition=a b", "is not a name that sbatch takes; write for instance gpu"),
    ("slurm_constraint=a b", "is not a list of features as sbatch has it; write for instance a100"),
    ("slurm_time=banana", "is not a time as sbatch has it; write for instance 24:00:00"),
    ("slurm_memory=-3", "is not an amount of memory as sbatch has it; write for instance 500G"),
    ('slurm_container="a\\0b"', "holds the control character U.0000"),
    ('rank_python="a\\0b"', "holds the control character U.0000"),
    ('environment={"A": "x\\0y"}', "environment.A=.*: holds the control character U.0000"),
    ('hostfile="a\\0b"', "holds the control character U.0000"),
    ("slurm_options=[--comment=it's]", "holds quotes or backslashes that do not make it one word"),
    ('slurm_options=["--a=b\\ntouch /tmp/x"]', "holds the control character U.000A"),
])  # fmt: skip
def test_what_would_break_a_line_is_refused(setting: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_launch([], [setting])


def test_numbers_of_minutes_and_of_memory_need_no_quotes() -> None:
    _, slurm, _ = load_launch([], ["slurm_time=240", "slurm_memory=0"])
    assert (slurm.slurm_time, slurm.slurm_memory) == ("240", "0")
    with pytest.raises(ConfigError, match="slurm_time=true: must be text"):
        load_launch([], ["slurm_time=true"])


@pytest.mark.parametrize("lines", [
    ["echo 'a"], ["cat <<E"], ["if true; then"], ["f() {"], ["ok", "module load x \\"],
])  # fmt: skip
def test_a_prologue_that_would_swallow_the_rest_is_refused(lines: list[str]) -> None:
    [problem] = prologue_problems(SlurmConfig(slurm_prologue=tuple(lines)))
    assert problem.key == "slurm_prologue"


@pytest.mark.parametrize("lines", [
    [], ["module load cuda"], ["if true; then\n\techo x", "fi"], ["cat <<E", "x", "E"], ["echo a\\\\"],
])  # fmt: skip
def test_a_whole_prologue_is_taken(lines: list[str]) -> None:
    assert prologue_problems(SlurmConfig(slurm_prologue=tuple(lines))) == []
