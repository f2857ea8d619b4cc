# SPDX-License-Identifier: Apache-2.0
"""Under datatrove's local executor, in real processes: the same bytes as run_stage, the same documents as the
steps."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.neox_arguments.errors import UserError
from tests.tools.proof_pile_2.corpora import sentences, stage, tree, write_lines
from tools.proof_pile_2.pipeline import ReadOptions, plan_shards, run_stage

pytest.importorskip("datatrove", reason="datatrove is optional (requirements/requirements-data.txt)")

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import functools, sys
from pathlib import Path
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.writers import JsonlWriter
from tests.tools.proof_pile_2.corpora import AtLeast, Halves, stage
from tools.proof_pile_2.datatrove_adapters import ShardReader, StageBlock, StepBlock
from tools.proof_pile_2.pipeline import ReadOptions, plan_shards
if __name__ == "__main__":
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    plan = functools.partial(plan_shards, sorted(folder.iterdir()), ReadOptions())
    blocks = {
        "stage": [StageBlock(stage(), plan, out)],
        "steps": [
            ShardReader(plan), StepBlock(AtLeast(8)), StepBlock(Halves()),
            JsonlWriter(str(out), compression=None),
        ],
    }
    LocalPipelineExecutor(blocks[sys.argv[3]], tasks=3, workers=2, logging_dir=str(out) + "-logs").run()
"""


def corpus(folder: Path) -> list[Path]:
    return [write_lines(folder / f"{n}.jsonl", sentences(n, 30), lang="x", path=f"{n}") for n in range(5)]


def execute(tmp_path: Path, what: str) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "in"), str(tmp_path / what), what]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, env=environment, timeout=240, check=True, capture_output=True)
    return tmp_path / what


def test_a_stage_has_the_same_bytes(tmp_path: Path) -> None:
    plan = functools.partial(plan_shards, corpus(tmp_path / "in"), ReadOptions())
    out = execute(tmp_path, "stage")
    before = {path: path.stat().st_mtime_ns for path in (out / "documents").iterdir()}
    run_stage(stage(), plan, out)  # writes the report and finds every shard finished
    assert {path: path.stat().st_mtime_ns for path in (out / "documents").iterdir()} == before
    run_stage(stage(), plan, tmp_path / "ours")
    assert tree(out) == tree(tmp_path / "ours")
    from tools.proof_pile_2.datatrove_adapters import StageBlock

    with pytest.raises(UserError, match="other versions of length"):
        list(StageBlock(stage(9), plan, out).run())


def test_steps_among_datatroves_own_blocks(tmp_path: Path) -> None:
    corpus(tmp_path / "in")
    out = execute(tmp_path, "steps")
    found = [
        json.loads(line) for path in sorted(out.glob("*.jsonl")) for line in path.read_text().splitlines()
    ]
    texts = [text for n in range(5) for text in sentences(n, 30) if len(text.split()) >= 8]
    halves = [half for text in texts for half in (text[: len(text) // 2], text[len(text) // 2 :])]
    assert sorted(record["text"] for record in found) == sorted(halves)
    assert {record["metadata"]["lang"] for record in found} == {"x"}
    assert len({record["id"] for record in found}) == len(found)
    stats = json.loads((tmp_path / "steps-logs/stats.json").read_text())
    [length] = [block["stats"] for block in stats if "length" in block["name"]]
    dropped = [n for n in range(5) for text in sentences(n, 30) if 0 < len(text.split()) < 8]
    assert length["dropped: too short"] == len(dropped)
