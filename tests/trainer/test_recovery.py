# SPDX-License-Identifier: Apache-2.0
"""Runs into which faults are put: they finish, the report names step and cause, and nothing bad is saved.

Losses are compared with those of runs in which the updates of the same steps were left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron.launcher.frozen import freeze
from megatron.neox_arguments.loader import load_config
from tests.runs import Place, call_on_ranks, history_of, latest, make_place
from tests.trainer.injected import trained

pytestmark = pytest.mark.slow

STEPS = 16


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


def train(place: Place, name: str, *faults: tuple[Any, ...], ranks: int = 2, **changes: Any) -> Path:
    """Trains on `ranks` ranks with faults; returns the save folder."""
    statuses, save = attempt(place, name, *faults, ranks=ranks, **changes)
    assert statuses == [0] * ranks, said(place, name)
    return save


def attempt(
    place: Place, name: str, *faults: tuple[Any, ...], ranks: int = 2, **changes: Any
) -> tuple[list[int], Path]:
    """The exit statuses of `ranks` ranks, and the save folder."""
    folder = place.folder / name
    changes = {"save": str(folder / "save"), "train_iters": STEPS, "eval_interval": 8, **changes}
    config = place.write(folder / "run.yml", **changes)
    cfg, _ = load_config([place.model_yaml, config], overrides=[f"cpu_ranks={ranks}"])
    return call_on_ranks(folder, trained, ranks, str(freeze(cfg).path), faults), folder / "save"


def said(place: Place, name: str) -> str:
    return (place.folder / name / "rank0" / "err.txt").read_text()


def losses(save: Path) -> dict[int, float | None]:
    return {iteration: step["loss"] for iteration, step in history_of(save).steps.items()}


def report(save: Path, iteration: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (save / "logs" / "recovery" / f"iteration{iteration}.json").read_text()
    )
    return found


def events(save: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in history_of(save).events if event["kind"] == kind]


def without(found: dict[int, Any], *iterations: int) -> dict[int, Any]:
    return {iteration: loss for iteration, loss in found.items() if iteration not in iterations}


LAYOUTS: dict[str, dict[str, Any]] = {
    "DP 2": {},
    "DP 2, overlapped": {"overlap_grad_reduce": True, "reduce_bucket_size": 20_000},
    "TP 2": {"model_parallel_size": 2},
    "PP 2": {"pipe_parallel_size": 2},
}


@pytest.fixture(scope="module")
def reference(place: Place) -> dict[str, dict[int, float | None]]:
    """Losses by layout where the update of step 6 is left out."""
    return {
        name: losses(train(place, f"reference {name}", ("left_out", 6), **layout))
        for name, layout in LAYOUTS.items()
    }


@pytest.mark.parametrize(("layout", "fault", "cause"), [
    ("DP 2", ("bad_loss_once", 6, 1), "a fault of the moment on rank 1 only"),
    ("DP 2", ("bad_gradient_once", 6, 1), "a fault of the moment on rank 1 only"),
    ("DP 2", ("bad_sample", 45), "the data: finite weights and sample(s) 45"),
    ("DP 2, overlapped", ("bad_sample", 45), "the data: finite weights and sample(s) 45"),
    ("TP 2", ("bad_gradient_once", 6, 1), "a fault of the moment on rank 1 only"),
    ("PP 2", ("bad_loss_once", 6, 1), "a fault of the moment on rank 1 only"),
])  # fmt: skip
def test_a_step_that_is_not_finite_is_skipped(
    place: Place,
    reference: dict[str, dict[int, float | None]],
    layout: str,
    fault: tuple[Any, ...],
    cause: str,
) -> None:
    save = train(place, f"{layout} {fault[0]}", fault, **LAYOUTS[layout])
    assert losses(save)[6] is None or fault[0] == "bad_gradient_once"
    assert without(losses(save), 6) == without(reference[layout], 6)
    [event] = events(save, "skipped")
    assert event["iteration"] == 6
    found = report(save, 6)
    assert found["iteration"] == 6
    assert found["action"] == "skipped"
    assert cause in found["cause"]["text"]
    assert [sample["id"] for sample in found["samples"]] == list(range(40, 48))
    assert {sample["source"] for sample in found["samples"]} == {"arxiv", "code"}
    assert {layer["layer"] for layer in found["layers"]} >= {"decoder.layers.0", "decoder.layers.1"}
    assert latest(save) == f"global_step{STEPS}"


@pytest.mark.parametrize(("layout", "where"), [
    ("DP 2", "weights are not finite on rank 1 only: decoder.layers.0.mlp.linear_fc2.weight"),
    ("TP 2", "weights are not finite on rank 1 only: decoder.layers.0.mlp.linear_fc2.weight"),
    ("PP 2", "weights are not finite on rank 1 only: decoder.layers.1.mlp.linear_fc2.weight"),
])  # fmt: skip
def test_spoilt_weights_are_those_of_the_last_checkpoint_again(place: Place, layout: str, where: str) -> None:
    """Steps 5 and 6 are lost: the run goes on from the weights of step 4 with the data of step 7."""
    save = train(place, f"weights {layout}", ("bad_weight", 6, 1), **LAYOUTS[layout])
    left_out = train(place, f"reference weights {layout}", ("left_out", 5, 6), **LAYOUTS[layout])
    assert without(losses(save), 5, 6) == without(losses(left_out), 5, 6)
    found = report(save, 6)
    assert (found["action"], found["iteration"]) == ("rollback", 6)
    assert found["cause"]["kind"] == "weights"
    assert found["cause"]["text"] == where
    assert found["first_not_finite"]["rank"] == 1
    bad = [layer["layer"] for layer in found["layers"] if 1 in layer["not_finite_on_ranks"]]
    assert where.partition(": ")[2].startswith(tuple(bad)), bad
    assert found["rollback"] == {
        "iteration": 6, "back_to": 4, "first_sequence": 32, "end_sequence": 48,
        "why": "loss=nan at iteration 6: must be finite",
    }  # fmt: skip
    assert "sequences 32 to 47 are left out (rollback 1 of at most 5)" in said(place, f"weights {layout}")
    assert ledger_of(save)["rollbacks"] == [found["rollback"]]


def ledger_of(save: Path) -> dict[str, Any]:
    record = json.loads((save / latest(save) / "checkpoint.json").read_text())
    ledger: dict[str, Any] = record["recovery"]
    return ledger


def test_after_too_many_skipped_steps_the_run_goes_back_and_a_resume_leaves_out_the_same(
    place: Place,
) -> None:
    """Samples of steps 10, 11 and 12 are bad; two may be skipped, so the third goes back, to step 8."""
    fault = ("bad_sample", 75, 83, 91)
    changes = {"max_skipped_steps": 2, "checkpoint_factor": 4}
    whole = train(place, "row", fault, **changes)
    assert [event["iteration"] for event in events(whole, "skipped")] == [10, 11]
    [rollback] = events(whole, "rollback")
    assert (rollback["iteration"], rollback["back_to"], rollback["skipped_steps"]) == (12, 8, 3)
    found = report(whole, 12)
    assert found["cause"]["kind"] == "data"
    assert found["cause"]["samples"] == [91]
    assert [report(whole, at)["cause"]["samples"] for at in (10, 11)] == [[75], [83]]
    # The same in two parts: a run that ends where the other goes back, and a resume.
    train(place, "parts", fault, **changes, train_iters=12, lr_decay_iters=STEPS)
    parts = train(place, "parts", fault, **changes, lr_decay_iters=STEPS)
    assert losses(parts) == losses(whole)
    assert ledger_of(parts) == ledger_of(whole)
    assert ledger_of(parts)["skipped_steps"] == 3


def test_a_spike_goes_back_over_its_steps(place: Place) -> None:
    changes: dict[str, Any] = {"loss_spike_window": 4, "loss_spike_steps": 2, "loss_spike_ratio": 4.0}
    save = train(place, "spike", ("high_loss", 10, 11), **changes)
    assert [event["iteration"] for event in events(save, "spike")] == [10]
    [rollback] = events(save, "rollback")
    assert (rollback["iteration"], rollback["back_to"]) == (11, 8)
    assert "times the running median" in report(save, 11)["trouble"]
    left_out = train(place, "reference spike", ("left_out", 9, 10, 11))
    assert without(losses(save), 10, 11) == without(losses(left_out), 10, 11)
    calm = train(place, "no watch", ("high_loss", 10, 11), **changes | {"loss_spike_ratio": 0})
    assert not events(calm, "rollback")


def test_a_fault_that_stays_ends_the_run_with_a_report(place: Place) -> None:
    """Rank 1's attention is broken for good from step 6 on: each time the run goes back further."""
    statuses, save = attempt(
        place, "broken", ("bad_module", 6, 1), max_rollbacks=2, checkpoint_factor=2, eval_interval=100
    )
    assert statuses == [2, 2]
    assert [event["back_to"] for event in events(save, "rollback")] == [4, 2]
    error = said(place, "broken")
    path = save / "logs" / "recovery" / "iteration8.json"
    assert (
        "loss=nan at iteration 8: must be finite, so the run stops and saves nothing (rank 1 only: " in error
    )
    assert f"the report is {path}; the last good checkpoint is {save}/global_step6" in error
    found = json.loads(path.read_text())
    assert found["action"] == "given up"
    assert found["cause"]["kind"] == "rank"
    assert found["cause"]["ranks"] == [1]
    assert found["first_not_finite"] == {
        "rank": 1, "of": "output", "name": "decoder.layers.0.self_attention.core_attention",
    }  # fmt: skip


def test_a_run_that_comes_no_further_stops(place: Place) -> None:
    """A learning rate with which every second step fails: there are no weights left to try again."""
    train(place, "no way", train_iters=2, checkpoint_factor=2, lr_decay_iters=STEPS, ranks=1)
    statuses, save = attempt(
        place, "no way", optimizer={"type": "Adam", "params": {"lr": 1e35}}, max_rollbacks=1000,
        warmup_iters=0, max_skipped_steps=0, eval_interval=100, ranks=1,
    )  # fmt: skip
    assert statuses == [2]
    rollbacks = events(save, "rollback")
    assert [event["back_to"] for event in rollbacks] == [2, 2, 2]
    assert "3 times it went back to the weights of iteration 2, for no good" in said(place, "no way")
    assert (
        f"are those of iteration 2 again (from {save}/global_step{rollbacks[0]['iteration']}), and"
    ) in said(place, "no way")
    found = report(save, 10)
    assert "each is finite, the largest " in found["cause"]["text"]
    assert "give a finite loss, and a gradient that is not finite, first of " in found["cause"]["text"]
    assert [sample["gradient_is_finite"] for sample in found["samples"]] == [False] * 8
    # Of 1e33 to 1e35, whose squares float32 does not hold.
    assert all(isinstance(layer["weight_norm"], float) for layer in found["layers"])
    assert all(step["tokens_per_second"] < 1e8 for step in history_of(save).steps.values())


def test_a_broken_tensor_parallel_rank_is_named(place: Place) -> None:
    changes = {"max_rollbacks": 0, "max_skipped_steps": 0, "model_parallel_size": 2}
    statuses, save = attempt(place, "broken TP", ("bad_module", 6, 1), **changes)
    assert statuses == [2, 2]
    cause = report(save, 6)["cause"]
    assert (cause["kind"], cause["ranks"]) == ("rank", [1])
    assert latest(save) == "global_step4"


def test_nothing_is_saved_while_weights_are_not_finite(place: Place) -> None:
    """The last update is good, and a weight is lost before the run ends: the end is that of step 12."""
    save = train(place, "end", ("bad_weight_after", STEPS), eval_interval=100, valid_data_paths=None,
                 valid_data_names=None)  # fmt: skip
    [rollback] = events(save, "rollback")
    assert (rollback["what"], rollback["iteration"], rollback["back_to"]) == ("largest weight", STEPS, 12)
    record = json.loads((save / f"global_step{STEPS}" / "checkpoint.json").read_text())
    assert record["sequences_seen"] == STEPS * 8
    save = train(place, "between", ("bad_weight_after", 8), eval_interval=100)
    assert [event["iteration"] for event in events(save, "checkpoint left out")] == [8]


def test_a_slow_rank_is_named_in_the_log(place: Place) -> None:
    save = train(place, "slow", ("slow", 1, 0.1), train_iters=6, log_interval=2, eval_at_start=False)
    steps = history_of(save).steps
    assert [steps[at]["slowest_rank"] for at in (4, 6)] == [1, 1]
    assert steps[6]["slowest_rank_ratio"] > 1.5
    assert "| slow: rank 1 (" in (place.folder / "slow" / "rank0" / "out.txt").read_text()
