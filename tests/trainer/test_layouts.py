# SPDX-License-Identifier: Apache-2.0
"""Every layout trains the same curve: 40 or 12 steps in float32, against one rank.

The tolerances are those of the reduction orders: a pipeline and data parallel ranks add the same numbers,
tensor parallel ranks add partial products in another order.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from tests.ranks import run_ranks
from tests.trainer.curves import train_curves

pytestmark = pytest.mark.slow

STEPS, FEW_STEPS = 40, 12
BLOCK = {"recompute": "full", "recompute_method": "block"}
ONE_RANK: dict[str, dict[str, Any]] = {
    "reference": {},
    "tied": {"no_weight_tying": False},
    "one KV head": {"num_kv_heads": 1},
}
LINEAR = {"cross_entropy_fusion_impl": "linear"}
# name: ranks, the run's differences, the curve it must equal, tolerance
LAYOUTS: dict[str, tuple[int, dict[str, Any], str, float]] = {
    "full recompute": (1, {"parallel": {"recompute": "full"}}, "reference", 0.0),
    "selective recompute": (1, {"parallel": {"recompute": "selective"}}, "reference", 0.0),
    "loss with the output layer": (1, LINEAR, "reference", 1e-6),
    "TP 2 + SP, loss with the output layer": (
        2,
        {"parallel": {"model_parallel_size": 2}, **LINEAR},
        "reference",
        5e-5,
    ),
    "PP 2, tied, loss with the output layer": (
        2,
        {"parallel": {"pipe_parallel_size": 2}, **ONE_RANK["tied"], **LINEAR},
        "tied",
        1e-6,
    ),
    "norms and activations again": (
        1,
        {"parallel": {"recompute": "selective", "recompute_modules": ("layernorm", "mlp_act", "core_attn")}},
        "reference",
        0.0,
    ),
    "MLPs again, one layer whole": (
        1,
        {"parallel": {**BLOCK, "recompute_num_layers": 1, "recompute_modules": ("layernorm", "mlp")}},
        "reference",
        0.0,
    ),
    "two layers whole, activations again in the others": (
        1,
        {"parallel": {**BLOCK, "recompute_num_layers": 2, "recompute_modules": ("mlp_act",)}},
        "reference",
        0.0,
    ),
    "DP 2": (2, {}, "reference", 1e-6),
    "DP 2, overlapped": (
        2,
        {
            "parallel": {
                "overlap_grad_reduce": True,
                "overlap_param_gather": True,
                "reduce_bucket_size": 40_000,
            }
        },
        "reference",
        1e-6,
    ),
    # Small buckets: the output layer's weight has one of its own.
    "DP 2, overlapped, loss with the output layer": (
        2,
        {"parallel": {"overlap_grad_reduce": True, "reduce_bucket_size": 20_000}, **LINEAR},
        "reference",
        1e-6,
    ),
    "DP 2, ZeRO 0": (2, {"parallel": {"zero_stage": 0}}, "reference", 1e-6),
    "PP 2 x DP 2, tied, overlapped": (
        4,
        {"parallel": {"pipe_parallel_size": 2, "overlap_grad_reduce": True}, **ONE_RANK["tied"]},
        "tied",
        1e-6,
    ),
    "PP 2": (2, {"parallel": {"pipe_parallel_size": 2}}, "reference", 1e-6),
    "PP 2, tied": (2, {"parallel": {"pipe_parallel_size": 2}, **ONE_RANK["tied"]}, "tied", 1e-6),
    "TP 2": (2, {"parallel": {"model_parallel_size": 2, "sequence_parallel": False}}, "reference", 5e-5),
    "TP 2 + SP": (2, {"parallel": {"model_parallel_size": 2}}, "reference", 5e-5),
    "TP 2 + SP, full recompute": (
        2,
        {"parallel": {"model_parallel_size": 2, "recompute": "full"}},
        "TP 2 + SP",
        0.0,
    ),
    "TP 2 + SP, norms and activations again": (
        2,
        {
            "parallel": {
                "model_parallel_size": 2,
                "recompute": "selective",
                "recompute_modules": ("layernorm", "mlp_act"),
            }
        },
        "TP 2 + SP",
        0.0,
    ),
    "TP 2 + SP, two layers whole, norms and MLPs again in the others": (
        2,
        {
            "parallel": {
                "model_parallel_size": 2,
                **BLOCK,
                "recompute_num_layers": 2,
                "recompute_modules": ("layernorm", "mlp"),
            }
        },
        "TP 2 + SP",
        0.0,
    ),
    "TP 2, one KV head": (
        2,
        {"parallel": {"model_parallel_size": 2}, **ONE_RANK["one KV head"]},
        "one KV head",
        5e-5,
    ),
    "TP 2 x PP 2": (4, {"parallel": {"model_parallel_size": 2, "pipe_parallel_size": 2}}, "reference", 5e-5),
    "TP 2 x DP 2": (4, {"parallel": {"model_parallel_size": 2}}, "reference", 5e-5),
}


@pytest.fixture(scope="module")
def curves() -> dict[str, list[list[float]]]:
    """The losses of every layout, as each of its ranks reported them."""
    found: dict[str, list[list[float]]] = {}
    runs = {name: (1, changes) for name, changes in ONE_RANK.items()}
    runs.update({name: layout[:2] for name, layout in LAYOUTS.items()})
    for ranks, steps in product((1, 2, 4), (STEPS, FEW_STEPS)):
        names = [name for name, (wanted, _) in runs.items() if (wanted, steps_of(name)) == (ranks, steps)]
        by_rank = run_ranks(train_curves, ranks, steps, [(runs[name][1],) for name in names]) if names else []
        for position, name in enumerate(names):
            found[name] = [curves_of_rank[position]["losses"] for curves_of_rank in by_rank]
    return found


def steps_of(name: str) -> int:
    """What computes the same numbers in the same order shows at once whether it does."""
    is_same = name in LAYOUTS and (LAYOUTS[name][3] == 0.0 or LAYOUTS[name][1].items() >= LINEAR.items())
    return FEW_STEPS if is_same else STEPS


@pytest.mark.parametrize("name", LAYOUTS)
def test_losses_equal_one_rank(curves: dict[str, list[list[float]]], name: str) -> None:
    _, _, reference_name, tolerance = LAYOUTS[name]
    losses = curves[name][0]
    reference = curves[reference_name][0][: len(losses)]
    difference = max(abs(a - b) for a, b in zip(losses, reference, strict=True))
    print(f"{name}: {difference:.2e}")
    assert difference <= tolerance
    assert all(of_rank == losses for of_rank in curves[name]), "ranks report different losses"


@pytest.mark.parametrize("name", ONE_RANK)
def test_the_reference_learns(curves: dict[str, list[list[float]]], name: str) -> None:
    """Guards the test above: on a flat curve every layout would look right."""
    losses = curves[name][0]
    assert losses[0] - losses[-1] > 1.0
