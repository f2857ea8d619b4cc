# SPDX-License-Identifier: Apache-2.0
"""The numbers of a log line, from a clock and a GPU that are known."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from megatron.backend import Backend
from megatron.monitoring import StepReport
from megatron.trainer import meter as meter_module
from megatron.trainer.meter import Meter
from tests.llamas import run_config

# Llemma 7B on 256 A100: 6 N + 12 L d s with N = 6,607,343,616 without the input embedding of 32,016 x 4096.
LLEMMA_7B: dict[str, Any] = {
    "num_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_kv_heads": 32,
    "intermediate_size": 11008, "vocab_size": 32016, "seq_length": 4096,
}  # fmt: skip
N = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096 + 32016 * 4096
FLOPS_PER_TOKEN = 6 * N + 12 * 32 * 4096 * 4096


class Clock:
    """Stands for `time`; moved by hand."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def perf_counter(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter_module, "time", clock)
    return clock


def backend(world_size: int) -> Backend:
    """On the CPU, with so many ranks, all data parallel."""
    import torch

    return Backend(torch.device("cpu"), "gloo", 0, 0, world_size, 1, 0, 1, 0, world_size, 0)


def report(meter: Meter, iteration: int) -> StepReport:
    return meter.report(iteration, loss=1.5, lr=1e-4, grad_norm=0.5, tokens_seen=iteration * 4_194_304)


def test_a_gpu_whose_peak_is_not_known_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An RTX A1000 was once taken for an A100."""
    import torch

    names = {
        "NVIDIA RTX A1000": "MFU is not shown: the peak of NVIDIA RTX A1000 is not known",
        "NVIDIA A100": None,
    }
    on_gpu = dataclasses.replace(backend(8), device=torch.device("cuda", 0))
    for name, notice in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        said = Meter(run_config(**LLEMMA_7B, precision={"precision": "bfloat16"}), on_gpu, 32016).notice
        assert said == (notice and f"{notice}; peak_tflops_per_gpu sets it")


def test_rates_and_mfu_of_llemma_7b(clock: Clock) -> None:
    """Llemma 7B's own speed: 2,128 tokens/s on each A100 is an MFU of 31.4 % with its formula."""
    cfg = run_config(**LLEMMA_7B, schedule={"train_iters": 48000}, logging={"peak_tflops_per_gpu": 312.0})
    meter = Meter(cfg, backend(256), 32016)
    clock.seconds += 4_194_304 / (2128 * 256)
    meter.step_done(4_194_304)
    line = report(meter, 1)
    assert line.tokens_per_second_per_gpu == pytest.approx(2128)
    assert line.tokens_per_second == pytest.approx(2128 * 256)
    assert line.step_seconds == pytest.approx(7.6992, abs=1e-4)
    assert line.mfu == pytest.approx(2128 * FLOPS_PER_TOKEN / 312e12)
    assert line.mfu == pytest.approx(0.314, abs=5e-4)
    assert line.mfu_causal == pytest.approx(2128 * (FLOPS_PER_TOKEN - 6 * 32 * 4096 * 4096) / 312e12)
    assert line.seconds_left == pytest.approx(47999 * line.step_seconds)
    assert (line.iteration, line.train_iters, line.tokens_seen) == (1, 48000, 4_194_304)


def test_a_line_of_several_steps_and_no_known_peak(clock: Clock) -> None:
    meter = Meter(run_config(schedule={"train_iters": 100}), backend(2), 512)
    for _ in range(4):
        clock.seconds += 0.5
        meter.step_done(1000)
    line = report(meter, 4)
    assert (line.tokens_per_second, line.tokens_per_second_per_gpu, line.step_seconds) == (2000, 1000, 0.5)
    assert line.mfu is None
    assert line.mfu_causal is None
    assert line.memory_bytes > 10e6


def test_evaluation_and_saving_do_not_count(clock: Clock) -> None:
    meter = Meter(run_config(schedule={"train_iters": 100}), backend(1), 512)
    paused = meter.pause()
    clock.seconds += 60
    meter.resume(paused)
    clock.seconds += 1
    meter.step_done(1000)
    assert report(meter, 1).tokens_per_second == 1000
    clock.seconds += 2
    meter.step_done(1000)
    paused = meter.pause()
    clock.seconds += 60
    within = meter.pause()  # a rollback saves
    clock.seconds += 30
    meter.resume(within)
    meter.resume(paused)
    assert report(meter, 2).tokens_per_second == 500


def test_the_time_left_forgets_the_slow_first_steps(clock: Clock) -> None:
    meter = Meter(run_config(schedule={"train_iters": 10}), backend(1), 512)
    left = []
    for iteration, seconds in enumerate((30.0, 1.0, 3.0), start=1):
        clock.seconds += seconds
        meter.step_done(1000)
        left.append(report(meter, iteration).seconds_left)
    assert left == [9 * 30.0, 8 * 1.0, 7 * 2.0]


def test_every_number_is_finite_from_the_first_line(clock: Clock) -> None:
    meter = Meter(run_config(schedule={"train_iters": 1}), backend(1), 512)
    meter.step_done(1000)  # on a clock that has not moved
    values = dataclasses.asdict(report(meter, 1)).values()
    assert all(value is None or abs(value) < float("inf") for value in values)
