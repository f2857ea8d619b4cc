# SPDX-License-Identifier: Apache-2.0
"""Generations become a scored folder, as by `evaluate.py --rescore`; without a sandbox it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval_tasks.results.samples import read_verdicts, verdicts_file
from eval_tasks.runs.offline import score, score_file
from megatron.neox_arguments.errors import UserError
from tests.eval_tasks.programs.boxes import sandbox_or_skip

TASK = "llemma_gsm8k_python"


def test_generations_are_run_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox_or_skip()
    rows = [
        {
            "problem": "?",
            "generation": f"def solution():\n    return {n}",
            "reference": "#### 3",
            "correct": n == 3,
        }
        for n in range(5)
    ] + [{"problem": "?", "generation": "import os\nos.fork()", "reference": "#### 3", "correct": False}]
    file, output = tmp_path / "rows.jsonl", tmp_path / "out"
    said: list[str] = []
    file.write_text("\n".join(map(json.dumps, rows)))
    score_file(file, TASK, output, False, False, said.append)
    assert "agrees with `correct` on 6 of 6" in said[-1]
    verdicts = list(read_verdicts(verdicts_file(output, TASK)).values())
    assert [verdict.answer for verdict in verdicts] == ["0", "1", "2", "3", "4", None]
    assert verdicts[5].program is not None
    assert verdicts[5].program["error"] == "PermissionError: [Errno 1] Operation not permitted"

    before = verdicts_file(output, TASK).read_bytes()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--unsafe-programs"):
        score(output, False, said.append)
    assert verdicts_file(output, TASK).read_bytes() == before
