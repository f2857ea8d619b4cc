# SPDX-License-Identifier: Apache-2.0
"""The catalogue of tasks, without lm-eval."""

from __future__ import annotations

import subprocess
import sys

import pytest

from eval_tasks.runs.catalogue import catalogue, chosen, listing, resolved
from megatron.neox_arguments.errors import ConfigError
from tests.runs import ROOT


def test_every_task_has_a_description_and_functions_that_exist() -> None:
    for entry in catalogue().values():
        assert entry.description, entry.name
        assert f"{entry.name} " in listing()
        for leaf in entry.leaves.values():
            assert callable(resolved(leaf)["process_docs"])
            assert leaf["test_split"]


def test_members_of_groups_are_not_tasks() -> None:
    assert "llemma_math_algebra" not in catalogue()
    assert "llemma_math_algebra" in catalogue()["llemma_math"].leaves


def test_unknown_names_are_said_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        chosen(["llemma_mth", "llemma_sat", "llemma_sat"])
    assert [str(problem) for problem in caught.value.problems] == [
        "--tasks=llemma_mth: no such task; did you mean llemma_math? --list-tasks shows all",
        "--tasks=llemma_sat: is named twice; name it once",
    ]


def test_it_is_read_without_the_harness() -> None:
    program = (
        "import sys, eval_tasks.runs.catalogue as c; c.listing()\n"
        "print([name for name in ('torch', 'lm_eval', 'datasets', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.stdout == "[]\n", done.stderr
