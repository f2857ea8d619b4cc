# SPDX-License-Identifier: Apache-2.0
"""From many ranks to one and back, optimizer included: weights bit for bit, the next 10 losses within 5e-5.

Every checkpoint of a chain is loaded in another layout, saved again untouched, and then trained on: the
copies must hold the same tensors, and the losses must be those of the run that was never moved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.runs import call_on_ranks
from tests.trainer.curves import train_curve

pytestmark = pytest.mark.slow

SAVED_AT, AFTER = 2, 10
TOLERANCE = 5e-5
# 8 heads and 8 groups, so that 8 tensor parallel ranks have one each.
MODEL: dict[str, Any] = {"num_attention_heads": 8, "num_kv_heads": 8, "num_layers": 2}
TP_8, ONE, TP_2_PP_2 = "TP 8", "1 rank", "TP 2 x PP 2"
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    TP_8: (8, {"model_parallel_size": 8}),
    ONE: (1, {}),
    TP_2_PP_2: (4, {"model_parallel_size": 2, "pipe_parallel_size": 2}),
}
CHAINS = [[TP_8, ONE, TP_2_PP_2, TP_8], [TP_2_PP_2, ONE]]


def move_and_train(load: str, save: str, changes: dict[str, Any]) -> list[float]:
    """Loads in this layout, saves it as it is into another folder, and trains on; returns the losses."""
    curve = train_curve(SAVED_AT + AFTER, changes, load, 0, True, copy_to=save)
    return list(curve["losses"])


def assert_same_tensors(one: Path, other: Path) -> None:
    import torch

    from megatron.checkpointing import tensors

    ours, theirs = tensors.open_model(one), tensors.open_model(other)
    assert ours.keys() == theirs.keys()
    assert any("exp_avg_sq" in name for name in ours)
    for name, lazy in ours.items():
        tensor, other_tensor = lazy.read(), theirs[name].read()
        assert tensor.dtype == other_tensor.dtype
        assert torch.equal(tensor, other_tensor), name


@pytest.mark.parametrize("chain", CHAINS, ids=" to ".join)
def test_a_state_survives_every_move(chain: list[str], tmp_path: Path) -> None:
    ranks, parallel = LAYOUTS[chain[0]]
    step = f"global_step{SAVED_AT}"
    changes = {"parallel": parallel, **MODEL}
    first = str(tmp_path / "0")
    curves = call_on_ranks(tmp_path / "whole", train_curve, ranks, SAVED_AT + AFTER, changes, first, SAVED_AT)
    expected = curves[0]["losses"][SAVED_AT:]
    for number, layout in enumerate(chain[1:], start=1):
        ranks, parallel = LAYOUTS[layout]
        before, here = str(tmp_path / str(number - 1)), str(tmp_path / str(number))
        changes = {"parallel": parallel, **MODEL}
        losses = call_on_ranks(tmp_path / f"to{number}", move_and_train, ranks, before, here, changes)[0]
        assert_same_tensors(tmp_path / "0" / step, tmp_path / str(number) / step)
        difference = max(abs(one - other) for one, other in zip(losses, expected, strict=True))
        print(f"{chain[number - 1]} to {layout}: {difference:.2e}")
        assert len(losses) == AFTER
        assert difference <= TOLERANCE
