# SPDX-License-Identifier: Apache-2.0
"""What a run spends beside its steps, counted as its own loop would: one iteration after the other."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.neox_arguments.config import RunConfig
from megatron.planning.length import Length, evaluations_of, held_out_sources, length_of
from tests.planning.test_plan import cluster, llemma

CFG_7B = llemma("7b")


def run_of(steps: int = 1000, **changes: dict[str, Any]) -> RunConfig:
    """Llemma 7B's configuration with other numbers, by concern; not checked as a whole."""
    changes = {"schedule": {"train_iters": steps}, **changes}
    return CFG_7B.model_copy(
        update={
            concern: getattr(CFG_7B, concern).model_copy(update=keys) for concern, keys in changes.items()
        }
    )


def length(cfg: RunConfig) -> Length:
    return length_of(cfg, cluster(), step_seconds=10.0, forward_seconds=3.0, checkpoint_bytes=10**11)


@given(steps=st.integers(1, 200), interval=st.integers(1, 250), at_start=st.booleans())
def test_evaluations_are_those_of_the_loop(steps: int, interval: int, at_start: bool) -> None:
    cfg = run_of(steps, validation={"eval_interval": interval, "eval_at_start": at_start})
    counted = int(at_start) + sum(step % interval == 0 or step == steps for step in range(1, steps + 1))
    assert evaluations_of(cfg) == counted


@pytest.mark.parametrize(("data", "validation", "sources"), [
    ({}, {}, (3, 3)),
    ({}, {"do_test": False}, (3, 0)),
    ({}, {"eval_iters": 0}, (0, 0)),
    ({"valid_data_weights": (1.0, 0.0, 1.0), "test_data_weights": (0.0, 0.0, 0.0)}, {}, (2, 0)),
    ({"data_path": "one", "split": "969,30,1"}, {}, (1, 1)),
    ({"data_path": "one", "split": "9/1"}, {}, (1, 0)),
    ({"data_path": "one", "split": "9,0,1"}, {}, (0, 1)),
])  # fmt: skip
def test_what_is_evaluated(
    data: dict[str, Any], validation: dict[str, Any], sources: tuple[int, int]
) -> None:
    cfg = run_of(1000, data=data, validation={"eval_interval": 300, "eval_iters": 10, **validation})
    assert held_out_sources(cfg) == sources
    # Before the first step, after 300, 600, 900 and 1,000; the test sources once.
    found = length(cfg)
    batches = (5 * sources[0] + sources[1]) * cfg.validation.eval_iters
    assert (found.evaluated_batches, found.evaluating_seconds) == (batches, 3.0 * batches)
    assert found.evaluations == (5 if sources[0] else 0)
