# SPDX-License-Identifier: Apache-2.0
"""Optimizer states in 16 bits, in a run: losses, layouts, checkpoints that another choice goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.ranks import run_ranks
from tests.trainer.curves import train_curves

pytestmark = pytest.mark.slow

STEPS = 24
BF16 = {"precision": "bfloat16"}
SMALL_STATES = {"exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "bf16", "store_param_remainders": True}
# name: the run's differences
CHOICES: dict[str, dict[str, Any]] = {
    "float32": {"precision": BF16},
    "remainders": {"precision": BF16, "optimizer": {"store_param_remainders": True}},
    "moments": {"precision": BF16, "optimizer": {"exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "bf16"}},
    "all": {"precision": {**BF16, "grad_accum_dtype": "bf16"}, "optimizer": SMALL_STATES},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def curves(folder: Path) -> dict[str, dict[str, Any]]:
    """Every choice for all steps, with a checkpoint half way; then from each other's checkpoints."""
    calls: dict[str, tuple[Any, ...]] = {
        name: (changes, str(folder / name), STEPS // 2) for name, changes in CHOICES.items()
    }
    for begun, gone_on in (("float32", "all"), ("all", "float32"), ("all", "all")):
        calls[f"{begun} -> {gone_on}"] = (CHOICES[gone_on], str(folder / begun), 0, True)
    [found] = run_ranks(train_curves, 1, STEPS, list(calls.values()))
    return dict(zip(calls, found, strict=True))


def most_apart(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("name", "bar"), [("remainders", 2e-3), ("moments", 5e-3), ("all", 1e-2)])
def test_the_loss_follows_that_of_float32_states(
    curves: dict[str, dict[str, Any]], name: str, bar: float
) -> None:
    """Over 24 steps; two bfloat16 layouts differ by up to 1e-2."""
    plain, losses = curves["float32"]["losses"], curves[name]["losses"]
    assert plain[0] - plain[-1] > 1.0
    print(f"{name}: {most_apart(plain, losses):.1e}")
    assert most_apart(plain, losses) <= bar


def test_a_resumed_run_repeats_itself(curves: dict[str, dict[str, Any]]) -> None:
    resumed, whole = curves["all -> all"], curves["all"]
    assert resumed["losses"] == whole["losses"][STEPS // 2 :]
    assert resumed["weights"] == whole["weights"]


@pytest.mark.parametrize("change", ["float32 -> all", "all -> float32"])
def test_a_checkpoint_goes_on_with_another_choice(curves: dict[str, dict[str, Any]], change: str) -> None:
    begun = change.partition(" ")[0]
    assert most_apart(curves[change]["losses"], curves[begun]["losses"][STEPS // 2 :]) <= 1e-2


def test_layouts_keep_one_model_and_read_each_others_checkpoints(folder: Path, curves: Any) -> None:
    """Norms, which every tensor parallel rank updates for itself, stay equal to the bit."""
    changes = {**CHOICES["all"], "parallel": {"model_parallel_size": 2}}
    calls = [(changes,), (changes, str(folder / "all"), 0, True), ({**CHOICES["all"]},)]
    by_rank = run_ranks(train_curves, 2, STEPS, calls)
    for mine, other in zip(*by_rank, strict=True):
        assert mine["losses"] == other["losses"]
        assert mine["uncut"] == other["uncut"]
    tensor, resumed, data = by_rank[0]
    expected = curves["all"]["losses"]
    assert most_apart(tensor["losses"], expected) <= 2e-2
    assert most_apart(resumed["losses"], expected[STEPS // 2 :]) <= 2e-2
    assert most_apart(data["losses"], expected) <= 2e-2


def back_to_a_checkpoint(save: str) -> list[list[float]]:
    """Called on a rank: losses after a checkpoint, and again after going back to it with states in place."""
    from megatron.backend import initialize
    from megatron.checkpointing import folders
    from megatron.checkpointing.saving import save as save_checkpoint
    from megatron.checkpointing.state import load_all
    from megatron.model import build
    from megatron.trainer.adam import give_to_megatron_core
    from megatron.trainer.setup import TrainingState, wrap
    from megatron.trainer.step import compute_gradients, reduce_over_ranks, update_weights
    from tests.llamas import run_config
    from tests.trainer.curves import VOCAB, micro_batches, record_at

    cfg = run_config(**CHOICES["all"])
    backend = initialize(cfg.parallel, seed=1)
    give_to_megatron_core()
    built = build(cfg, backend, VOCAB, VOCAB)
    state = TrainingState(built, wrap(cfg, built))

    def train(first: int, last: int) -> list[float]:
        batches = micro_batches(first, 1, 0)
        losses = []
        for _ in range(first, last):
            losses.append(reduce_over_ranks(compute_gradients(state, cfg, backend, batches), [], backend)[0])
            update_weights(state, cfg, lr=1e-3)
        return losses

    train(0, 3)
    record = record_at(cfg, backend, 3)
    save_checkpoint(Path(save), state.trainable, record, backend, None, [])
    once = train(3, 6)
    folder = folders.find(Path(save))
    assert folder is not None
    load_all(folder, state.trainable, record, backend)
    return [once, train(3, 6)]


def test_going_back_to_a_checkpoint_repeats_every_bit(tmp_path: Path) -> None:
    [(once, again)] = run_ranks(back_to_a_checkpoint, 1, str(tmp_path / "save"))
    assert once == again
