# SPDX-License-Identifier: Apache-2.0
"""Every family trains the same curve cut over tensor parallel ranks or a pipeline, and resumes on one.

Gradient norms are compared beside losses: Adam hides a gradient of the wrong size for some steps, its norm
does not. Measured over 6 steps in float32: losses within 3e-6, the first norm within 9e-7 of its size, later
norms within 8e-5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tests.ranks import run_ranks
from tests.trainer.curves import train_curves

pytestmark = pytest.mark.slow

STEPS, SAVED_AT = 6, 3
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen 2.5": {"num_layers": 2, "use_qkv_bias": True, "no_weight_tying": False},
    "qwen 3": {"num_layers": 2, "qk_norm": "head", "head_dim": 32, "rms_norm_epsilon": 1e-6},
    "olmo 2": {"num_layers": 2, "qk_norm": "projection", "norm_position": "after", "num_kv_heads": 4},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "TP 2": {"model_parallel_size": 2, "sequence_parallel": False},
    "TP 2 + SP": {"model_parallel_size": 2},
    "PP 2": {"pipe_parallel_size": 2},
}
TOLERANCE, FIRST_NORM_TOLERANCE, NORM_TOLERANCE = 5e-5, 1e-5, 1e-3

Key = tuple[str, str]


@dataclass(frozen=True)
class Weight:
    """A rank's part of a weight before training."""

    shape: tuple[int, ...]
    least: float
    greatest: float
    decay: float
    is_cut: bool


@dataclass(frozen=True)
class Found:
    """By family and layout: what each rank reports of its training, and rank 0's first weights."""

    curves: dict[Key, list[dict[str, Any]]]
    weights: dict[Key, dict[str, Weight]]


def first_weights(changes: dict[str, Any]) -> dict[str, Weight]:
    """Called on every rank, after which there is no layout."""
    from megatron.backend import initialize
    from megatron.core import parallel_state
    from megatron.model import build
    from megatron.trainer.adam import give_to_megatron_core
    from megatron.trainer.setup import wrap
    from tests.llamas import run_config

    parallel = {**changes["parallel"], "zero_stage": 0}  # ZeRO-1 hides which weight is which
    cfg = run_config(**{**changes, "parallel": parallel})
    backend = initialize(cfg.parallel, seed=1)
    give_to_megatron_core()
    trainable = wrap(cfg, build(cfg, backend, 512, 512))
    parallel_state.destroy_model_parallel()
    decay = {
        id(weight): group.get("wd_mult", 1.0)
        for group in trainable.optimizer.param_groups
        for weight in group["params"]
    }
    return {
        name.removeprefix("module."): Weight(
            tuple(weight.shape),
            weight.min().item(),
            weight.max().item(),
            decay[id(weight)],
            getattr(weight, "tensor_model_parallel", False),
        )
        for name, weight in trainable.model.named_parameters()
    }


def curves_and_weights(
    calls: list[tuple[Any, ...]], starts: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Weight]]]:
    """Called on every rank: `train_curve` of each of `calls`, and the first weights of each of `starts`."""
    curves = train_curves(STEPS, calls)
    return curves, [first_weights(changes) for changes in starts]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """ "resumed" is one rank that goes on with what TP 2 + SP saved."""
    saves = {name: str(tmp_path_factory.mktemp("save")) for name in FAMILIES}
    found = Found({}, {})

    def run(ranks: int, layout: str, calls: dict[Key, tuple[Any, ...]], parallel: dict[str, Any]) -> None:
        starts = [{**changes, "parallel": parallel} for changes in FAMILIES.values()]
        by_rank = run_ranks(curves_and_weights, ranks, list(calls.values()), starts)
        for position, key in enumerate(calls):
            found.curves[key] = [curves[position] for curves, _ in by_rank]
        for name, weights in zip(FAMILIES, by_rank[0][1], strict=True):
            found.weights[name, layout] = weights

    cut: dict[Key, tuple[Any, ...]] = {}
    alone: dict[Key, tuple[Any, ...]] = {}
    for name, changes in FAMILIES.items():
        for layout, parallel in LAYOUTS.items():
            saving = (saves[name], SAVED_AT) if layout == "TP 2 + SP" else ()
            cut[name, layout] = ({**changes, "parallel": parallel}, *saving)
        alone[name, "1 rank"] = (changes,)
        alone[name, "resumed"] = (changes, saves[name], 0, True)
    run(2, "TP 2", cut, LAYOUTS["TP 2"])
    run(1, "1 rank", alone, {})
    return found


@pytest.mark.parametrize("layout", [*LAYOUTS, "resumed"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_curve_is_that_of_one_rank(found: Found, name: str, layout: str) -> None:
    reference, ranks = found.curves[name, "1 rank"][0], found.curves[name, layout]
    start = SAVED_AT if layout == "resumed" else 0
    losses = zip(ranks[0]["losses"], reference["losses"][start:], strict=True)
    norms = zip(ranks[0]["norms"], reference["norms"][start:], strict=True)
    difference = max(abs(a - b) for a, b in losses)
    norm_differences = [abs(a - b) / b for a, b in norms]
    first, largest = norm_differences[0], max(norm_differences)
    print(f"{name}, {layout}: losses {difference:.2e}, norms {first:.2e} to {largest:.2e}")
    assert difference <= TOLERANCE
    assert largest <= NORM_TOLERANCE
    assert start or first <= FIRST_NORM_TOLERANCE
    assert all(of_rank["norms"] == ranks[0]["norms"] for of_rank in ranks)
    if "TP" in layout:  # a gradient that was not summed over the ranks would part them
        assert all(of_rank["uncut"] == ranks[0]["uncut"] for of_rank in ranks)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_learns(found: Found, name: str) -> None:
    """Guards the test above: on a flat curve every layout would look right."""
    losses = found.curves[name, "1 rank"][0]["losses"]
    assert losses[0] - losses[-1] > 0.5


@pytest.mark.parametrize("name", FAMILIES)
def test_norms_start_as_ones_and_biases_as_zeros_without_decay(found: Found, name: str) -> None:
    expected = {"qwen 2.5": "linear_qkv.bias", "qwen 3": "k_layernorm.weight", "olmo 2": "post_norm.weight"}
    weights = found.weights[name, "1 rank"]
    assert sum(weight.endswith(expected[name]) for weight in weights) >= 2
    for weight, start in weights.items():
        if weight.endswith(".bias"):
            assert (start.least, start.greatest, start.decay) == (0.0, 0.0, 0.0)
        elif "norm" in weight:
            assert (start.least, start.greatest, start.decay) == (1.0, 1.0, 0.0)
        else:
            assert start.least < 0 < start.greatest
            assert start.decay == 1.0


@pytest.mark.parametrize("name", FAMILIES)
def test_a_weight_is_marked_as_cut_where_it_is(found: Found, name: str) -> None:
    """Unmarked, its other parts would be missing in the norm of the gradient."""
    parts, whole = found.weights[name, "TP 2"], found.weights[name, "1 rank"]
    assert parts.keys() == whole.keys()
    for weight, part in parts.items():
        assert part.is_cut is (part.shape != whole[weight].shape), weight
