# SPDX-License-Identifier: Apache-2.0
"""Every family trains the same curve cut over tensor parallel ranks or a pipeline, and resumes on one.

Gradient norms are compared beside losses: Adam hides a gradient of the wrong size for some steps, its norm
does not. Measured over 8 steps in float32: losses within X, norms within Y of their size.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.ranks import run_ranks
from tests.trainer.curves import train_curves

STEPS, SAVED_AT = 8, 4
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen 2.5": {"use_qkv_bias": True, "no_weight_tying": False},
    "qwen 3": {"qk_norm": "head", "head_dim": 32, "rms_norm_epsilon": 1e-6},
    "olmo 2": {"qk_norm": "projection", "norm_position": "after", "num_kv_heads": 4},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "TP 2": {"model_parallel_size": 2, "sequence_parallel": False},
    "TP 2 + SP": {"model_parallel_size": 2},
    "TP 2 + SP, full recompute": {"model_parallel_size": 2, "recompute": "full"},
    "PP 2": {"pipe_parallel_size": 2},
}
TOLERANCE = 5e-5

Curves = dict[tuple[str, str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Curves:
    """What each rank reports, by family and layout; "resumed" is one rank that goes on with TP 2 + SP's."""
    saves = {name: str(tmp_path_factory.mktemp("save")) for name in FAMILIES}
    found: Curves = {}

    def run(ranks: int, calls: dict[tuple[str, str], tuple[Any, ...]]) -> None:
        by_rank = run_ranks(train_curves, ranks, STEPS, list(calls.values()))
        for position, key in enumerate(calls):
            found[key] = [of_rank[position] for of_rank in by_rank]

    cut: dict[tuple[str, str], tuple[Any, ...]] = {}
    for name, changes in FAMILIES.items():
        for layout, parallel in LAYOUTS.items():
            saving = (saves[name], SAVED_AT) if layout == "TP 2 + SP" else ()
            cut[name, layout] = ({**changes, "parallel": parallel}, *saving)
    run(2, cut)
    alone: dict[tuple[str, str], tuple[Any, ...]] = {}
    for name, changes in FAMILIES.items():
        alone[name, "1 rank"] = (changes,)
        alone[name, "resumed"] = (changes, saves[name], 0, True)
    run(1, alone)
    return found


@pytest.mark.parametrize("layout", [*LAYOUTS, "resumed"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_curve_is_that_of_one_rank(curves: Curves, name: str, layout: str) -> None:
    reference, ranks = curves[name, "1 rank"][0], curves[name, layout]
    start = SAVED_AT if layout == "resumed" else 0
    losses = zip(ranks[0]["losses"], reference["losses"][start:], strict=True)
    norms = zip(ranks[0]["norms"], reference["norms"][start:], strict=True)
    difference = max(abs(a - b) for a, b in losses)
    norm_difference = max(abs(a - b) / b for a, b in norms)
    print(f"{name}, {layout}: losses {difference:.2e}, norms {norm_difference:.2e}")
    assert difference <= TOLERANCE
    assert norm_difference <= TOLERANCE
    assert all(of_rank["norms"] == ranks[0]["norms"] for of_rank in ranks)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_learns(curves: Curves, name: str) -> None:
    """Guards the test above: on a flat curve every layout would look right."""
    losses = curves[name, "1 rank"][0]["losses"]
    assert losses[0] - losses[-1] > 0.5


def first_weights(changes: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Called on a rank: each weight's least and greatest value, and the share of weight decay it gets."""
    from megatron.backend import initialize
    from megatron.model import build
    from megatron.trainer.adam import give_to_megatron_core
    from megatron.trainer.setup import wrap
    from tests.llamas import run_config

    cfg = run_config(parallel={"zero_stage": 0}, **changes)  # ZeRO-1 hides which weight is which
    backend = initialize(cfg.parallel, seed=1)
    give_to_megatron_core()
    trainable = wrap(cfg, build(cfg, backend, 512, 512))
    decay = {
        id(weight): group.get("wd_mult", 1.0)
        for group in trainable.optimizer.param_groups
        for weight in group["params"]
    }
    return {
        name.removeprefix("module."): (weight.min().item(), weight.max().item(), decay[id(weight)])
        for name, weight in trainable.model.named_parameters()
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_norms_start_as_ones_and_biases_as_zeros_without_decay(name: str) -> None:
    weights = run_ranks(first_weights, 1, FAMILIES[name])[0]
    expected = {"qwen 2.5": "linear_qkv.bias", "qwen 3": "k_layernorm.weight", "olmo 2": "post_norm.weight"}
    assert sum(weight.endswith(expected[name]) for weight in weights) >= 4
    for weight, (least, greatest, decay) in weights.items():
        if weight.endswith(".bias"):
            assert (least, greatest, decay) == (0.0, 0.0, 0.0)
        elif "norm" in weight:
            assert (least, greatest, decay) == (1.0, 1.0, 0.0)
        else:
            assert least < 0 < greatest
            assert decay == 1.0
