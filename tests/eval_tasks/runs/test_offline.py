# SPDX-License-Identifier: Apache-2.0
"""What is said before samples are made that cannot be scored here."""

from __future__ import annotations

import pytest

from eval_tasks.runs.offline import program_warning


def test_a_missing_sandbox_is_said_before_samples_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    said = program_warning(["llemma_math", "llemma_gsm8k_python"], is_unsafe=False)
    assert said is not None
    assert "bwrap is not on PATH" in said
    assert program_warning(["llemma_gsm8k_python"], is_unsafe=True) is None
    assert program_warning(["llemma_math", "llemma_minif2f_isabelle"], is_unsafe=False) is None
