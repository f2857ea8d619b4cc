# SPDX-License-Identifier: Apache-2.0
"""The quickstart's plan for a machine, its table, verdict and picture, and its ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.loader import load_config
from tests.llamas import SMALL
from tools import quickstart
from tools.quickstart_parts import machine, report
from tools.quickstart_parts.machine import Machine, detect, run_file, size_for
from tools.quickstart_parts.report import Measured, read_measured, shortfalls, table
from tools.quickstart_parts.steps import Record, Runner, Stopped

ROOT = Path(__file__).resolve().parents[2]
GPU = Machine(True, "bfloat16", "a GPU")
BFLOAT16_CPU = Machine(False, "bfloat16", "a CPU with it")
OLD_CPU = Machine(False, "fp32", "a CPU without it")


def write_measured(folder: Path, trained_python: float = 0.824, trained_latex: float = 1.022) -> Path:
    folder.mkdir(exist_ok=True)
    figures = {
        "base": (100_000.0, 0, 0.878, 1.073),
        "contracted": (10_000.0, 0, 0.913, 1.127),
        "trained": (10_000.0, 60, trained_python, trained_latex),
    }
    for model, (base, iteration, python, latex) in figures.items():
        content: dict[str, Any] = {"rotary_base": base, "iteration": iteration, "dtype": "bfloat16"}
        content["sources"] = {
            "python": {"bits_per_byte": python, "documents": 24},
            "latex": {"bits_per_byte": latex, "documents": 23},
        }
        (folder / f"{model}.json").write_text(json.dumps(content))
    return folder


def test_the_table_has_what_was_measured(tmp_path: Path) -> None:
    lines = table(read_measured(write_measured(tmp_path))).splitlines()
    assert lines[0] == (
        "bits per byte of held-out documents (24 python, 23 latex; bfloat16), fewer is better"
    )
    assert [line.split() for line in lines[1:]] == [
        ["python", "latex"],
        ["base", "model,", "rotary", "base", "100,000", "0.8780", "1.0730"],
        ["contracted", "to", "10,000,", "untrained", "0.9130", "1.1270"],
        ["trained", "60", "steps", "at", "10,000", "0.8240", "1.0220"],
        ["trained", "against", "the", "better", "of", "the", "two", "-6.2%", "-4.8%"],
    ]
    assert len({len(line) for line in lines[1:]}) == 1  # aligned


@pytest.mark.parametrize(
    ("python", "latex", "found"),
    [
        (0.8779, 1.0729, []),
        (0.878, 1.0, ["python"]),  # equal is not below
        (0.9, 1.1, ["python", "latex"]),  # below the contracted model alone does not do
        (0.8, float("nan"), ["latex"]),
    ],
)
def test_the_verdict_asks_for_less_than_both_on_every_source(
    tmp_path: Path, python: float, latex: float, found: list[str]
) -> None:
    measured = read_measured(write_measured(tmp_path, python, latex))
    assert [line.partition(":")[0] for line in shortfalls(measured)] == found
    if "python" in found:
        assert f"{python:.4f} after training is not below 0.8780 before" in shortfalls(measured)[0]


def test_a_damaged_report_is_an_error(tmp_path: Path) -> None:
    write_measured(tmp_path)
    (tmp_path / "base.json").write_text('{"sources": {"python": {}}}')
    with pytest.raises(UserError, match="a report is damaged"):
        read_measured(tmp_path)
    (tmp_path / "base.json").unlink()
    with pytest.raises(UserError, match=r"base\.json: cannot be read"):
        read_measured(tmp_path)


def test_the_picture_is_drawn_whole(tmp_path: Path) -> None:
    from matplotlib.image import imread

    path = tmp_path / "result.png"
    report.draw(read_measured(write_measured(tmp_path / "measured")), path)
    pixels = imread(path)
    assert pixels.shape[:2] == (750, 1350)
    assert len({tuple(pixel) for pixel in pixels[::10, ::10].reshape(-1, pixels.shape[2])}) >= 4  # not blank
    assert [found.name for found in tmp_path.glob("result*")] == ["result.png"]
    with pytest.raises(UserError, match="cannot be written"):
        report.draw(read_measured(tmp_path / "measured"), tmp_path / "none" / "result.png")


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("flags : fpu avx512f avx512_bf16 gfni", "bfloat16"),
        ("flags : amx_bf16 amx_tile", "bfloat16"),
        ("flags : fpu avx2 avx512_bf16x", "fp32"),
        (None, "fp32"),
    ],
)
def test_precision_follows_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str | None, precision: str
) -> None:
    from megatron.launcher.devices import GpuCount

    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(flags)
    monkeypatch.setattr(machine, "count_gpus", lambda _: GpuCount(0, "nothing"))
    found = detect({}, cpuinfo)
    assert (found.precision, found.on_gpu) == (precision, False)
    monkeypatch.setattr(machine, "count_gpus", lambda _: GpuCount(2, "nvidia-smi -L"))
    assert detect({}, cpuinfo) == Machine(True, "bfloat16", "a GPU is here (by nvidia-smi -L); one is used")


@pytest.mark.parametrize("here", [GPU, BFLOAT16_CPU, OLD_CPU])
@pytest.mark.parametrize("short", [False, True])
def test_every_machine_gets_a_run_that_loads(tmp_path: Path, here: Machine, short: bool) -> None:
    import yaml

    for source in ("python", "latex"):
        for split in ("train", "valid"):
            for suffix in (".bin", ".idx"):
                path = tmp_path / "tokens" / f"{source}_{split}_text_document{suffix}"
                path.parent.mkdir(exist_ok=True)
                path.touch()
    model, own = tmp_path / "model.yml", tmp_path / "machine.yml"
    keys = {**SMALL, "rotary_emb_base": 100_000.0, "max_position_embeddings": 8192}
    model.write_text(yaml.safe_dump({key: value for key, value in keys.items() if key != "seq_length"}))
    own.write_text(run_file(tmp_path, here, size_for(here, short)))
    cfg, notices = load_config([model, ROOT / "configs" / "quickstart.yml", own], check_files=False)
    assert any("rotary_emb_base" in notice for notice in notices)  # the contraction is said
    assert cfg.model.rotary_emb_base == quickstart.CONTRACTED_BASE
    assert cfg.precision.precision == here.precision
    assert cfg.checkpoint.save == tmp_path / "run"
    shape = cfg.batch.batch_shape(1)
    assert shape.global_ == cfg.batch.train_batch_size
    assert cfg.schedule.warmup_iters < cfg.schedule.train_iters
    if not here.on_gpu:  # what a CPU does in minutes
        assert cfg.schedule.train_iters * shape.global_ * cfg.model.seq_length <= 122_880


def test_every_command_names_what_it_reads_and_makes(tmp_path: Path) -> None:
    steps = [
        *quickstart.preparing_steps(tmp_path),
        *quickstart.training_steps(tmp_path),
        *quickstart.showing_steps(tmp_path, size_for(OLD_CPU, True), OLD_CPU),
    ]
    commands = [command for step in steps for command in step.commands]
    assert len(steps) == 8
    assert len({command.name for command in commands}) == len(commands)
    done: set[str] = set()
    for command in commands:
        assert set(command.after) <= done, command.name
        assert (ROOT / command.argv[1]).is_file(), command.argv
        assert command.outputs
        assert all(tmp_path in output.parents for output in command.outputs)
        done.add(command.name)
    assert [command.name for command in commands if command.resumes] == ["train"]
    # The base model is measured and sampled as it is and contracted, on the same documents and prompts.
    (base, contracted, trained) = next(step for step in steps if step.title == "Measure").commands
    added = ("--rotary-base", "10000")
    assert contracted.argv[3:5] == added
    assert base.argv[1:-1] == tuple(word for word in contracted.argv[1:-1] if word not in added)
    assert trained.argv[3:-1] == base.argv[3:-1]


class FakeRunner(Runner):
    """Records each command as done, at once."""

    def run(self, step: Any, number: int, of: int) -> None:
        for command in step.commands:
            self.records.write(command.name, Record("k", True, 30.0, 2**30))


def faked(monkeypatch: pytest.MonkeyPatch, output: Path, latex: float) -> None:
    """An output folder as after all steps, and no step run."""
    monkeypatch.setattr(quickstart, "Runner", FakeRunner)
    write_measured(output / "measured", trained_latex=latex)
    (output / "samples").mkdir()
    for model in report.MODELS:
        (output / "samples" / f"{model}.txt").write_text(f"The derivative of x^2 is {model}.\n")
    (output / "run" / "logs").mkdir(parents=True)
    lines = (
        {"kind": "step", "iteration": n, "tokens_per_second": rate} for n, rate in enumerate((9, 440, 450))
    )
    (output / "run" / "logs" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(("latex", "status"), [(1.0, 0), (1.0731, 1)])
def test_the_end_shows_what_was_measured_and_says_so_where_it_did_not_help(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    latex: float,
    status: int,
) -> None:
    (tmp_path / "out").mkdir()
    faked(monkeypatch, tmp_path / "out", latex)
    assert quickstart.main(["--output", str(tmp_path / "out")]) == status
    printed = capsys.readouterr()
    assert f"{latex:.4f}" in printed.out
    for expected in (
        "  │ The derivative of x^2 is contracted.",
        "training at 440 tokens/s",
        "7.5 minutes in all, at most 1.0 GiB",
        "generate.py",
        "-c 'from transformers import pipeline; ",
        "trained-hf",
    ):
        assert expected in printed.out, expected
    assert (tmp_path / "out" / "result.png").is_file()
    assert ("training did not help: latex" in printed.err) == bool(status)


def test_being_stopped_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> bool:
        raise Stopped(2)

    monkeypatch.setattr(quickstart, "run_quickstart", stopped)
    assert quickstart.main(["--output", str(tmp_path), "--short"]) == 130
    assert f"tools/quickstart.py --output {tmp_path} --short" in capsys.readouterr().err


def test_a_full_disk_is_an_error_not_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device", str(tmp_path / "machine.yml"))

    monkeypatch.setattr(quickstart, "run_quickstart", full)
    with pytest.raises(SystemExit) as ended:
        quickstart.main(["--output", str(tmp_path)])
    assert ended.value.code == 2
    assert "machine.yml: No space left on device; when that is put right" in capsys.readouterr().err


def test_measured_change_is_against_the_better() -> None:
    measured = Measured({}, {"base": {"a": 2.0}, "contracted": {"a": 1.0}, "trained": {"a": 0.5}}, {}, "")
    assert measured.change("a") == pytest.approx(-0.5)
