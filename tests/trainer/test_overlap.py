# SPDX-License-Identifier: Apache-2.0
"""What overlaps by default, and what a run says about it."""

from __future__ import annotations

from typing import Any

import pytest

from megatron.neox_arguments.config import ParallelConfig
from tests.llamas import run_config
from tests.ranks import run_ranks


@pytest.mark.parametrize(
    ("keys", "on_gpu", "data_ranks", "expected"),
    [
        ({}, True, 8, (True, True)),
        ({}, True, 1, (False, False)),  # nobody to talk to
        ({}, False, 8, (False, False)),
        ({"zero_stage": 0}, True, 8, (True, False)),  # every rank updates all parameters
        ({"overlap_grad_reduce": False}, True, 8, (False, False)),
        ({"overlap_param_gather": False}, True, 8, (True, False)),
        ({"overlap_grad_reduce": True}, False, 2, (True, True)),
        ({"overlap_param_gather": True}, False, 2, (True, True)),
    ],
)
def test_defaults(keys: dict[str, Any], on_gpu: bool, data_ranks: int, expected: tuple[bool, bool]) -> None:
    assert ParallelConfig(**keys).overlaps(on_gpu=on_gpu, data_ranks=data_ranks) == expected


def said(keys: dict[str, Any], data_parallel_size: int) -> list[str]:
    """What a rank says that has as many others as it likes; called on a rank."""
    from dataclasses import replace

    from megatron.backend import initialize
    from megatron.model import build
    from megatron.trainer.adam import give_to_megatron_core
    from megatron.trainer.overlap import in_words
    from megatron.trainer.setup import wrap

    cfg = run_config(parallel=keys)
    backend = initialize(cfg.parallel, seed=1)
    give_to_megatron_core()
    model = wrap(cfg, build(cfg, backend, 512, 512)).model
    return list(in_words(model, replace(backend, data_parallel_size=data_parallel_size)))


def test_words() -> None:
    asked = {"overlap_grad_reduce": True}
    [line] = run_ranks(said, 1, {**asked, "reduce_bucket_size": 60_000}, 1)[0]
    assert line == (
        "gradients: reduced during the backward pass in 4 bucket(s) of up to 0.0699 M parameters, and "
        "parameters gathered during the forward pass"
    )
    _, note = run_ranks(said, 1, {**asked, "reduce_bucket_size": 50_000_000}, 8)[0]
    assert note.startswith("note: reduce_bucket_size=50000000 leaves 100% of the gradients for after the")
    assert note.endswith("without it buckets have 40 M parameters")
    assert run_ranks(said, 1, {}, 2)[0] == ["gradients: reduced after the backward pass"]
