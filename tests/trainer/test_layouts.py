# SPDX-License-Identifier: Apache-2.0
"""Every layout trains the same curve: 40 steps in float32, against one rank.

The tolerances are those of the reduction orders: a pipeline and data parallel ranks add the same numbers,
tensor parallel ranks add partial products in another order.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.ranks import run_ranks
from tests.trainer.curves import train_curves

STEPS = 40
ONE_RANK: dict[str, dict[str, Any]] = {
    "reference": {},
    "tied": {"no_weight_tying": False},
    "one KV head": {"num_kv_heads": 1},
}
# name: ranks, the run's differences, the curve it must equal, tolerance
LAYOUTS: dict[str, tuple[int, dict[str, Any], str, float]] = {
    "full recompute": (1, {"parallel": {"recompute": "full"}}, "reference", 0.0),
    "selective recompute": (1, {"parallel": {"recompute": "selective"}}, "reference", 0.0),
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
    "DP 2, ZeRO 0": (2, {"parallel": {"zero_stage": 0}}, "reference", 1e-6),
    "PP 2": (2, {"parallel": {"pipe_parallel_size": 2}}, "reference", 1e-6),
    "PP 2, tied": (2, {"parallel": {"pipe_parallel_size": 2}, **ONE_RANK["tied"]}, "tied", 1e-6),
    "TP 2": (2, {"parallel": {"model_parallel_size": 2, "sequence_parallel": False}}, "reference", 5e-5),
    "TP 2 + SP": (2, {"parallel": {"model_parallel_size": 2}}, "reference", 5e-5),
    "TP 2 + SP, full recompute": (
        2,
        {"parallel": {"model_parallel_size": 2, "recompute": "full"}},
        "reference",
        5e-5,
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
    for ranks in (1, 2, 4):
        names = [name for name, (wanted, _) in runs.items() if wanted == ranks]
        by_rank = run_ranks(train_curves, ranks, STEPS, [(runs[name][1],) for name in names])
        for position, name in enumerate(names):
            found[name] = [curves_of_rank[position]["losses"] for curves_of_rank in by_rank]
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_losses_equal_one_rank(curves: dict[str, list[list[float]]], name: str) -> None:
    _, _, reference_name, tolerance = LAYOUTS[name]
    reference, losses = curves[reference_name][0], curves[name][0]
    difference = max(abs(a - b) for a, b in zip(losses, reference, strict=True))
    print(f"{name}: {difference:.2e}")
    assert difference <= tolerance
    assert all(of_rank == losses for of_rank in curves[name]), "ranks report different losses"


@pytest.mark.parametrize("name", ONE_RANK)
def test_the_reference_learns(curves: dict[str, list[list[float]]], name: str) -> None:
    """Guards the test above: on a flat curve every layout would look right."""
    losses = curves[name][0]
    assert losses[0] - losses[-1] > 1.0
