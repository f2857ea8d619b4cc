# SPDX-License-Identifier: Apache-2.0
"""Numbers in 16 bits: split without loss, and rounded so that they are right on average."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron.trainer.number_formats import chance_of, join, round_stochastically, split

floats = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**127), max_value=2.0**127)


@given(st.lists(floats, min_size=1, max_size=20))
def test_what_is_split_is_joined_to_the_bit(values: list[float]) -> None:
    numbers = torch.tensor(values)
    rounded, remainders = split(numbers)
    assert torch.equal(join(rounded, remainders).view(torch.int32), numbers.view(torch.int32))
    # Nearest, as torch rounds, but for halves.
    is_half = (numbers.view(torch.int32) & 0xFFFF) == 0x8000
    assert torch.equal(rounded[~is_half], numbers.bfloat16()[~is_half])
    assert bool((rounded.float().abs() >= numbers.abs())[is_half].all())


@given(st.lists(floats, min_size=1, max_size=20), st.integers(1, 10**7), st.integers(0, 1))
def test_a_number_is_rounded_to_a_neighbour(values: list[float], step: int, which: int) -> None:
    numbers = torch.tensor(values)
    rounded = round_stochastically(numbers, numbers, chance_of(step, which))
    below = (numbers.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)  # nearer to zero
    above = ((numbers.view(torch.int32) >> 16) + 1).to(torch.int16).view(torch.bfloat16)
    assert bool(((rounded == below) | (rounded == above)).all())
    exact = numbers.bfloat16()
    assert torch.equal(round_stochastically(exact.float(), numbers, chance_of(step, which)), exact)


@pytest.mark.parametrize("part", [0.1, 0.25, 0.5, 0.9])
def test_rounding_is_right_on_average(part: float) -> None:
    """A number at 20,000 steps, and of 20,000 parameters at one: up as often as it is on the way up."""
    number = torch.tensor([1.0 + part / 128])
    one = torch.ones(1)
    ups = sum(float(round_stochastically(number, one, chance_of(step, 0))) > 1.0 for step in range(20_000))
    assert ups / 20_000 == pytest.approx(part, abs=0.015)  # 4 standard deviations
    beside = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    share = (round_stochastically(number.expand(20_000), beside, chance_of(7, 1)) > 1.0).float().mean()
    assert float(share) == pytest.approx(part, abs=0.015)


def test_a_second_moment_falls_where_gradients_vanish() -> None:
    """1,000 steps with beta2 0.999: e^-1 of it is left. Rounded to nearest all of it would be."""
    moments = torch.linspace(0.5, 2.0, 4096).bfloat16()
    nearest, ours = moments.clone(), moments.clone()
    weights = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    for step in range(1000):
        nearest = (nearest.float() * 0.999).bfloat16()
        ours = round_stochastically(ours.float() * 0.999, weights, chance_of(step, 1))
    assert torch.equal(nearest, moments)
    left = (ours.float() / moments.float()).mean()
    assert float(left) == pytest.approx(0.999**1000, rel=0.01)
