# SPDX-License-Identifier: Apache-2.0
"""On a GPU: how often the host waits for the device in a step, and that faster ways give the same curve."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from tests.ranks import run_ranks
from tests.trainer.curves import train_curves

pytestmark = pytest.mark.gpu

HAS_APEX = find_spec("fused_weight_gradient_mlp_cuda") is not None
BFLOAT16: dict[str, Any] = {"precision": {"precision": "bfloat16"}}


def waits_of_a_step() -> list[str]:
    """What torch says of operations that wait for the device, in a step as the loop takes it."""
    import warnings

    import torch

    from megatron.backend import initialize
    from megatron.model import build
    from megatron.trainer.adam import give_to_megatron_core
    from megatron.trainer.setup import TrainingState, wrap
    from megatron.trainer.step import (
        compute_gradients,
        gradient_norm,
        read_sums,
        sum_over_ranks,
        update_weights,
    )
    from tests.llamas import run_config
    from tests.trainer.curves import micro_batches

    cfg = run_config(**BFLOAT16)
    backend = initialize(cfg.parallel, seed=1)
    give_to_megatron_core()
    built = build(cfg, backend, 512, 512)
    state = TrainingState(built, wrap(cfg, built))
    batches = micro_batches(0, 1, 0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(3):
            if step == 2:  # the first ones choose kernels and make the optimizer's state
                torch.cuda.set_sync_debug_mode("warn")
            local = compute_gradients(state, cfg, backend, batches)
            told = sum_over_ranks(local, [0.0, 1.0], backend)
            norm = gradient_norm(state)
            loss, _ = read_sums(told, backend)
            assert loss > 0
            update_weights(state, cfg, 1e-3, norm)
        torch.cuda.set_sync_debug_mode("default")
    return [str(one.message) for one in said if "synchroniz" in str(one.message)]


def test_a_step_waits_for_the_norm_and_then_reads_the_loss() -> None:
    assert len(run_ranks(waits_of_a_step, 1, on_gpu=True)[0]) <= 2


@pytest.mark.parametrize(
    "keys",
    [
        {"torch_compile": "layer"},
        pytest.param(
            {"gradient_accumulation_fusion": True},
            marks=pytest.mark.skipif(
                find_spec("fused_weight_gradient_mlp_cuda") is None,
                reason="Apex's extension is not installed",
            ),
        ),
    ],
)
def test_the_curve_is_the_same(keys: dict[str, Any]) -> None:
    """20 steps in bfloat16, within what other orders of rounding gave on CPUs (1e-2)."""
    calls = [(BFLOAT16,), ({**BFLOAT16, "acceleration": keys},)]
    plain, faster = run_ranks(train_curves, 1, 20, calls, on_gpu=True)[0]
    pairs = zip(plain["losses"], faster["losses"], strict=True)
    assert max(abs(a - b) for a, b in pairs) <= 1e-2
