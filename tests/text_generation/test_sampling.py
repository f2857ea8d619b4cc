# SPDX-License-Identifier: Apache-2.0
"""Draws against the distribution written down directly, in float64."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron.text_generation import sampling
from megatron.text_generation.requests import Request

IDS = 40


def expected(logits: np.ndarray, temperature: float, top_p: float, top_k: int) -> np.ndarray:
    """The probability of each id."""
    scaled = logits.astype(np.float64) / temperature
    order = np.argsort(-scaled, kind="stable")
    kept = order[: top_k or IDS]
    weights = np.exp(scaled[kept] - scaled[kept].max())
    weights /= weights.sum()
    nucleus = [place for place in range(len(kept)) if weights[:place].sum() < top_p]
    probabilities = np.zeros(IDS)
    probabilities[kept[nucleus]] = weights[nucleus] / weights[nucleus].sum()
    return probabilities


def request(**settings: object) -> Request:
    return Request(prompt_ids=(1,), max_new_tokens=1, **settings)  # type: ignore[arg-type]


CASES = [
    (1.0, 1.0, 0),
    (0.6, 0.95, 0),
    (2.0, 0.5, 0),
    (1.0, 1.0, 5),
    (0.8, 0.7, 7),
    (1.0, 1e-9, 0),
    (1.0, 1.0, 1),
]


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), CASES)
@pytest.mark.parametrize("first_look", [4, 512])
def test_draws_follow_the_distribution(
    monkeypatch: pytest.MonkeyPatch, temperature: float, top_p: float, top_k: int, first_look: int
) -> None:
    monkeypatch.setattr(sampling, "FIRST_LOOK_IDS", first_look)
    logits = np.random.default_rng(3).normal(0, 2, IDS).astype(np.float32)
    draws, count = Random(5), 4000
    each = request(temperature=temperature, top_p=top_p, top_k=top_k)
    choices = sampling.choose(torch.tensor(logits).expand(count, -1), [each] * count, [draws] * count)
    frequencies = np.bincount([choice.token_id for choice in choices], minlength=IDS) / count
    probabilities = expected(logits, temperature, top_p, top_k)
    assert set(np.flatnonzero(frequencies)) <= set(np.flatnonzero(probabilities))
    # Six standard deviations of the largest
    assert np.abs(frequencies - probabilities).max() < 6 * np.sqrt(0.25 / count)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    assert all(abs(choice.logprob - exact[choice.token_id]) < 1e-5 for choice in choices)


@given(seed=st.integers(0, 2**62), others=st.lists(st.sampled_from(CASES), max_size=3))
def test_a_draw_does_not_depend_on_its_neighbours(seed: int, others: list[tuple[float, float, int]]) -> None:
    generator = torch.Generator().manual_seed(seed % 1000)
    logits_BV = torch.randn(1 + len(others), IDS, generator=generator)
    for case in CASES:
        settings = [case, *others]
        requests = [request(temperature=t, top_p=p, top_k=k) for t, p, k in settings]
        together = sampling.choose(logits_BV, requests, [Random(seed + row) for row in range(len(requests))])
        alone = sampling.choose(logits_BV[:1], requests[:1], [Random(seed)])
        assert together[0] == alone[0]


@given(number=st.floats(0, 1, exclude_max=True), weights=st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_the_inverse_picks_what_has_weight(number: float, weights: list[float]) -> None:
    if sum(weights) == 0:
        return
    [place] = sampling._invert(torch.tensor([weights], dtype=torch.float64), [number]).tolist()
    assert weights[place] > 0
    cumulated = np.cumsum(weights)
    assert cumulated[place] >= number * cumulated[-1]
    assert place == 0 or cumulated[place - 1] <= number * cumulated[-1]


@pytest.mark.parametrize("temperature", [1e-320, 5e-324, 1e-300, 1e-30])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_smallest_temperatures_take_the_likeliest(temperature: float, top_p: float) -> None:
    logits = torch.tensor([[1.0, 30.0, 2.0, 29.9], [-5.0, -4.0, -3e38, -4.5]])
    asked = [request(temperature=temperature, top_p=top_p)] * 2
    chosen = sampling.choose(logits, asked, [Random(1), Random(2)])
    assert [each.token_id for each in chosen] == [1, 1]


def test_greedy_and_the_likeliest() -> None:
    logits_BV = torch.tensor([[0.0, 3.0, 1.0, 3.0], [5.0, 0.0, 0.0, 0.0]])
    choices = sampling.choose(logits_BV, [request(num_logprobs=2), request()], [Random(0)] * 2)
    assert [choice.token_id for choice in choices] == [1, 0]
    exact = logits_BV.log_softmax(-1)
    assert [token for token, _ in choices[0].top] == [1, 3]
    assert choices[0].top[0][1] == pytest.approx(float(exact[0, 1]), abs=1e-6)
    assert choices[1].top == ()
