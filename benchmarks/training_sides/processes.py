# SPDX-License-Identifier: Apache-2.0
"""A side measured in a new interpreter: in one that has trained, memory and caches are not as at a start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# For all sides alike: less fragmentation on a GPU, and on a CPU the large pages that this engine asks for.
SETTINGS = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "THP_MEM_ALLOC_ENABLE": "1"}


def in_own_process(request: dict[str, Any], limit_seconds: float) -> dict[str, Any]:
    """`measuring.measure` of `request` in a new interpreter; `error` says why there is no answer."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answer = folder / "answer.json"
        (folder / "order.json").write_text(json.dumps({**request, "answer": str(answer)}))
        environment = {**SETTINGS, **os.environ}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "benchmarks.training_sides.measuring", str(folder / "order.json")]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, timeout=limit_seconds, stdout=sys.stderr
            )
        except subprocess.TimeoutExpired:
            return {"error": f"over {limit_seconds:.0f} s"}
        if not answer.exists():
            return {"error": f"ended with status {done.returncode}"}
        found: dict[str, Any] = json.loads(answer.read_text())
        return found
