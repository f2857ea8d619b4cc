# SPDX-License-Identifier: Apache-2.0
"""The benchmark on one GPU, at a tiny size on the CPU: sides train alike; what is made of the figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import train_gpu
from benchmarks.training_sides import report
from benchmarks.training_sides.measuring import OUT_OF_MEMORY, time_steps
from benchmarks.training_sides.processes import in_own_process
from benchmarks.training_sides.shapes import LLEMMA_7B, LLEMMA_34B_TP8, TINY
from benchmarks.training_sides.sides import SIDES, Built, Order, Side
from megatron.neox_arguments.config import ModelConfig
from megatron.planning.calibration import Calibration
from megatron.planning.flops import layer_parameters

CPU = torch.device("cpu")
# Embedding and output; attention, MLP and two norms a layer; the last norm.
PARAMETERS = 2 * 320 * 64 + 2 * (64 * 16 * (4 + 4 + 2 + 2) + 3 * 64 * 176 + 2 * 64) + 64


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group made by a side is gone after it."""
    yield
    from megatron.backend import shut_down

    shut_down()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def learn(side: Side, dtype: str = "float32", **options: Any) -> tuple[Built, list[float]]:
    order = Order(TINY, CPU, micro=2, accumulation=2, dtype=dtype)
    missing = side.missing()
    if missing is not None:
        pytest.skip(f"{missing} is not installed")
    options = {name: value for name, value in {**side.options, **options}.items() if value is not None}
    built = Side(side.name, side.module, side.packages, "", "", options).build(order)
    sequences_ABS = torch.randint(0, TINY.vocab, (2, 2, TINY.tokens + 1), generator=torch.Generator())
    return built, [float(built.step(sequences_ABS)) for _ in range(4)]


@pytest.mark.parametrize(("name", "options"), [
    ("engine", {}),
    ("engine", {"recompute": "full"}),
    ("megatron-core", {}),
    ("transformers", {"compile": False}),
    ("transformers-autocast", {"compile": False}),
    ("litgpt", {"compile": False}),
    ("litgpt-autocast", {"compile": False}),
])  # fmt: skip
def test_every_side_trains_the_same_network(alone: None, name: str, options: dict[str, Any]) -> None:
    built, losses = learn(SIDES[name], **options)
    assert built.parameters == PARAMETERS
    assert losses[0] == pytest.approx(math.log(TINY.vocab), abs=0.15), "nothing is known yet"
    assert losses == sorted(losses, reverse=True)
    # The learning rate is 1e-4: every side's AdamW goes the same small way.
    assert 0.02 < losses[0] - losses[3] < 0.1


def test_steps_are_timed_after_the_first_ones() -> None:
    seen: list[torch.Tensor] = []

    def step(sequences_ABS: torch.Tensor) -> torch.Tensor:
        seen.append(sequences_ABS)
        return torch.tensor(float(len(seen)))

    found = time_steps(Built(step, 0, ""), Order(TINY, CPU, 3, 2), steps=4, dropped=2)
    assert len(found["seconds"]) == 4
    assert found["losses"] == [1, 2, 3, 4, 5, 6]
    assert seen[0].shape == (2, 3, TINY.tokens + 1)
    assert not torch.equal(seen[0], seen[1])


def test_each_side_takes_the_deepest_that_fits_and_the_engine_goes_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fits = {"engine": 24, "transformers": 24, "transformers-autocast": 12, "litgpt": 0}
    monkeypatch.setattr(Side, "missing", lambda side: "torchtitan" if side.name == "torchtitan" else None)
    monkeypatch.setattr(Side, "version", lambda side: "1.0")

    def measure(side: str, layers: int) -> dict[str, Any]:
        return {"seconds": [1.0]} if layers <= fits[side] else {"error": OUT_OF_MEMORY}

    rows = train_gpu.measure_sides([*fits, "torchtitan"], [32, 24, 12], measure)
    assert [(row["side"], row["layers"], row.get("error", "")) for row in rows] == [
        ("engine", 24, ""), ("transformers", 24, ""), ("transformers-autocast", 12, ""),
        ("litgpt", 12, OUT_OF_MEMORY), ("torchtitan", 32, "not installed (torchtitan)"),
        ("engine", 12, ""),
    ]  # fmt: skip


def rows() -> list[dict[str, Any]]:
    common = {"micro": 1, "accumulation": 4, "keys": {}, "recompute": "none", "fused": False}
    seven = {**common, "shape": "7b", "layers": 32, "peak_bytes": 120 * 2**30, "notes": "as built"}
    found: list[dict[str, Any]] = [
        {**seven, "side": "engine", "version": "1", "seconds": [1.5, 1.6, 1.7], "median_seconds": 1.6},
        {**seven, "side": "transformers", "version": "5", "seconds": [2.0], "median_seconds": 2.0},
        {**common, "shape": "7b", "layers": 32, "side": "torchtitan", "error": "not installed (torchtitan)"},
        {
            **common,
            "shape": "34b-tp8",
            "layers": 48,
            "side": "engine",
            "seconds": [1.0],
            "median_seconds": 1.0,
        },
    ]
    for row in found:
        report.fill(row, 989.0)
    report.add_ratios(found)
    return found


def content() -> dict[str, Any]:
    machine = {
        "device": "NVIDIA H200", "nvidia-smi": "driver 580", "processor": "x86_64", "threads": 8,
        "cuda": "13", "cudnn": "9", "python": "3.12",
        "date": "today", "command": "python benchmarks/train_gpu.py", "commit": "abc",
        "versions": {"torch": "2.13.0"},
    }  # fmt: skip
    settings = {"steps": 3, "dropped": 2, "micro": 1, "accumulation": 4, "dtype": "bfloat16"}
    return {"machine": machine, "peak_tflops": 989.0, "settings": settings, "rows": rows()}


def test_mfu_is_the_formulas_and_ratios_are_at_the_same_depth() -> None:
    engine, peer, absent, rank = rows()
    parameters = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096 + 32016 * 4096
    attention = 12 * 32 * 4096 * 4096
    assert engine["tokens_per_second"] == pytest.approx(4 * 4096 / 1.6)
    assert engine["mfu"] == pytest.approx(4 * 4096 / 1.6 * (6 * parameters + attention) / 989e12)
    assert engine["mfu_causal"] == pytest.approx(4 * 4096 / 1.6 * (6 * parameters + attention / 2) / 989e12)
    assert peer["engine_ratio"] == pytest.approx(1.25)
    assert "engine_ratio" not in absent
    assert "engine_ratio" not in rank


def test_a_rank_of_34b_has_an_eighth_of_its_layers() -> None:
    keys = LLEMMA_7B.model_keys() | {
        "num_layers": 48, "hidden_size": 8192, "num_attention_heads": 64, "num_kv_heads": 8, "head_dim": 128,
        "intermediate_size": 22016,
    }  # fmt: skip
    whole = ModelConfig.model_validate(keys)
    rank = ModelConfig.model_validate(LLEMMA_34B_TP8.model_keys())
    assert layer_parameters(rank) == layer_parameters(whole, tensor=8)
    assert "communication" in LLEMMA_34B_TP8.left_out


def test_the_page_says_where_it_comes_from_and_what_is_missing() -> None:
    page = report.markdown(content())
    for said in (
        "NVIDIA H200", "driver 580; CUDA 13, cuDNN 9", "commit abc", "torch 2.13.0", "6 N + 12 L d s",
        "3 steps counted after 2 dropped",
        "| torchtitan | ", "not installed (torchtitan)", "Left out: all communication", "| 1.25 |", "120.0",
    ):  # fmt: skip
        assert said in page


def test_a_plan_can_be_calibrated_with_the_engines_steps() -> None:
    found = report.calibration(content())
    assert [(step["tensor"], step["model"]["num_layers"], step["seconds"]) for step in found["steps"]] == [
        (1, 32, 1.6), (8, 48, 1.0),
    ]  # fmt: skip
    heads, widths = ("num_attention_heads", "num_kv_heads"), ("intermediate_size", "vocab_size")
    whole = found["steps"][1]["model"]  # of Llemma 34B, not of the rank that was timed
    assert [whole[name] for name in (*heads, *widths)] == [64, 8, 22016, 32000]
    Calibration.model_validate(found)


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(SIDES))
def test_every_side_that_is_installed_takes_steps_on_the_gpu(name: str, tmp_path: Path) -> None:
    """As the command runs it: in a process of its own, compiled where it compiles, in bfloat16, traced."""
    if (package := SIDES[name].missing()) is not None:
        pytest.skip(f"{package} is not installed")
    request = {
        "side": name, "shape": asdict(replace(TINY, head_dim=64, heads=4, kv_heads=2, hidden=256)),
        "layers": 2, "micro": 2, "accumulation": 2, "steps": 2, "dropped": 1, "dtype": "bfloat16", "keys": {},
        "device": "cuda", "trace": str(tmp_path / "trace.json.gz"),
    }  # fmt: skip
    found = in_own_process(request, limit_seconds=300)
    assert "error" not in found, found
    assert found["losses"][0] == pytest.approx(math.log(TINY.vocab), abs=0.3)
    assert found["peak_bytes"] > 0
    assert (tmp_path / "trace.json.gz").exists()
