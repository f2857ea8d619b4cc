# SPDX-License-Identifier: Apache-2.0
"""Which steps a trace has, what is in it, and that it never ends a run."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megatron.trainer.trace import Trace, trace_path

FIRST, END = 4, 6


def run_steps(path: Path, steps: Sequence[int], config: SimpleNamespace | None = None) -> list[str]:
    """Steps of a run with a trace of FIRST to END - 1; what was said."""
    said: list[str] = []
    engine = config or SimpleNamespace(timers=None)
    trace = Trace(path, FIRST, END, [engine], said.append)
    for step in steps:
        trace.begins(step)
        if engine.timers is not None:
            engine.timers("forward-compute", log_level=2).start()
        torch.ones(3).exp()
        if engine.timers is not None:
            engine.timers("forward-compute").stop()
        with trace.range("optimizer"):
            torch.ones(3).sqrt()
        trace.ends(step)
    trace.close()
    assert engine.timers is None, "the engine's hook is gone with the trace"
    return said


def names_in(path: Path) -> list[str]:
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    return [event["name"] for event in events if event.get("ph") == "X"]


@pytest.mark.parametrize(("steps", "traced"), [
    (range(1, 9), [4, 5]),
    (range(4, 9), [4, 5]),  # resumed just there, without a step to warm up in
    (range(5, 9), [5]),
    (range(1, 5), [4]),  # asked to stop in between
], ids=["whole", "from its first", "resumed in it", "stopped in it"])  # fmt: skip
def test_it_has_the_steps_asked_for_as_far_as_they_were_done(
    tmp_path: Path, steps: range, traced: list[int]
) -> None:
    path = trace_path(tmp_path, FIRST, END, rank=3)
    said = run_steps(path, list(steps))
    assert path == tmp_path / "traces" / "iterations4-5.rank3.json.gz"
    assert list(path.parent.iterdir()) == [path]
    names = names_in(path)
    assert [f"iteration {step}" for step in traced] == [n for n in names if n.startswith("iteration")]
    for name in ("forward", "optimizer", "aten::exp", "aten::sqrt"):
        assert names.count(name) == len(traced)
    assert said == [f"trace of {len(traced)} iteration(s): {path}; open it at ui.perfetto.dev"]


@pytest.mark.parametrize("steps", [range(1, 4), range(6, 9)], ids=["ended before", "resumed after"])
def test_without_such_a_step_there_is_no_file(tmp_path: Path, steps: range) -> None:
    path = tmp_path / "trace.json.gz"
    said = run_steps(path, list(steps))
    assert not path.exists()
    expected = "note: profile_step_start=4: no such iteration was done, so no trace"
    assert said == ([expected] if 3 in steps else [])


def test_a_folder_that_cannot_be_made_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "traces").write_text("a file is in the way")
    [said] = run_steps(trace_path(tmp_path, FIRST, END, 0), list(range(1, 9)))
    assert said.startswith("warning: ")
    assert said.endswith("; training goes on")


@pytest.mark.gpu
def test_on_a_gpu_it_has_the_kernels(tmp_path: Path) -> None:
    path = tmp_path / "trace.json.gz"
    trace = Trace(path, 2, 3, [], print)
    for step in (1, 2):
        trace.begins(step)
        with trace.range("forward"):
            torch.ones(256, 256, device="cuda") @ torch.ones(256, 256, device="cuda")
        torch.cuda.synchronize()
        trace.ends(step)
    with gzip.open(path) as file:
        kinds = {event.get("cat") for event in json.load(file)["traceEvents"]}
    assert "kernel" in kinds
