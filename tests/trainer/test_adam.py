# SPDX-License-Identifier: Apache-2.0
"""The Apex-shaped Adam against torch's AdamW."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from megatron.trainer import adam
from megatron.trainer.adam import FusedAdam, PrecisionAwareAdam, _norm
from megatron.trainer.number_formats import StateFormats, join


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


SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def run_beside(
    formats: StateFormats, dtype: torch.dtype, steps: int = 40, grad_dtype: torch.dtype = torch.float32
) -> tuple[PrecisionAwareAdam, torch.nn.Parameter, torch.Tensor]:
    """The optimizer, its parameter, and what `FusedAdam` in float32 makes of the same gradients."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(64 * 32, generator=generator).to(dtype)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    aware, plain = PrecisionAwareAdam([ours], formats, **SETTINGS), FusedAdam([theirs], **SETTINGS)
    for _ in range(steps):
        gradient = torch.randn(64 * 32, generator=generator).to(grad_dtype)
        ours.decoupled_grad, theirs.grad = gradient.clone(), gradient.float()  # type: ignore[attr-defined]
        aware.step()
        plain.step()
    return aware, ours, theirs.data


@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16])
def test_main_parameters_beside_weights_are_float32_to_the_bit(grad_dtype: torch.dtype) -> None:
    optimizer, weight, expected = run_beside(
        StateFormats(remainders=True), torch.bfloat16, grad_dtype=grad_dtype
    )
    state = optimizer.state[weight]
    assert state["master_param"].dtype == torch.int16
    assert torch.equal(join(weight.data, state["master_param"]), expected)
    assert torch.equal(optimizer.get_unscaled_state(weight, "master_param"), expected)
    assert (weight.float() - expected).abs().max() <= expected.abs().max() * 2**-8


def test_main_parameters_of_their_own_are_rounded_to_the_weights() -> None:
    _, weight, expected = run_beside(StateFormats(gradients=torch.bfloat16), torch.bfloat16)
    assert torch.equal(weight.data, expected.bfloat16())


def test_moments_in_bfloat16_follow_those_in_float32() -> None:
    """After 40 steps of noise with a learning rate of 1e-2 weights have moved by 0.3; measured: 2.0e-3."""
    formats = StateFormats(torch.bfloat16, torch.bfloat16)
    optimizer, weight, expected = run_beside(formats, torch.float32)
    assert {name: one.dtype for name, one in optimizer.state[weight].items()} == {
        "exp_avg": torch.bfloat16, "exp_avg_sq": torch.bfloat16, "master_param": torch.float32,
    }  # fmt: skip
    assert (weight.data - expected).abs().max() <= 4e-3
    assert not torch.equal(weight.data, expected)


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    formats = StateFormats(torch.bfloat16, torch.bfloat16, remainders=True)
    _, whole, _ = run_beside(formats, torch.bfloat16, steps=5)
    monkeypatch.setitem(adam._PIECE_NUMBERS, "cpu", 100)
    _, pieces, _ = run_beside(formats, torch.bfloat16, steps=5)
    assert torch.equal(whole.data, pieces.data)


def test_a_state_survives_being_loaded() -> None:
    """As megatron-core loads one: tensors that torch would make bfloat16, then the values, in float32."""
    formats = StateFormats(torch.bfloat16, torch.float32, remainders=True)
    optimizer, weight, _ = run_beside(formats, torch.bfloat16, steps=5)
    saved = {name: optimizer.get_unscaled_state(weight, name).clone() for name in optimizer.state[weight]}
    other = torch.nn.Parameter(torch.zeros_like(weight))
    again = PrecisionAwareAdam([other], formats, **SETTINGS)
    empty = {name: torch.empty_like(state) for name, state in optimizer.state[weight].items()}
    again.load_state_dict({"state": {0: empty}, "param_groups": optimizer.state_dict()["param_groups"]})
    assert again.param_groups[0]["step"] == 5
    for name, value in saved.items():
        again.set_scaled_state(other, name, value)
    assert torch.equal(other.data, weight.data)
    for name, state in optimizer.state[weight].items():
        assert torch.equal(again.state[other][name], state), name


def test_the_norm_of_bfloat16_gradients_is_not_rounded() -> None:
    gradients = [torch.randn(1000).bfloat16(), torch.randn(10).bfloat16()]
    norm, _ = adam._norm(1, torch.zeros(1), [gradients], False)
    assert norm.dtype == torch.float32
    expected = torch.cat(gradients).double().norm()
    assert float(norm) == pytest.approx(float(expected), rel=1e-6)


def test_the_norm_of_many_numbers_is_not_that_of_a_sum_in_float32() -> None:
    """Over rows, with a rest; torch's norm of 3 million is 6e-5 too small on a CPU."""
    gradients = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (3_000_001, 4096, 5)]
    norm, _ = adam._norm(1, torch.zeros(1), [gradients], False)
    assert float(norm) == pytest.approx(float(torch.cat(gradients).double().norm()), rel=1e-6)


def test_the_norm_gradients() -> None:
    """In float32 also of bfloat16 gradients: measured against float64 6e-7; in bfloat16 it is 2e-3."""
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(700, 3, generator=generator) for _ in range(40)]
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [gradient.to(dtype) for gradient in gradients]
        norm, _ = _norm(0, torch.zeros(1), [tensors], False)
        exact = math.sqrt(sum(float(tensor.double().pow(2).sum()) for tensor in tensors))
        assert norm.shape == (1,)
        assert norm.dtype == torch.float32
        assert abs(float(norm) / exact - 1) < 1e-5
