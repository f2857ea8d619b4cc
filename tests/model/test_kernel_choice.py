# SPDX-License-Identifier: Apache-2.0
"""Kernels chosen by measurement: stand-ins that take as long as a clock of ours says."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron.model.kernel_choice import (
    Cache,
    Candidate,
    Choice,
    Measured,
    Task,
    Unfit,
    cache_folder,
    choose,
    question_of,
    relative_difference,
)
from megatron.neox_arguments.errors import UserError
from tests.ranks import run_ranks

CPU = torch.device("cpu")
Scale = Callable[[torch.Tensor], torch.Tensor]


class FakeClock:
    """Time passes where a stand-in says so."""

    def __init__(self) -> None:
        self.now_microseconds = 0
        self.measured = 0

    def __call__(self, step: Callable[[], object]) -> float:
        before = self.now_microseconds
        step()
        self.measured += 1
        return (self.now_microseconds - before) / 1e6


def doubling(clock: FakeClock, microseconds: int, factor: float = 2.0, fails_at: int | None = None) -> Scale:
    """A stand-in for a kernel: 2x, in so long; it may be wrong, or fail on inputs of some length."""

    def call(x: torch.Tensor) -> torch.Tensor:
        clock.now_microseconds += microseconds
        if x.numel() == fails_at:
            raise RuntimeError("too long for me\nand more that nobody reads")
        return x * factor

    return call


def missing() -> Scale:
    raise ImportError("No module named 'fancy'")


def unfit() -> Scale:
    raise Unfit("is for another GPU")


TASK: Task[Scale] = Task(
    kind="doubling",
    shape={"length": 100},
    inputs=lambda is_small: [torch.arange(1.0, 5 if is_small else 101, requires_grad=True)],
    call=lambda kernel, inputs: [kernel(inputs[0])],
    reference=lambda x: x * 2,
)


def candidates(clock: FakeClock) -> list[Candidate[Scale]]:
    kernels: dict[str, Callable[[], Scale]] = {
        "slow": lambda: doubling(clock, 3000),
        "fast": lambda: doubling(clock, 1000),
        "middle": lambda: doubling(clock, 2000),
        "missing": missing,
        "unfit": unfit,
        "wrong": lambda: doubling(clock, 1, factor=2.2),
        "nan": lambda: doubling(clock, 1, factor=float("nan")),
        "short": lambda: doubling(clock, 1, fails_at=100),
    }
    return [Candidate(name, load) for name, load in kernels.items()]


def ask(
    clock: FakeClock,
    cache: Cache,
    wanted: str = "auto",
    among: Sequence[Candidate[Scale]] | None = None,
    task: Task[Scale] = TASK,
) -> Choice[Scale]:
    return choose(
        task,
        candidates(clock) if among is None else among,
        wanted,
        CPU,
        key="doubler",
        clock=clock,
        cache=cache,
    )


def no_log(line: str) -> None:
    raise AssertionError(line)


def test_the_fastest_that_works_is_taken_and_all_is_said(tmp_path: Path) -> None:
    clock = FakeClock()
    choice = ask(clock, Cache(tmp_path, no_log))
    assert choice.name == "fast"
    assert choice.describe() == (
        "doubling: fast (the fastest forward and backward, measured now: fast 1 ms, middle 2 ms, slow 3 ms, "
        "missing: not installed (No module named 'fancy'), unfit: is for another GPU, "
        "wrong: its results are 10.0% from the formula's, nan: its results are nan% from the formula's, "
        "short: too long for me)"
    )
    assert choice.kernel(torch.tensor(3.0)) == 6
    assert clock.measured == 3


def test_times_are_remembered_until_the_question_changes(tmp_path: Path) -> None:
    clock, cache = FakeClock(), Cache(tmp_path, no_log)
    ask(clock, cache)
    again = ask(clock, cache)
    assert clock.measured == 3, "the second time nothing is measured"
    assert again.name == "fast"
    assert "as measured before: fast 1 ms" in again.reason
    assert "unfit: is for another GPU" in again.reason
    longer = Task("doubling", {"length": 101}, TASK.inputs, TASK.call, TASK.reference)
    ask(clock, cache, task=longer)
    assert clock.measured == 6, "another shape"
    with_package = [*candidates(clock), Candidate("new", lambda: doubling(clock, 10**6), ("numpy",))]
    assert ask(clock, cache, among=with_package).name == "fast"
    assert clock.measured == 10, "another kernel is there"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_question_has_versions_and_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    among = [Candidate("a", missing, ("numpy", "no-such-package"))]
    question = question_of(TASK, among, CPU)
    assert question["versions"]["no-such-package"] is None
    assert question["versions"]["numpy"]
    assert question["versions"]["torch"] == torch.__version__
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert question_of(TASK, among, torch.device("cuda"))["gpu"] == "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize("damage", [
    "", "{", "[]", "null", '"text"', '{"question": 1}',
    '{"question": {}, "seconds": {"fast": 1}, "passed_over": {}}',
])  # fmt: skip
def test_a_damaged_file_is_said_and_measured_again(tmp_path: Path, damage: str) -> None:
    clock, said = FakeClock(), list[str]()
    ask(clock, Cache(tmp_path, no_log))
    [path] = tmp_path.iterdir()
    good = path.read_text()
    path.write_text(damage)
    assert ask(clock, Cache(tmp_path, said.append)).name == "fast"
    assert clock.measured == 6
    assert len(said) == 1
    assert said[0].startswith(f"{path}: damaged (")
    assert json.loads(path.read_text()) == json.loads(good), "and written anew"


@pytest.mark.parametrize("change", [
    {"seconds": {}}, {"seconds": {"fast": -1}}, {"seconds": {"fast": "soon"}}, {"seconds": [1]},
    {"passed_over": 3},
    {"seconds": {"fast": float("nan")}},
])  # fmt: skip
def test_values_that_no_clock_gives_are_damage(tmp_path: Path, change: dict[str, Any]) -> None:
    said: list[str] = []
    question = {"kind": "doubling", "gpu": "CPU"}
    cache = Cache(tmp_path, said.append)
    cache.write(question, Measured({"fast": 1.0}, {"slow": "is slow"}))
    assert cache.read(question) == Measured({"fast": 1.0}, {"slow": "is slow"})
    [path] = tmp_path.iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert cache.read(question) is None
    assert len(said) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_read_without_a_crash(tmp_path: Path, data: st.DataObject) -> None:
    cache, question = Cache(tmp_path, lambda line: None), {"kind": "doubling", "gpu": "CPU"}
    cache.write(question, Measured({"fast": 1e-3, "slow": 2e-3}, {"x": "not installed"}))
    [path] = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    found = cache.read(question)
    assert found is None or all(value > 0 for value in found.seconds.values())


def test_a_disk_that_refuses_is_said_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    assert ask(FakeClock(), Cache(tmp_path / "file" / "folder", said.append)).name == "fast"
    assert any("times of kernels cannot be kept" in line for line in said)
    assert ask(FakeClock(), Cache(None, no_log)).name == "fast"


def test_a_remembered_kernel_that_fails_now_is_passed_over(tmp_path: Path) -> None:
    clock, cache = FakeClock(), Cache(tmp_path, no_log)
    ask(clock, cache)
    now = [
        Candidate(one.name, missing if one.name == "fast" else one.load, one.packages)
        for one in candidates(clock)
    ]
    choice = ask(clock, cache, among=now)
    assert choice.name == "middle"
    assert "fast: not installed" in choice.reason


def test_a_kernel_by_name_is_tried_and_not_measured(tmp_path: Path) -> None:
    clock, cache = FakeClock(), Cache(tmp_path, no_log)
    assert ask(clock, cache, "slow").describe() == "doubling: slow (by name)"
    assert clock.measured == 0
    for name, why in [
        ("unfit", "is for another GPU"),
        ("wrong", "10.0% from"),
        ("cpu", "not a kernel for cpu"),
    ]:
        with pytest.raises(
            UserError, match=rf"doubler={name}: no such doubling runs here \(.*{why}.*\); use doubler: auto"
        ):
            ask(clock, cache, name)
    with pytest.raises(
        UserError, match=r"doubler=auto: no kernel for doubling runs here \(missing: not installed"
    ):
        ask(clock, cache, among=[Candidate("missing", missing), Candidate("unfit", unfit)])


def test_where_times_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "llemma" / "kernels"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder() == tmp_path / "home" / ".cache" / "llemma" / "kernels"


def test_relative_difference_is_that_of_vectors() -> None:
    assert relative_difference(torch.tensor([3.0, 4.4]), torch.tensor([3.0, 4.0])) == pytest.approx(0.08)
    assert relative_difference(torch.zeros(2), torch.zeros(2)) == 0


def choose_on_a_rank(folder: str, wanted: str) -> list[str]:
    """Called on every rank: rank 1 is a machine on which `first` is missing and times are the other way."""
    from megatron.backend import initialize
    from tests.llamas import run_config

    rank = initialize(run_config(parallel={"model_parallel_size": 2}).parallel, seed=1).rank
    clock = FakeClock()
    times = {"first": 1000, "second": 2000, "third": 3000}
    if rank == 1:
        times = {"first": 3000, "second": 2000, "third": 1000}
    load = {name: functools.partial(doubling, clock, value) for name, value in times.items()}
    among = [Candidate(name, missing if rank == 1 and name == "first" else load[name]) for name in times]
    found = []
    for _ in range(2):
        try:
            found.append(ask(clock, Cache(Path(folder) / str(rank), no_log), wanted, among).describe())
        except UserError as error:
            found.append(str(error))
    return [*found, str(clock.measured)]


def test_all_ranks_take_the_fastest_of_the_first_that_all_can_run(tmp_path: Path) -> None:
    [first, second] = run_ranks(choose_on_a_rank, 2, str(tmp_path), "auto")
    words = "second 2 ms, third 3 ms, first: not installed (No module named 'fancy') (rank 1)"
    assert first[:2] == second[:2]
    assert first[0].startswith(
        "doubling: second (the fastest forward and backward, measured now: first 1 ms,"
    )
    assert words in first[0]
    assert "as measured before" in first[1]
    assert (first[2], second[2]) == ("3", "0"), "the first rank measures, once"


def test_a_kernel_by_name_that_one_rank_cannot_run_is_refused_by_all(tmp_path: Path) -> None:
    [first, second] = run_ranks(choose_on_a_rank, 2, str(tmp_path), "first")
    assert first[:2] == second[:2]
    assert (
        "doubler=first: no such doubling runs here (not installed (No module named 'fancy') (rank 1))"
        in first[0]
    )
