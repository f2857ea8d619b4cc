# SPDX-License-Identifier: Apache-2.0
"""Fused kernels against their formulas and plain twins, through Triton's interpreter, and in the model."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from megatron.model.fused_kernels import (
    LayerShape,
    choose_fused,
    norm_candidates,
    norm_task,
    rotary_candidates,
    rotary_formula,
    rotary_task,
    swiglu_candidates,
    swiglu_formula,
    swiglu_task,
)
from megatron.model.kernel_choice import Unfit, forward_backward, relative_difference, why_unfit
from megatron.model.norms import NORMS
from megatron.neox_arguments.errors import UserError
from tests.llamas import run_config
from tests.ranks import ROOT, rank_environment, run_ranks

CPU = torch.device("cpu")
SHAPE = LayerShape(8, 2, 8, 64, kv_heads=2, queries=2, head_dim=16, ffn=48, eps=1e-5)


def has(package: str) -> bool:
    """By its metadata: the engine keeps Triton from being imported on a CPU."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


needs_triton = pytest.mark.skipif(not has("triton"), reason="triton is not installed")


@pytest.fixture(scope="module")
def errors() -> list[dict[str, Any]]:
    """Every kernel in float32 and bfloat16 on two shapes, in a process whose Triton interprets."""
    command = [sys.executable, str(ROOT / "benchmarks" / "kernel_errors.py"), "--json"]
    done = subprocess.run(
        command, cwd=ROOT, env=rank_environment(0, 1, 0), capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


@needs_triton
def test_own_kernels_are_nearer_the_formula_than_their_plain_twins(errors: list[dict[str, Any]]) -> None:
    own = [row for row in errors if row["kernel"] == "triton"]
    seen = {(row["what"], row["dtype"], row["quantity"]) for row in own}
    assert len(seen) == 2 * (3 + 3 + 4 + 2), "both norms, rotary, SwiGLU; results and gradients; two dtypes"
    for row in own:
        if row["dtype"] == "float32":
            assert row["error"] < 5e-7, row
        elif row["quantity"] == "v":
            assert row["error"] == 0, "values are copied"
        else:
            assert row["error"] < row["plain"], row


@needs_triton
@pytest.mark.skipif(not has("liger-kernel"), reason="liger-kernel is not installed")
def test_liger_is_no_further_from_the_formula(errors: list[dict[str, Any]]) -> None:
    rows = [row for row in errors if row["kernel"] == "liger"]
    assert {row["what"] for row in rows if row["error"] is None} == {"rmsnorm_neox"}
    ran = [row for row in rows if row["error"] is not None]
    assert {row["what"] for row in ran} == {"rmsnorm", "rotary", "swiglu"}
    for row in ran:  # its SwiGLU rounds silu(gate) as the plain twin does
        assert row["error"] <= (5e-7 if row["dtype"] == "float32" else row["plain"]), row


def one_step(keys: dict[str, Any], fused_kernels: str) -> dict[str, Any]:
    """Called on every rank, with Triton interpreting: the loss of each token, a norm for each gradient.

    And the names under which a checkpoint has the weights.
    """
    if sys.modules.get("triton", 0) is None:  # the engine left it out when it was imported
        del sys.modules["triton"]
    from megatron.backend import initialize
    from megatron.checkpointing.state import _model_state
    from megatron.model import build

    cfg = run_config(num_layers=2, seq_length=12, fused_kernels=fused_kernels, **keys)
    backend = initialize(cfg.parallel, seed=1)
    built = build(cfg, backend, 512, 512)
    ids_BS = torch.randint(0, 512, (2, 13), generator=torch.Generator().manual_seed(0))
    places_BS = torch.arange(12).expand(2, -1)
    loss_BS = built.module(ids_BS[:, :-1], places_BS, None, labels=ids_BS[:, 1:])
    loss_BS.mean().backward()
    names = [choice.name for choice in (built.fused.norm, built.fused.rotary, built.fused.swiglu)]
    assert names == [fused_kernels] * 3 or keys.get("qk_norm")
    norms = {
        name: float(torch.linalg.vector_norm(parameter.grad.float()))
        for name, parameter in built.module.named_parameters()
        if parameter.grad is not None
    }
    assert len(norms) == len(list(built.module.parameters()))
    return {
        "loss": loss_BS.flatten().tolist(),
        "gradients": list(norms.values()),
        "saved": sorted(_model_state(built.module)),
    }


@needs_triton
@pytest.mark.parametrize(("keys", "ranks"), [
    ({}, 1),
    ({"norm": "rmsnorm_neox", "parallel": {"model_parallel_size": 2, "sequence_parallel": True}}, 2),
    ({"use_qkv_bias": True, "parallel": {"recompute": "full"}}, 1),
    ({"norm_position": "after", "parallel": {"recompute": "selective"}}, 1),
    ({"qk_norm": "head"}, 1),
])  # fmt: skip
def test_a_model_of_own_kernels_is_the_same_function(
    monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], ranks: int
) -> None:
    """As the layers call them: grouped heads, a bias, both places of the norm, recomputation, TP 2 + SP."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    plain = run_ranks(one_step, ranks, keys, "plain")
    fused = run_ranks(one_step, ranks, keys, "triton")
    for mine, twin in zip(fused, plain, strict=True):
        assert mine["loss"] == pytest.approx(twin["loss"], rel=1e-6)
        assert mine["gradients"] == pytest.approx(twin["gradients"], rel=1e-5)
        assert mine["saved"] == twin["saved"]


def test_on_a_cpu_nothing_is_fused_and_asking_for_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    fused = choose_fused(run_config().model, SHAPE, CPU, torch.float32)
    assert fused.describe() == ["norm, rotary embedding, SwiGLU: plain (on a CPU fused ones are no faster)"]
    assert fused.norm.kernel is NORMS["rmsnorm"].plain
    with pytest.raises(
        UserError, match=r"fused_kernels=triton: Triton's kernels run on a GPU.*use fused_kernels: auto"
    ):
        choose_fused(run_config(fused_kernels="triton").model, SHAPE, CPU, torch.float32)
    read = choose_fused(run_config(fused_kernels="liger").model, SHAPE, CPU, torch.float32, is_trained=False)
    assert read.norm.reason == "the model is only read"


def test_a_run_on_a_cpu_imports_no_triton() -> None:
    program = (
        "import megatron.backend, megatron.trainer.setup, sys\n"
        "found = [name for name in sys.modules if name.split('.')[0] in ('triton', 'liger_kernel')]\n"
        "print([name for name in found if sys.modules[name] is not None])"
    )
    environment = {**rank_environment(0, 1, 0), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout == "[]\n", done.stderr


def plain_twins() -> Iterator[tuple[Any, Any]]:
    for form in NORMS:
        yield norm_task(SHAPE, form, CPU, torch.float32), norm_candidates(form)[0]
    yield rotary_task(SHAPE, CPU, torch.float32), rotary_candidates()[0]
    yield swiglu_task(SHAPE, CPU, torch.float32), swiglu_candidates()[0]


def test_plain_kernels_are_the_formulas() -> None:
    for task, candidate in plain_twins():
        assert candidate.name == "plain"
        assert why_unfit(task, candidate) is None
        inputs = task.inputs(False)
        exact = forward_backward(task, task.reference, [x.detach().double().requires_grad_() for x in inputs])
        for found, expected in zip(forward_backward(task, candidate.load(), inputs), exact, strict=True):
            assert relative_difference(found, expected) < 5e-7, task.kind


def test_formulas_are_transformers() -> None:
    """The formulas that everything is compared with, against another's code."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    qkv = torch.randn(5, 2, 3 * 4 * 8)  # 3 KV heads, 2 queries each, of 8
    angles = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.5, 0.1, 0.01])).repeat(1, 2)
    q, k, v = rotary_formula(qkv, angles.cos(), angles.sin(), 3, 2)
    lying = qkv.view(5, 2, 3, 4, 8)
    q0, k0 = lying[..., :2, :].reshape(5, 2, 6, 8), lying[..., 2, :]
    theirs = apply_rotary_pos_emb(
        q0.permute(1, 2, 0, 3), k0.permute(1, 2, 0, 3), angles.cos()[None], angles.sin()[None]
    )
    torch.testing.assert_close(q, theirs[0].permute(2, 0, 1, 3))
    torch.testing.assert_close(k, theirs[1].permute(2, 0, 1, 3))
    assert torch.equal(v, lying[..., 3, :])
    product = torch.randn(4, 10)
    torch.testing.assert_close(
        swiglu_formula(product), product[:, :5] * torch.sigmoid(product[:, :5]) * product[:, 5:]
    )


def test_liger_has_no_norm_of_gpt_neox() -> None:
    with pytest.raises(Unfit, match="Liger-Kernel has no rmsnorm_neox"):
        norm_candidates("rmsnorm_neox")[1].load()


def test_paper_has_the_shapes_of_the_fused_kernels() -> None:
    model = run_config(norm="rmsnorm_neox", fused_kernels="triton").model
    fused = choose_fused(model, SHAPE, torch.device("meta"), torch.bfloat16)
    qkv = torch.empty(8, 2, 2 * 4 * 16, device="meta", requires_grad=True)
    parts = fused.rotary.kernel(qkv, torch.empty(0), torch.empty(0), 2, 2)
    assert [tuple(part.shape) for part in parts] == [(8, 2, 4, 16), (8, 2, 2, 16), (8, 2, 2, 16)]
    [gradient] = torch.autograd.grad([part.sum() for part in parts], [qkv])
    assert gradient.shape == qkv.shape
    x, w = (
        torch.empty(8, 2, 64, device="meta", requires_grad=True),
        torch.empty(64, device="meta", requires_grad=True),
    )
    assert fused.norm.kernel(x, w, 1e-5).shape == x.shape
    for name in ("plain", "auto"):  # what auto will find where the run will be is not known
        model = run_config(fused_kernels=name).model
        fused = choose_fused(model, SHAPE, torch.device("meta"), torch.bfloat16)
        assert fused.rotary.kernel is rotary_formula


@pytest.mark.gpu
@pytest.mark.parametrize("norm", NORMS)
def test_a_gpu_chooses_and_is_right(norm: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels measured at a small shape, and own ones in bfloat16 nearer the formula than their twins."""
    from benchmarks.kernel_errors import errors_of, subjects

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cuda = torch.device("cuda")
    shape = LayerShape(512, 2, 512, 1024, kv_heads=2, queries=4, head_dim=128, ffn=2752, eps=1e-5)
    fused = choose_fused(run_config(norm=norm).model, shape, cuda, torch.bfloat16)
    assert all("measured now" in line for line in fused.describe())
    for what, subject in subjects(shape, cuda, torch.bfloat16):
        for row in errors_of(what, subject, "", "bfloat16"):
            assert row.kernel != "triton" or (row.error is not None and row.error <= row.plain), row
