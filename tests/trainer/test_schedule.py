# SPDX-License-Identifier: Apache-2.0
"""The learning rate at its corners, and against torch's own schedulers between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron.neox_arguments.config import RunConfig
from megatron.trainer.schedule import learning_rate
from tests.llamas import run_config


def config(style: str, **schedule: Any) -> RunConfig:
    return run_config(
        optimizer={"lr": 1e-4}, schedule={"train_iters": 1000, "lr_decay_style": style, **schedule}
    )


def test_llemmas_schedule() -> None:
    cfg = run_config(
        optimizer={"lr": 1e-4},
        schedule={
            "train_iters": 48000,
            "lr_decay_iters": 48000,
            "lr_decay_style": "cosine",
            "warmup_iters": 500,
            "decay_lr_to": 0.033,
        },
    )
    assert learning_rate(cfg, 1) == pytest.approx(1e-4 / 500)
    assert learning_rate(cfg, 500) == 1e-4
    assert learning_rate(cfg, 500 + (48000 - 500) // 2) == pytest.approx((1e-4 + 3.3e-6) / 2)
    assert learning_rate(cfg, 48000) == pytest.approx(3.3e-6)
    assert learning_rate(cfg, 50000) == pytest.approx(3.3e-6)


def test_cosine_equals_torch() -> None:
    cfg = config("cosine", decay_lr_to=0.1, warmup_iters=0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1000, eta_min=1e-5)
    for iteration in range(1, 1000):
        optimizer.step()
        theirs.step()
        assert learning_rate(cfg, iteration) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)


def test_linear_constant_and_wsd() -> None:
    linear = config("linear", warmup=0.1, min_lr=1e-5)
    assert learning_rate(linear, 50) == pytest.approx(5e-5)
    assert learning_rate(linear, 550) == pytest.approx((1e-4 + 1e-5) / 2)
    assert learning_rate(config("constant"), 999) == 1e-4
    wsd = config("wsd", wsd_decay_iters=200, decay_lr_to=0.0)
    assert [learning_rate(wsd, i) for i in (1, 500, 800)] == [1e-4] * 3
    assert learning_rate(wsd, 900) == pytest.approx(5e-5)
    assert learning_rate(wsd, 1000) == 0.0


@pytest.mark.parametrize("style", ["cosine", "linear", "constant", "wsd"])
def test_never_above_the_peak_nor_below_the_lowest(style: str) -> None:
    cfg = config(style, warmup_iters=100, decay_lr_to=0.033)
    rates = [learning_rate(cfg, i) for i in range(1, 1200)]
    assert max(rates) == 1e-4
    assert min(rates[100:]) >= 0.033 * 1e-4 * (1 - 1e-12)
    assert rates[99:] == sorted(rates[99:], reverse=True)
