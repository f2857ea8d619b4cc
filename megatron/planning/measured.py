# SPDX-License-Identifier: Apache-2.0
"""Asks a process with torch to build ranks of a run on paper; see megatron/trainer/paper.py."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import UserError
from megatron.planning.memory import Memory

_ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = "megatron.trainer.paper"
_LIMIT_SECONDS = 300


@dataclass(frozen=True)
class BuiltRank:
    """What building a rank found out."""

    rank: int
    parameters: int
    memory: Memory


def missing_packages() -> list[str]:
    """What is not installed of what building needs."""
    # Looked for by name: to import torch, or megatron.core, takes seconds.
    return [name for name in ("torch", "megatron.core") if not _is_there(name)]


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


class Building:
    """Ranks that are being built, while this process goes on with the arithmetic."""

    def __init__(
        self, cfg: RunConfig, vocab: int, padded_vocab: int, ranks: Sequence[int], world_size: int
    ) -> None:
        order = {
            "config": cfg.model_dump(mode="json"),
            "vocab_size": vocab,
            "padded_vocab_size": padded_vocab,
            "ranks": list(ranks),
            "world_size": world_size,
        }
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        # One thread: there is nothing to compute. No GPU is touched: the meta device stands for it.
        environment = {
            **os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": path
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-m", _PROGRAM],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order))
        self._process.stdin.close()
        self._process.stdin = None  # `communicate` would close it again

    def wait(self) -> list[BuiltRank]:
        """What was found.

        Raises:
            UserError: the process failed; the message has its last line.
        """
        try:
            answer, said = self._process.communicate(timeout=_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise UserError(f"--plan: building the model on paper took over {_LIMIT_SECONDS} s") from None
        if self._process.returncode != 0:
            last = (said.strip().splitlines() or ["no message"])[-1]
            raise UserError(
                f"--plan: the model could not be built on paper ({last}); "
                f"`{sys.executable} -m {_PROGRAM}` is what failed"
            )
        return [_built(found) for found in json.loads(answer)]


def _built(found: dict[str, int]) -> BuiltRank:
    kinds = ("weights", "gradients", "optimizer", "activations", "buffers")
    return BuiltRank(found["rank"], found["parameters"], Memory(**{kind: found[kind] for kind in kinds}))
