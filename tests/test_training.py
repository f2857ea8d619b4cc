# SPDX-License-Identifier: Apache-2.0
"""Training end to end, through the commands: tools, deepy.py on CPU ranks, and back to Hugging Face."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from megatron.monitoring import StepReport
from tests.runs import Done, Place, history_of, latest, make_place, run

pytestmark = pytest.mark.slow

STEPS, TOKENS_A_STEP = 8, 8 * 32
PNG = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run that went through, and its export."""

    done: Done
    save: Path
    hf: Path
    export: Done


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def trained(place: Place) -> Trained:
    """Two data parallel ranks, from a command line to an export, each in an interpreter of its own."""
    folder = place.folder / "trained"
    profile: dict[str, Any] = {
        "profile": True,
        "profile_step_start": 3,
        "profile_step_stop": 5,
        "profile_ranks": [1],
    }
    done = place.train(folder, is_cold=True, plots=True, tensorboard=True, **profile)
    assert done.status == 0, done.err
    export = run(
        folder, "tools/convert_checkpoint.py", "neox-to-hf", "--input", folder / "save",
        "--output", folder / "hf", "--verify",
    )  # fmt: skip
    return Trained(done, folder / "save", folder / "hf", export)


def test_every_step_is_recorded_with_every_number(trained: Trained) -> None:
    steps = history_of(trained.save).steps
    assert list(steps) == list(range(1, STEPS + 1))
    names = {field.name for field in dataclasses.fields(StepReport)}
    for iteration, step in steps.items():
        assert names <= set(step)
        assert step["tokens_seen"] == iteration * TOKENS_A_STEP
        assert step["train_iters"] == STEPS
        assert step["tokens_per_second"] == pytest.approx(2 * step["tokens_per_second_per_gpu"])
        assert step["tokens_per_second"] == pytest.approx(TOKENS_A_STEP / step["step_seconds"])
        assert step["mfu"] is None, "there is no peak to measure a CPU against"
        assert step["memory_bytes"] > 50e6
        assert 0 < step["grad_norm"] < 100
        assert 0 <= step["data_wait_seconds"] <= step["step_seconds"]
    assert steps[STEPS]["seconds_left"] == 0
    assert steps[STEPS]["loss"] < steps[1]["loss"] - 0.1


def test_the_learning_rate_is_the_schedule(trained: Trained) -> None:
    lowest = 0.033 * 1e-3
    cosine = [lowest + (1e-3 - lowest) * (1 + math.cos(math.pi * k / 6)) / 2 for k in range(1, 7)]
    rates = [step["lr"] for step in history_of(trained.save).steps.values()]
    assert rates == pytest.approx([0.5e-3, 1e-3, *cosine], rel=1e-12)


def test_each_source_is_validated_by_its_name_and_tested_at_the_end(trained: Trained) -> None:
    evaluations = history_of(trained.save).evaluations
    assert list(evaluations) == [("valid", 0), ("valid", 4), ("valid", 8), ("test", 8)]
    for (split, _), losses in evaluations.items():
        assert list(losses) == (["arxiv", "code"] if split == "valid" else ["held_code"])
    first, last = evaluations["valid", 0], evaluations["valid", 8]
    for source in ("arxiv", "code"):
        before, after = first[source], last[source]
        assert before is not None
        assert after is not None
        assert after < before - 0.05
    assert first["arxiv"] != first["code"]
    assert evaluations["test", 8]["held_code"] == last["code"], "the same text and the same weights"


def test_the_console_shows_each_line_once(trained: Trained) -> None:
    lines = trained.done.out.splitlines()
    steps = [line for line in lines if line.startswith("iteration ")]
    assert len(steps) == STEPS
    shape = (
        r"iteration 8/8 \| loss [\d.]+ \| lr 3\.300e-05 \| grad norm [\d.]+ "
        r"\| [\d,]+ tokens/s \([\d,]+/rank\) \| MFU – \| \d+ MiB \| 2\.05 k tokens seen \| 0 s left"
        r"( \| waits for data: [\d.]+ s a step)?( \| slow: .*)?"  # on a busy machine
    )
    assert re.fullmatch(shape, steps[-1])
    assert [line[:25] for line in lines if "loss per source" in line] == [
        "validation at iteration 0", "validation at iteration 4", "validation at iteration 8",
        "test at iteration 8 | los",
    ]  # fmt: skip
    said = trained.done.err
    assert "gloo: TP 1 x PP 1 x DP 2" in said
    assert "attention: cpu" in said


def test_plots_and_tensorboard_files_are_there(trained: Trained) -> None:
    logs = trained.save / "logs"
    for name in ("loss.png", "learning_rate.png"):
        assert (logs / name).read_bytes()[:8] == PNG
        assert (logs / name).stat().st_size > 10_000
    assert list((logs / "tensorboard").glob("events.out.tfevents.*"))


def test_two_steps_of_a_rank_are_traced_with_the_parts_of_a_step(trained: Trained) -> None:
    [path] = (trained.save / "logs" / "traces").iterdir()
    assert path.name == "iterations3-4.rank1.json.gz"
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    names = Counter(event["name"] for event in events if event.get("cat") == "user_annotation")
    micro_batches = 2 * TOKENS_A_STEP // (2 * 32) // 2  # in two steps, of 2 sequences, on one of two ranks
    parts = {"forward": micro_batches, "backward": micro_batches, "data": 2, "reduction of gradients": 2}
    assert {**parts, "optimizer": 2, "iteration 3": 1, "iteration 4": 1}.items() <= names.items()
    assert any(event["name"].startswith("aten::") for event in events)


def test_the_way_to_the_first_step_and_the_cost_of_saves_are_told(trained: Trained) -> None:
    history = history_of(trained.save)
    [startup] = [event for event in history.events if event["kind"] == "startup"]
    phases = {name: value for name, value in startup.items() if name not in ("kind", "iteration", "time")}
    total = phases.pop("seconds")
    assert sum(phases.values()) == pytest.approx(total, abs=0.01)
    assert {"launcher", "imports", "data", "model", "loading", "first evaluation", "first step"} <= set(
        phases
    )
    assert "startup: iteration 1, seconds " in trained.done.out
    saves = [event for event in history.events if event["kind"] == "checkpoint"]
    assert [event["iteration"] for event in saves] == [4, 8]
    assert all(0 < event["blocked_seconds"] <= event["seconds"] for event in saves)


def test_the_contraction_is_said_stored_and_exported(trained: Trained, place: Place) -> None:
    assert "rotary period contracted: base 100,000 in the checkpoint, 10,000 in this run" in trained.done.err
    assert latest(trained.save) == "global_step8"
    for iteration in (4, 8):
        record = json.loads((trained.save / f"global_step{iteration}" / "checkpoint.json").read_text())
        assert record["rotary_history"] == [{"iteration": 0, "from": 100000.0, "to": 10000.0}]
        assert record["model"]["rotary_emb_base"] == 10000.0
        assert record["iteration"] == iteration
        assert record["tokens_seen"] == iteration * TOKENS_A_STEP
    bases = [
        json.loads((folder / "config.json").read_text())["rope_parameters"]["rope_theta"]
        for folder in (place.folder / "hf", trained.hf)
    ]
    assert bases == [100000.0, 10000.0]


def test_the_export_computes_what_was_trained(trained: Trained) -> None:
    assert trained.export.status == 0, trained.export.err
    assert "verify: equal" in trained.export.out
    names = {path.name for path in trained.hf.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= names


def test_going_on_keeps_the_history_and_adds_nothing_to_it(trained: Trained, place: Place) -> None:
    """The same folder with more iterations: the change of base was at the first start, not at this one."""
    done = place.train(trained.save.parent, train_iters=10)
    assert done.status == 0, done.err
    assert "loaded weights and optimizer" in done.err
    assert "rotary base 10,000, as in the checkpoint" in done.err
    record = json.loads((trained.save / "global_step10" / "checkpoint.json").read_text())
    assert record["rotary_history"] == [{"iteration": 0, "from": 100000.0, "to": 10000.0}]


def test_tensor_and_pipeline_parallel_ranks_compute_the_same(trained: Trained, place: Place) -> None:
    """TP 2 x PP 2 against DP 2; measured: the losses of 8 steps differ by at most 4.8e-7."""
    folder = place.folder / "four"
    cut: dict[str, Any] = {
        "model_parallel_size": 2,
        "pipe_parallel_size": 2,
        "train_micro_batch_size_per_gpu": 4,
    }
    done = place.train(folder, ranks=4, **cut)
    assert done.status == 0, done.err
    assert "TP 2 x PP 2 x DP 1" in done.err
    ours, theirs = history_of(folder / "save"), history_of(trained.save)
    for iteration, step in ours.steps.items():
        assert step["loss"] == pytest.approx(theirs.steps[iteration]["loss"], abs=5e-5)
    assert ours.evaluations["valid", 8]["arxiv"] == pytest.approx(
        theirs.evaluations["valid", 8]["arxiv"], abs=5e-5
    )


def test_bfloat16_and_random_weights(place: Place) -> None:
    """A run without a checkpoint to start from: drawn weights, in the precision of the GPUs."""
    folder = place.folder / "scratch"
    arguments = place.arguments(folder, ranks=1, precision="bfloat16", do_test=False)
    done = run(folder, *arguments, "--set", "load=null", "--set", "finetune=false")
    assert done.status == 0, done.err
    assert "weights: drawn at random, no checkpoint given" in done.err
    history = history_of(folder / "save")
    assert history.steps[1]["loss"] == pytest.approx(math.log(256), abs=0.1), "nothing is known yet"
    assert history.steps[STEPS]["loss"] < history.steps[1]["loss"]
    assert ("test", STEPS) not in history.evaluations
