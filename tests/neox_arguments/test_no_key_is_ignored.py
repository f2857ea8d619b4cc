# SPDX-License-Identifier: Apache-2.0
"""A key that is read and then forgotten would be ignored in silence: every key is used outside this room."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from megatron.neox_arguments.config import fields

from .files import ROOT

# Keys that do their work inside the room, or are read under a name that is put together.
HERE = {
    "overlap_grad_reduce": "read through overlaps",
    "overlap_param_gather": "read through overlaps",
    "attention_type": "checked against num_kv_heads",
    "fp32_allreduce": "must agree with grad_accum_dtype, which is used",
    "optimizer_type": "both names are one optimizer",
    "warmup": "becomes warmup_iters",
    "checkpoint_milestone_factor": "read through is_milestone",
    "extra_save_iters": "read through is_milestone",
    "decay_lr_to": "becomes min_lr",
    "train_micro_batch_size_per_gpu": "read through batch_shape",
    "gradient_accumulation_steps": "read through batch_shape",
    "train_batch_size": "read through batch_shape",
    "valid_data_weights": "megatron/data/blend.py puts the name together",
    "test_data_weights": "megatron/data/blend.py puts the name together",
    "valid_data_names": "megatron/data/blend.py puts the name together",
    "test_data_names": "megatron/data/blend.py puts the name together",
    "rotary_pct": "only 1",
}


def _only_one_value(annotation: object) -> bool:
    return len(get_args(annotation)) == 1 and not isinstance(get_args(annotation)[0], type)


USED = [name for _, name, info in fields() if name not in HERE and not _only_one_value(info.annotation)]


@pytest.fixture(scope="module")
def sources() -> str:
    """All programs of the repository outside this room and the tests."""
    rooms = [*(ROOT / "megatron").iterdir(), ROOT / "tools"]
    paths = [path for room in rooms if room.name != "neox_arguments" for path in room.rglob("*.py")]
    return "\n".join(path.read_text(encoding="utf-8") for path in [*paths, *ROOT.glob("*.py")])


def test_the_list_is_fresh() -> None:
    assert set(HERE) <= {name for _, name, _ in fields()}
    assert "num_layers" in USED
    assert "pos_emb" not in USED


@pytest.mark.parametrize("name", USED)
def test_a_key_is_used(sources: str, name: str) -> None:
    assert re.search(rf"\.{name}\b|[\"']{name}[\"']", sources), f"nothing reads {name}"
