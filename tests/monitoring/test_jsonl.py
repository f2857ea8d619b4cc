# SPDX-License-Identifier: Apache-2.0
"""The run's record over kills and resumes, and what its reader makes of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.monitoring import EvalReport, Monitor
from megatron.monitoring.jsonl import JsonlSink, read_history
from megatron.neox_arguments.errors import UserError
from tests.monitoring.reports import step


def attempt(path: Path, first: int, last: int, loss: float) -> None:
    """One start of a run, from `first`: a line an iteration, an evaluation every second."""
    sink = JsonlSink(path)
    sink.event("start", {"iteration": first})
    for iteration in range(first + 1, last + 1):
        sink.step(step(iteration, loss=loss))
        if iteration % 2 == 0:
            sink.evaluation(EvalReport(iteration, "valid", {"a": loss, "b": loss + 1}))
    sink.close()


def test_every_line_is_whole_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.step(step(1))
    record = json.loads(path.read_text())  # not closed, not flushed
    assert (record["kind"], record["iteration"], record["loss"]) == ("step", 1, 1.23456)
    assert {
        "lr",
        "grad_norm",
        "tokens_per_second",
        "mfu",
        "memory_bytes",
        "tokens_seen",
        "time",
    } <= record.keys()


def test_a_resume_appends_and_its_reader_sees_each_iteration_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    attempt(path, 0, 8, loss=3.0)
    attempt(path, 4, 6, loss=2.0)  # from the checkpoint at 4; it ends before the first attempt did
    assert len(path.read_text().splitlines()) == 8 + 4 + 1 + 2 + 1 + 1
    history = read_history(path)
    assert {iteration: record["loss"] for iteration, record in history.steps.items()} == {
        1: 3.0, 2: 3.0, 3: 3.0, 4: 3.0, 5: 2.0, 6: 2.0,
    }  # fmt: skip
    assert history.losses_by_source("valid") == {
        "a": [(2, 3.0), (4, 3.0), (6, 2.0)],
        "b": [(2, 4.0), (4, 4.0), (6, 3.0)],
    }
    assert [event["iteration"] for event in history.events] == [0, 4]


def test_a_line_cut_short_by_a_kill_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    attempt(path, 0, 3, loss=3.0)
    path.write_bytes(path.read_bytes()[:-20])
    attempt(path, 2, 4, loss=2.0)
    history = read_history(path)
    assert sorted(history.steps) == [1, 2, 3, 4]
    assert history.steps[3]["loss"] == 2.0
    assert [event["iteration"] for event in history.events] == [0, 2]  # the line after the torn one is whole
    assert history.broken_lines == 1


def test_numbers_that_are_not_finite_leave_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.step(step(1, loss=math.nan, grad_norm=math.inf))
    sink.evaluation(EvalReport(1, "valid", {"a": math.nan, "b": 1.0}))
    sink.close()
    first = json.loads(path.read_text().splitlines()[0], parse_constant=lambda name: pytest.fail(name))
    assert (first["loss"], first["grad_norm"]) == (None, None)
    assert read_history(path).losses_by_source("valid") == {"b": [(1, 1.0)]}


def test_events_of_any_type_are_written(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.event("checkpoint", {"iteration": 5, "path": tmp_path, "parts": (1, math.inf)})
    event = read_history(tmp_path / "metrics.jsonl").events[0]
    assert (event["kind"], event["path"], event["parts"]) == ("checkpoint", str(tmp_path), [1, None])


def test_a_full_disk_is_said_once_and_the_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full on this system")
    sink = JsonlSink(Path("/dev/full"))
    monitor = Monitor([sink])
    monitor.step(step(1))
    monitor.step(step(2))
    warnings = capsys.readouterr().err
    assert warnings.count("No space left on device") == 1
    assert "training goes on" in warnings


def test_a_folder_that_cannot_be_written_and_a_record_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="log_dir=.*--set log_dir="):
        JsonlSink(tmp_path / "file" / "logs" / "metrics.jsonl")
    with pytest.raises(UserError, match="No such file"):
        read_history(tmp_path / "none.jsonl")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(
    st.binary(max_size=30),
    st.dictionaries(st.sampled_from(["kind", "iteration", "losses", "split"]), st.one_of(
        st.none(), st.integers(), st.sampled_from(["step", "evaluation", "start"]), st.lists(st.integers())
    )).map(lambda record: json.dumps(record).encode()),
), max_size=8))  # fmt: skip
def test_whatever_lies_in_the_file_the_reader_counts_it_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("record") / "metrics.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    with open(path, "ab") as file:
        file.write(json.dumps({"kind": "step", "iteration": 10**9}).encode() + b"\n")
    assert 10**9 in read_history(path).steps
