# SPDX-License-Identifier: Apache-2.0
"""What is concluded from the facts of all ranks, where it can be said without a run."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from megatron.trainer.diagnosis import Diagnosis, RankFacts, SampleFacts, conclude

GOOD = SampleFacts(0, loss=5.5, gradient_is_finite=True, first_bad=None, bad_gradient=None)
BAD_GRADIENT = replace(GOOD, gradient_is_finite=False, bad_gradient="decoder.layers.1.mlp.linear_fc2.weight")
BAD_LOSS = replace(BAD_GRADIENT, loss=math.nan)
BAD_OUTPUT = replace(GOOD, first_bad=(0, 3, "decoder.layers.0.mlp"))


def facts(*samples: SampleFacts, gradient_norm: float = 1.0) -> list[RankFacts]:
    """Of one rank, which computed these samples."""
    numbered = [replace(sample, sample_id=place) for place, sample in enumerate(samples)]
    is_good = all(sample.gradient_is_finite for sample in samples)
    layers = {"decoder.layers.0": (1e36, gradient_norm)}
    crossed = next((sample for sample in numbered if sample.is_bad), None)
    return [RankFacts(0, 0, 0, [], [], True, is_good, 1.25e35, numbered, crossed, layers)]


@pytest.mark.parametrize(("samples", "kind", "words"), [
    ([BAD_GRADIENT] * 2, "weights", "each is finite, the largest 1.25e+35, and with them all 2 samples give "
     "a finite loss, and a gradient that is not finite, first of decoder.layers.1.mlp.linear_fc2.weight"),
    ([BAD_LOSS] * 2, "weights", "all 2 samples give a loss that is not finite"),
    ([GOOD, BAD_LOSS], "data", "sample(s) 1 give a loss that is not finite"),
    ([GOOD, BAD_OUTPUT], "data", "a finite loss, and an output of decoder.layers.0.mlp that is not finite"),
])  # fmt: skip
def test_the_cause_says_what_is_not_finite(samples: list[SampleFacts], kind: str, words: str) -> None:
    cause = conclude(facts(*samples))
    assert cause.kind == kind
    assert words in cause.text


def test_a_finite_gradient_whose_norm_overflows_is_of_the_weights() -> None:
    cause = conclude(facts(GOOD, GOOD, gradient_norm=3e25))
    assert (cause.kind, cause.is_hopeless) == ("weights", True)
    assert "the norm of that of decoder.layers.0 is 3e+25" in cause.text
    assert conclude(facts(GOOD, GOOD)).kind == "unknown"


def test_the_report_says_of_each_sample_whether_its_gradient_was_finite() -> None:
    assert Diagnosis(conclude([]), facts(GOOD, BAD_GRADIENT)).good_gradients() == {0: True, 1: False}
