# SPDX-License-Identifier: Apache-2.0
"""A small run to launch, as keys and as a RunConfig."""

from __future__ import annotations

from pathlib import Path

import yaml

from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.loader import load_config

SMALL: dict[str, object] = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "seq_length": 128,
    "max_position_embeddings": 128,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 3,
    "train_iters": 10,
    "optimizer": {"type": "adam", "params": {"lr": 1.0e-3}},
}


def write_run(path: Path, **changes: object) -> Path:
    """SMALL as a YAML file, with changes."""
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


def small_run(folder: Path, **changes: object) -> RunConfig:
    """SMALL loaded, with changes; no data files are looked for."""
    return load_config([write_run(folder / "small.yml", **changes)], check_files=False)[0]
