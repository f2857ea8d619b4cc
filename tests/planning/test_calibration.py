# SPDX-License-Identifier: Apache-2.0
"""What was measured replaces what is assumed: at the shapes measured exactly, and the plan says which."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.neox_arguments.config import ModelConfig
from megatron.neox_arguments.errors import UserError
from megatron.planning.calibrated import calibrated_rates, modelled_step
from megatron.planning.calibration import KINDS, Calibration, read_calibration
from megatron.planning.gpus import find_gpu
from megatron.planning.kernels import KernelClock
from megatron.planning.machine import Machine, machine_of
from megatron.planning.memory import Choice
from megatron.planning.rates import Corrections, Point, Rates, assumed_rates
from megatron.planning.software import Software
from megatron.planning.speed import step_time
from tests.planning.test_plan import llemma
from tests.test_deepy import ROOT, deepy

GPU = find_gpu("NVIDIA H200")
assert GPU is not None
STEP: dict[str, Any] = {
    "model": {
        "num_layers": 4, "hidden_size": 4096, "num_attention_heads": 32, "num_kv_heads": 32, "head_dim": 128,
        "intermediate_size": 11008, "seq_length": 4096, "vocab_size": 32016,
    },
    "micro": 1, "recompute": "none", "fused": True, "seconds": 0.1,
}  # fmt: skip
MEASURED: dict[str, Any] = {
    "version": 1,
    "gpu": "NVIDIA H200",
    "matrix_products": [{"m": 4096, "n": 22016, "k": 4096, "seconds": 0.0015}],
    "attention": [
        {"sequences": 1, "tokens": 4096, "heads": 32, "kv_heads": 32, "head_dim": 128, "kernel": "cudnn",
         "forward_seconds": 0.0004, "backward_seconds": 0.0011},
    ],
    "pointwise": [
        {"kernel": kernel, "fused": fused, "rows": 4096, "columns": 4096,
         "forward_seconds": 5e-5, "backward_seconds": 9e-5}
        for kernel in ("rmsnorm", "rotary", "swiglu") for fused in (True, False)
    ],
    "losses": [
        {"fused": fused, "rows": 4096, "hidden": 4096, "vocabulary": 32016,
         "forward_seconds": 0.003, "backward_seconds": 0.006} for fused in (True, False)
    ],
    "optimizers": [{"parameters": 10**9, "seconds": 0.02}],
}  # fmt: skip


def product(**changes: Any) -> dict[str, Any]:
    return {"matrix_products": [{"m": 4096, "n": 4096, "k": 4096, "seconds": 0.0003, **changes}]}


def attention(**changes: Any) -> dict[str, Any]:
    return {"attention": [{**MEASURED["attention"][0], **changes}]}


def rates_of(**changes: Any) -> Rates:
    assert GPU is not None
    return calibrated_rates(GPU, [("here.json", Calibration.model_validate({**MEASURED, **changes}))])


def clock(rates: Rates, **software: Any) -> KernelClock:
    """As fast as while it was measured: a step's lower clock is not in it."""
    assert GPU is not None
    return KernelClock(GPU, replace(rates, sustained_share=1.0), Software(**software), 2)


def write(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({**MEASURED, **changes}))
    return path


def machine(*files: Path) -> Machine:
    return machine_of(
        nodes=32, gpus_per_node=8, gpu_name="h200", gpu_memory=None, disk_speed=None, calibrations=files
    )


def test_at_measured_shapes_times_are_what_was_measured() -> None:
    model, choice = llemma("7b").model, Choice(1, 1, 1, "none", False)
    one = clock(rates_of())
    assert one.matrix(4096, 22016, 4096) == pytest.approx(0.0015)
    attention = one.attention(model, choice)
    assert (attention.forward, attention.backward) == pytest.approx((0.0004, 0.0011))
    for kernel in ("rmsnorm", "rotary", "swiglu"):
        for fused in (True, False):
            timed = clock(rates_of(), norm_fused=fused, rotary_fused=fused, swiglu_fused=fused)
            found = timed.pointwise(kernel, 4096, 4096)
            assert (found.forward, found.backward) == pytest.approx((5e-5, 9e-5))
    for fused in (True, False):
        loss = clock(rates_of(), loss_fused=fused).cross_entropy(4096, 4096, 32016)
        assert (loss.forward, loss.backward) == pytest.approx((0.003, 0.006))
    assert one.update(10**9) == pytest.approx(0.02)


def test_a_step_sets_what_is_sustained() -> None:
    assert GPU is not None
    step = Calibration.model_validate({**MEASURED, "steps": [STEP]}).steps[0]
    alone = modelled_step(GPU, replace(rates_of(), sustained_share=1.0), step)
    for seconds in (1.05 * alone, 1.4 * alone):
        rates = rates_of(steps=[{**STEP, "seconds": seconds}])
        assert modelled_step(GPU, rates, step) == pytest.approx(seconds, rel=1e-6)
        assert 0.6 < rates.sustained_share < 1
    assert rates_of().sustained_share == assumed_rates(GPU).sustained_share


def test_a_rank_of_eight_has_an_eighth_of_the_layers_products() -> None:
    assert GPU is not None
    whole, rank = (
        Calibration.model_validate({**MEASURED, "steps": [{**STEP, "tensor": t}]}).steps[0] for t in (1, 8)
    )
    rates = assumed_rates(GPU)
    times = modelled_step(GPU, rates, whole), modelled_step(GPU, rates, rank)
    assert times[0] / 8 < times[1] < times[0] / 6


@given(
    points=st.lists(
        st.tuples(st.tuples(*[st.integers(1, 10**6)] * 3), st.floats(0.1, 10)), min_size=1, max_size=6
    ),
    place=st.tuples(*[st.integers(1, 10**6)] * 3),
)
def test_between_measured_shapes_corrections_are_between(
    points: list[tuple[tuple[int, int, int], float]], place: tuple[int, int, int]
) -> None:
    corrections = Corrections({"matrix_products": tuple(Point(shape, factor) for shape, factor in points)})
    found = corrections.factor("matrix_products", place)
    factors = [factor for _, factor in points]
    assert min(factors) * 0.999 <= found <= max(factors) * 1.001
    for shape, _ in points:
        same = [factor for other, factor in points if other == shape]
        assert any(math.isclose(corrections.factor("matrix_products", shape), one) for one in same)
    assert corrections.factor("attention forward", (1, 2, 3, 4)) == 1.0


def test_slower_kernels_make_a_slower_plan_which_says_what_was_measured(tmp_path: Path) -> None:
    cfg, choice = llemma("7b"), Choice(2, 1, 4, "full", True)
    fast, slow = (
        step_time(cfg, choice, machine(write(tmp_path / f"{n}.json", matrix_products=[
            {"m": 16384, "n": 11008, "k": 4096, "seconds": seconds}
        ])), 32016, 2).total
        for n, seconds in enumerate((0.002, 0.004))
    )  # fmt: skip
    assert slow > 1.5 * fast
    said = "\n".join(machine(write(tmp_path / "all.json")).assumed)
    assert "times of whole steps are assumed, not measured" in said
    assert "matrix products" not in said
    steps = {"version": 1, "gpu": "NVIDIA H200", "steps": [STEP]}
    (tmp_path / "steps.json").write_text(json.dumps(steps))
    everything = machine(tmp_path / "all.json", tmp_path / "steps.json")
    assert everything.rates.calibration is not None
    assert everything.rates.calibration.measured() == list(KINDS)
    assert "not measured" not in "\n".join(everything.assumed)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpu": "NVIDIA A100-SXM4-80GB"}, "was measured on NVIDIA A100-SXM4-80GB, and the plan is for H200"),
        ({"gpu": "Abacus"}, "was measured on Abacus"),
        ({"version": 2}, "version"),
        ({"steps": [{**STEP, "seconds": -1}]}, "steps.0.seconds"),
        ({"steps": [{**STEP, "secnds": 1}]}, "steps.0.secnds"),
        ({"steps": [{**STEP, "seconds": 0.9}]}, "measure the steps again"),
        ({"steps": [STEP, {**STEP, "seconds": 60}]}, "steps.1: takes more than 20 times what their kernels"),
        ({"steps": [{**STEP, "seconds": 1e-320}]}, "steps.0: takes less than 0.2 times"),
        ({"steps": [{**STEP, "tensor": 3}]}, "steps.0: tensor=3 does not divide num_attention_heads=32"),
        (product(m=10**400), "matrix_products.0.m: Input should be less than or equal to 16777216"),
        (product(seconds=1.0), "matrix_products.0: seconds=1 is not between 0.00012 and 0.14: at its rating"),
        (product(seconds=1e-320), "matrix_products.0: seconds=9.99989e-321 is not between"),
        (attention(tokens=10**200), "attention.0.tokens: Input should be less"),
        (attention(kv_heads=64), "attention.0: kv_heads=64 does not divide heads=32;"),
        (attention(backward_seconds=1.1), "attention.0: backward_seconds=1.1 is not between"),
        ({"pointwise": [{**MEASURED["pointwise"][0], "forward_seconds": 9.0}]}, "pointwise.0: forward_sec"),
        (
            {"losses": [{**MEASURED["losses"][0], "backward_seconds": 6.0}]},
            "losses.0: forward_seconds + back",
        ),
        ({"losses": [{**MEASURED["losses"][0], "backward_seconds": 1e-9}]}, "losses.0: backward_seconds="),
        ({"optimizers": [{"parameters": 10**9, "seconds": 20.0}]}, "optimizers.0: seconds=20"),
        ({"attention": [{}]}, "attention.0.sequences"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match="--calibration=") as caught:
        machine(write(tmp_path / "measured.json", **changes))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 100_000, "has lists or objects too deep in one another; write it with"),
        ("[]", "is no JSON object, and a calibration is one"),
        ('{"version": 1, "gpu": "NVIDIA H200", "steps": [3]}', "steps.0: Input should be"),
    ],
)
def test_what_is_no_calibration_is_said_to_be_none(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "cal.json").write_text(content)
    with pytest.raises(UserError) as caught:
        read_calibration(tmp_path / "cal.json")
    assert words in str(caught.value)


def test_attention_of_other_heads_is_another_shape() -> None:
    """Two that differ in the heads' width alone each have their own times."""
    entries = [
        {**MEASURED["attention"][0], "head_dim": width, "forward_seconds": seconds}
        for width, seconds in ((128, 0.0004), (64, 0.0003))
    ]
    one = clock(rates_of(attention=entries))
    for entry in entries:
        model = llemma("7b").model.model_copy(update={"head_dim": entry["head_dim"]})
        found = one.attention(model, Choice(1, 1, 1, "none", False))
        assert found.forward == pytest.approx(entry["forward_seconds"])


@given(sizes=st.tuples(*[st.sampled_from([1, 2, 64, 4096, 2**24])] * 3), share=st.floats(0.01, 1.0))
def test_no_kernel_at_a_hundredth_of_the_rating_is_refused(sizes: tuple[int, int, int], share: float) -> None:
    """Or as slow as starting kernels makes a small one; and what is accepted makes rates that are numbers."""
    assert GPU is not None
    m, n, k = sizes
    rated = max(2 * m * n * k / 989e12, 2 * (m * n + n * k + m * k) / 4.8e12, 5e-6)
    changes = product(m=m, n=n, k=k, seconds=rated / share)
    assert math.isfinite(clock(rates_of(**changes)).matrix(4096, 4096, 4096))


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_file_is_a_traceback(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="--calibration"):
        read_calibration(path)


def test_it_is_an_option_of_a_plan(tmp_path: Path) -> None:
    done = deepy(
        tmp_path, ROOT / "train.py", ROOT / "configs" / "llemma_7b.yml", "--plan", "--nodes", 1, "--gpu",
        "h200", "--calibration", tmp_path / "absent.json",
    )  # fmt: skip
    assert done.returncode == 2
    assert "absent.json: No such file or directory; write it with benchmarks/calibrate.py" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def small_model() -> ModelConfig:
    keys = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_kv_heads": 2, "seq_length": 32}
    return ModelConfig.model_validate({**keys, "intermediate_size": 96})


def test_the_command_measures_every_product_of_a_step(small_model: ModelConfig) -> None:
    """Of a linear layer [m, k] x [n, k]: as autograd calls them."""
    from benchmarks.calibrate import product_shapes

    shapes = product_shapes(small_model, 128, (1, 2, 3), (1,))
    assert len(shapes) == len(set(shapes))
    one = clock(assumed_rates(GPU) if GPU else rates_of())
    called: list[tuple[int, int, int]] = []

    def note(m: int, n: int, k: int, *_: object) -> float:
        called.append((m, n, k))
        return 1.0

    setattr(one, "matrix", note)  # noqa: B010
    for tensor in (1, 2):
        one.layer(small_model, Choice(tensor, 1, 1, "none", tensor > 1))
        one.cross_entropy(32, 64, 128 // tensor)
    assert set(called) == set(shapes)


def test_the_command_writes_what_a_plan_reads(small_model: ModelConfig, tmp_path: Path) -> None:
    """On the CPU, by its clock: only the form is looked at."""
    import torch

    from benchmarks.calibrate import cpu_clock, measure

    found = measure(
        small_model, 128, torch.device("cpu"), cpu_clock,
        tensors=(1, 2), micros=(1,), calls=1, parameters=1000, origin={"command": "test"},
    )  # fmt: skip
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps(found.model_dump()))
    assert read_calibration(path) == found
    assert set(found.measured()) >= {"matrix_products", "optimizers"}
    assert all(one.seconds > 0 for one in found.matrix_products)
    with pytest.raises(UserError, match="was measured on CPU"):
        machine(path)


def test_the_command_refuses_a_machine_without_a_gpu(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "calibrate.py", ROOT / "configs" / "llemma_7b.yml",
         "--output", tmp_path / "out.json"],
        capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "there is no GPU here" in done.stderr
    assert not (tmp_path / "out.json").exists()


@pytest.mark.gpu
def test_a_gpu_is_measured_within_its_peak() -> None:
    import torch

    from benchmarks.calibrate import gpu_clock, measure
    from megatron.planning.gpus import peak_flops

    model = llemma("7b").model
    found = measure(
        model, 32016, torch.device("cuda"), gpu_clock,
        tensors=(8,), micros=(1,), calls=5, parameters=10**8, origin={},
    )  # fmt: skip
    peak = peak_flops(found.gpu)
    assert found.attention
    for one in found.matrix_products:
        assert peak is None or 0.05 * peak < 2 * one.m * one.n * one.k / one.seconds < peak


def test_the_form_in_the_documentation_is_one() -> None:
    from megatron.planning import calibration

    text = calibration.__doc__ or ""
    example = text[text.index('    {\n      "version"') :].replace("…", "")
    assert Calibration.model_validate(json.loads(example)).measured() == [
        "matrix_products", "attention", "pointwise", "losses", "optimizers", "steps",
    ]  # fmt: skip
