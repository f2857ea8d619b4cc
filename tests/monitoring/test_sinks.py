# SPDX-License-Identifier: Apache-2.0
"""Console, TensorBoard and W&B, and the monitor that hands reports to them."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from megatron.monitoring import EvalReport, Monitor, Sink, StepReport, open_monitor
from megatron.monitoring.console import Console
from megatron.monitoring.tensorboard import TensorBoardSink
from megatron.monitoring.wandb import WandbSink
from megatron.monitoring.words import step_line
from megatron.neox_arguments.errors import UserError
from tests.launcher.runs import small_run
from tests.monitoring.reports import STEP, step

ROOT = Path(__file__).parents[2]


def test_a_file_gets_plain_lines() -> None:
    stream = io.StringIO()
    with Monitor([Console(48_000, "GPU", stream)]) as monitor:
        monitor.tick(119)
        monitor.step(STEP)
        monitor.evaluation(EvalReport(120, "valid", {"web [new]": 2.0}))
        monitor.event("checkpoint", {"iteration": 120})
    assert stream.getvalue().splitlines() == [
        step_line(STEP, "GPU"),
        "validation at iteration 120 | loss per source: web [new] 2.0000",
        "checkpoint: iteration 120",
    ]


ON_TERMINAL = """
import sys
from megatron.monitoring import EvalReport
from megatron.monitoring.console import Console
from tests.monitoring.reports import step
console = Console(200, "GPU")
for iteration in range(1, 201):
    console.tick(iteration) if iteration % 50 else console.step(step(iteration, train_iters=200))
console.evaluation(EvalReport(200, "valid", {"web [new]": 2.0}))
print("from elsewhere")
console.close() if len(sys.argv) > 1 else sys.exit(3)
"""


@pytest.mark.parametrize("ending", [["close"], []], ids=["closed", "left by an error"])
def test_a_terminal_gets_the_lines_and_a_bar_that_goes_away(ending: list[str]) -> None:
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL, *ending], cwd=ROOT, stdout=terminal, stderr=terminal,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "150"},
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(controller, 65536):
            shown += chunk
    except OSError:  # the terminal's other end is closed
        pass
    assert process.wait(timeout=240) == (0 if ending else 3)
    os.close(controller)
    text = shown.decode()
    for iteration in (50, 100, 150, 200):
        assert step_line(step(iteration, train_iters=200), "GPU") in text
    assert "web [new] 2.0000" in text
    assert "from elsewhere" in text
    assert "━" in text
    assert "149/200" in text
    # Hidden while the bar is drawn, shown again at the end, with the bar's line erased.
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert text.rindex("\x1b[2K") > text.rindex("━")


def test_tensorboard_files_hold_what_was_reported_and_a_resume_supersedes(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, loss in ((0, 3.0), (2, 2.0)):
        sink = TensorBoardSink(tmp_path, resumed_iteration=first)
        for iteration in range(first + 1, 5):
            sink.step(step(iteration, loss=loss))
            sink.evaluation(EvalReport(iteration, "valid", {"web": loss + 1}))
        sink.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("train/loss")] == [
        (1, 3.0), (2, 3.0), (3, 2.0), (4, 2.0),
    ]  # fmt: skip
    assert [point.value for point in events.Scalars("valid/web")] == [4.0, 4.0, 3.0, 3.0]
    assert events.Scalars("speed/mfu")[0].value == pytest.approx(STEP.mfu)


class FakeWandb(types.ModuleType):
    """What the sink uses of wandb, taking notes."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("wandb")
        self.errors = types.SimpleNamespace(Error=self.Error)
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.failure: Exception | None = None

    def init(self, **settings: Any) -> FakeWandb:
        if self.failure is not None:
            raise self.failure
        self.started.append(settings)
        return self

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def log(self, scalars: dict[str, float], step: int) -> None:
        self.logged.append((step, scalars))

    def finish(self) -> None:
        pass


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_the_run_once_over_resumes(tmp_path: Path, wandb: FakeWandb) -> None:
    for _ in range(2):
        sink = WandbSink(tmp_path, mode="offline", project="p", team="t", host="http://localhost:1")
        sink.step(step(3))
        sink.evaluation(EvalReport(3, "valid", {"web": 2.0}))
        sink.close()
    first, second = wandb.started
    assert first["id"] == second["id"] != ""
    assert (first["mode"], first["project"], first["entity"]) == ("offline", "p", "t")
    assert first["settings"] == {"console": "off", "base_url": "http://localhost:1"}
    assert (wandb.logged[0][0], wandb.logged[0][1]["train/loss"]) == (3, STEP.loss)
    assert wandb.logged[1] == (3, {"valid/web": 2.0})


def test_wandb_missing_or_unwilling_is_the_users_to_put_right(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb.failure = FakeWandb.Error("no API key")
    with pytest.raises(UserError, match="no API key; run `wandb login`, or --set wandb_mode=offline"):
        WandbSink(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb, or --set use_wandb=false"):
        WandbSink(tmp_path)


class Broken(Sink):
    name = "the broken sink"

    def __init__(self) -> None:
        self.works = False
        self.taken: list[int] = []

    def step(self, report: StepReport) -> None:
        if not self.works:
            raise OSError(28, "No space left on device")
        self.taken.append(report.iteration)

    def event(self, kind: str, fields: Mapping[str, object]) -> None:
        raise RuntimeError("a fault of ours")


def test_a_sink_that_cannot_write_is_said_once_and_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    broken, stream = Broken(), io.StringIO()
    monitor = Monitor([broken, Console(10, "GPU", stream)])
    monitor.step(step(1))
    monitor.step(step(2))
    broken.works = True
    monitor.step(step(3))
    broken.works = False
    monitor.step(step(4))
    assert broken.taken == [3]
    assert len(stream.getvalue().splitlines()) == 4
    assert capsys.readouterr().err.count("the broken sink cannot be written") == 2
    with pytest.raises(RuntimeError, match="a fault of ours"):
        monitor.event("any")


def test_rank_0_alone_writes_and_a_run_chooses_its_sinks(tmp_path: Path, wandb: FakeWandb) -> None:
    cfg = small_run(tmp_path, save=str(tmp_path / "run"), use_wandb=True, wandb_mode="offline")
    assert open_monitor(cfg, rank=1, on_gpu=False).sinks == []
    assert not (tmp_path / "run").exists()
    with open_monitor(cfg, rank=0, on_gpu=False) as monitor:
        assert [type(sink).__name__ for sink in monitor.sinks] == [
            "Console", "JsonlSink", "TensorBoardSink", "WandbSink",
        ]  # fmt: skip
        monitor.event("start", {"iteration": 0})
    assert (
        (tmp_path / "run" / "logs" / "metrics.jsonl")
        .read_text()
        .startswith('{"kind": "start", "iteration": 0')
    )
    assert list((tmp_path / "run" / "logs" / "tensorboard").iterdir())
    assert wandb.started[0]["config"]["schedule"]["train_iters"] == 10
    bare = small_run(tmp_path, tensorboard=False)
    with open_monitor(bare, rank=0, on_gpu=True) as monitor:
        assert [type(sink).__name__ for sink in monitor.sinks] == ["Console"]


def test_the_package_wandb_is_not_needed_unless_asked_for(tmp_path: Path) -> None:
    program = (
        "import sys, megatron.monitoring, megatron.monitoring.wandb, megatron.monitoring.console\n"
        "print([name for name in ('wandb', 'torch', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.stdout == "[]\n"
