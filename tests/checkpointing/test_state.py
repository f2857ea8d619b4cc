# SPDX-License-Identifier: Apache-2.0
"""A resumed run is the uninterrupted one: bit for bit in its layout, within rounding in another.

Tolerances: 0 in the same layout; 5e-5 where tensor parallel ranks add partial products in another order
(measured: at most 7.2e-7 over the 6 steps after the load).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.ranks import run_ranks
from tests.trainer.curves import train_curve, train_curves

pytestmark = pytest.mark.slow

STEPS, SAVED_AT = 10, 4
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "1 rank": (1, {}),
    "1 rank, bfloat16": (1, {"precision": {"precision": "bfloat16"}}),
    "DP 2": (2, {}),
    # Small buckets: a rank's shard of each is a part of the model, and a checkpoint must have the other's.
    "DP 2, overlapped": (2, {"parallel": {"overlap_grad_reduce": True, "reduce_bucket_size": 40_000}}),
    "DP 2, ZeRO 0": (2, {"parallel": {"zero_stage": 0}}),
    "TP 2 + SP": (2, {"parallel": {"model_parallel_size": 2}}),
    "PP 2": (2, {"parallel": {"pipe_parallel_size": 2}}),
}


# Saved as the first, resumed as the second, with the largest difference of a loss that may show.
MOVES: list[tuple[str, str, float]] = [
    *((name, name, 0.0) for name in LAYOUTS),
    ("TP 2 + SP", "DP 2", 5e-5),
    ("TP 2 + SP", "PP 2", 5e-5),
    ("TP 2 + SP", "1 rank", 5e-5),
    ("1 rank", "TP 2 + SP", 5e-5),
    ("PP 2", "DP 2", 5e-5),
    ("DP 2, overlapped", "1 rank", 1e-6),
]

Curves = dict[Any, list[dict[str, Any]]]


def run_all(calls: dict[Any, tuple[int, tuple[Any, ...]]]) -> Curves:
    """Each call's result by rank; the calls of one number of ranks share their processes."""
    found: Curves = {}
    for ranks in (1, 2):
        keys = [key for key, (wanted, _) in calls.items() if wanted == ranks]
        by_rank = run_ranks(train_curves, ranks, STEPS, [calls[key][1] for key in keys])
        for position, key in enumerate(keys):
            found[key] = [curves[position] for curves in by_rank]
    return found


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Curves, Curves]:
    """The uninterrupted curve of each layout, and the rest of the curve after each move."""
    saves = {name: str(tmp_path_factory.mktemp("save")) for name in LAYOUTS}
    whole = run_all({n: (ranks, (changes, saves[n], SAVED_AT)) for n, (ranks, changes) in LAYOUTS.items()})
    moves: dict[Any, tuple[int, tuple[Any, ...]]] = {}
    for source, target, _ in MOVES:
        ranks, changes = LAYOUTS[target]
        moves[source, target] = (ranks, (changes, saves[source], 0, True))
    return whole, run_all(moves)


@pytest.mark.parametrize(("source", "target", "tolerance"), MOVES)
def test_a_resumed_run_is_the_uninterrupted_one(
    curves: tuple[Curves, Curves], source: str, target: str, tolerance: float
) -> None:
    whole, resumed = curves
    before, after = whole[source], resumed[source, target]
    pairs = zip(before[0]["losses"][SAVED_AT:], after[0]["losses"], strict=True)
    difference = max(abs(a - b) for a, b in pairs)
    print(f"{source} to {target}: {difference:.2e}")
    assert difference <= tolerance
    if source == target:
        assert [rank["norms"] for rank in after] == [rank["norms"][SAVED_AT:] for rank in before]
        assert [rank["weights"] for rank in after] == [rank["weights"] for rank in before]


def test_without_the_optimizer_state_the_curve_differs(curves: tuple[Curves, Curves], tmp_path: Path) -> None:
    """Guards the tests above: the moments matter, so their loss would show."""
    whole = run_ranks(train_curve, 1, STEPS, {}, str(tmp_path), SAVED_AT)[0]
    fresh = run_ranks(forget_moments_and_resume, 1, str(tmp_path))[0]
    assert whole["losses"] == curves[0]["1 rank"][0]["losses"]
    assert abs(fresh["losses"][1] - whole["losses"][SAVED_AT + 1]) > 1e-4


def forget_moments_and_resume(save: str) -> dict[str, Any]:
    """Resumes with weights only."""
    import megatron.checkpointing.state as state

    def weights_only(folder: Path, trainable: Any, *_: Any, **__: Any) -> None:
        state.load_weights(folder, trainable.model.module)
        trainable.optimizer.reload_model_params()

    state.load_all = weights_only
    return train_curve(STEPS, {}, save, 0, True)
