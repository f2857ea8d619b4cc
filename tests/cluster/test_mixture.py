# SPDX-License-Identifier: Apache-2.0
"""tools/mixture.py's array job on a real SLURM of this machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster import mini_slurm
from tests.cluster.mini_slurm import Cluster
from tests.runs import ROOT, make_place, write_texts

REASON = mini_slurm.missing()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(REASON is not None, reason=f"no SLURM: {REASON}"),
]


def mixture(cluster: Cluster, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "mixture.py"), *map(str, arguments)],
        cwd=folder, env={**cluster.environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_points_run_as_tasks_of_an_array_and_are_fitted(tmp_path: Path) -> None:
    place = make_place(tmp_path / "place", num_hidden_layers=1)
    config = place.write(
        tmp_path / "run.yml", train_iters=2, eval_interval=100, eval_iters=1, checkpoint_factor=1,
        warmup_iters=1, launcher="slurm", num_nodes=1, cpu_ranks=1, environment={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    documents = write_texts(tmp_path / "math.jsonl", 9, 4)
    output = tmp_path / "study"
    words = [place.model_yaml, config, "--documents", documents, "--levels", 2, "--output", output]
    with mini_slurm.running(2) as cluster:
        done = mixture(cluster, tmp_path, *words, "--submit", "--at-once", 2)
        assert "#SBATCH --array=0,1,2%2" in done.stdout
        found = re.search(r"Submitted batch job (\d+)", done.stderr)
        assert found, done.stderr
        results = [output / "points" / f"{number:03}" / "result.json" for number in range(3)]
        deadline = time.monotonic() + 400
        while not all(path.exists() for path in results):
            logs = "\n".join(path.read_text() for path in tmp_path.glob("slurm-*.out"))
            assert time.monotonic() < deadline, logs
            assert "error:" not in logs, logs
            time.sleep(0.5)
        done = mixture(cluster, tmp_path, *words, "--fit")
    report = json.loads((output / "report.json").read_text())
    assert len(report["runs"]) == 3
    assert "launcher slurm" in (output / "points" / "001" / "run.log").read_text()
    assert "best share" in done.stdout
