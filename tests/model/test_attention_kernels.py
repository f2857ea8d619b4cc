# SPDX-License-Identifier: Apache-2.0
"""Each attention kernel's call against the formula: torch's own here, the others by stand-ins.

A stand-in is a module with the documented signature of the package and the formula in it, written here with
matrices. It shows that shapes, scale, mask and results are handed over rightly; not that the kernel is right.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend

from megatron.model.attention import AttentionShape, attention_task, choose_attention
from megatron.model.attention_kernels import Kernel, Settings, _sdpa_with, cuda_kernels, math_attention, sdpa
from megatron.model.kernel_choice import Cache, Unfit, forward_backward, relative_difference, why_unfit
from megatron.neox_arguments.errors import UserError

HOPPER = (9, 0)
SHAPES = [
    AttentionShape(tokens=9, sequences=2, heads=4, kv_heads=2, head_dim=16),
    AttentionShape(tokens=5, sequences=1, heads=3, kv_heads=3, head_dim=8),
    AttentionShape(tokens=6, sequences=3, heads=6, kv_heads=1, head_dim=8),
]


def formula_BSHD(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """flash-attention's: [B, S, H, D] and [B, T, K, D]; the mask is aligned to the last query and key."""
    queries = q.size(2) // k.size(2)
    k, v = (x.repeat_interleave(queries, dim=2) for x in (k, v))
    scores = torch.einsum("bshd,bthd->bhst", q, k) * (1 / math.sqrt(q.size(-1)) if scale is None else scale)
    if causal:
        hidden = torch.ones(q.size(1), k.size(1), dtype=torch.bool).triu(1 + k.size(1) - q.size(1))
        scores = scores.masked_fill(hidden, float("-inf"))
    return torch.einsum("bhst,bthd->bshd", scores.softmax(-1), v), scores.logsumexp(-1)


def flash_attn_2(
    q: Any, k: Any, v: Any, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Any = None,
    deterministic: bool = False, return_attn_probs: bool = False,
) -> Any:  # fmt: skip
    """Signature of flash-attn 2.8."""
    assert dropout_p == 0.0
    return formula_BSHD(q, k, v, softmax_scale, causal)[0]


def flash_attn_3(
    q: Any, k: Any, v: Any, softmax_scale: float | None = None, causal: bool = False, qv: Any = None,
    q_descale: Any = None, k_descale: Any = None, v_descale: Any = None,
    window_size: tuple[int, int] = (-1, -1), attention_chunk: int = 0, softcap: float = 0.0,
    num_splits: int = 1, pack_gqa: Any = None, deterministic: bool = False, sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Any:  # fmt: skip
    """Signature of FlashAttention-3 since August 2025: the result alone."""
    return formula_BSHD(q, k, v, softmax_scale, causal)[0]


def flash_attn_3_before(
    q: Any, k: Any, v: Any, softmax_scale: float | None = None, causal: bool = False
) -> Any:
    """Before that it returned the log-sum-exp of each row too."""
    return formula_BSHD(q, k, v, softmax_scale, causal)


def flash_attn_4(
    q: Any, k: Any, v: Any, qv: Any = None, gather_kv_indices: Any = None, softmax_scale: float | None = None,
    causal: bool = False, window_size: tuple[int | None, int | None] = (None, None),
    learnable_sink: Any = None, softcap: float = 0.0, num_splits: int = 1, pack_gqa: Any = None,
    deterministic: bool = False, score_mod: Any = None, score_mod_bwd: Any = None, mask_mod: Any = None,
    return_lse: bool = False,
) -> Any:  # fmt: skip
    """Signature of flash-attn-4 4.0.0b36, of what comes before return_lse: a pair."""
    return formula_BSHD(q, k, v, softmax_scale, causal)


def install(monkeypatch: pytest.MonkeyPatch, name: str, function: Callable[..., Any]) -> None:
    """A package `name` with a flash_attn_func in it, and its parents without one."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        module: Any = types.ModuleType(".".join(parts[:depth]))
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
    module.flash_attn_func = function


def kernel_of(name: str, capability: tuple[int, int] = HOPPER, drops: bool = False) -> Kernel:
    [candidate] = [one for one in cuda_kernels(capability, drops) if one.name == name]
    return candidate.load()


def assert_is_attention(kernel: Kernel, shape: AttentionShape, scale: float | None) -> None:
    """Results and gradients in float32."""
    task = attention_task(shape, torch.device("cpu"), torch.float32)
    inputs = task.inputs(False)

    def call(one: Kernel) -> list[torch.Tensor]:
        results = [one(inputs[0], inputs[1], inputs[2], Settings(scale))]
        return results + list(torch.autograd.grad(results[0].square().sum(), list(inputs)))

    def formula(q: Any, k: Any, v: Any, *_: Any) -> torch.Tensor:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        return formula_BSHD(q, k, v, scale, True)[0].transpose(0, 1)

    for found, expected in zip(call(kernel), call(formula), strict=True):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "module", "function"), [
    ("flash_attn", "flash_attn", flash_attn_2),
    ("flash_attn_3", "flash_attn_interface", flash_attn_3),
    ("flash_attn_3", "flash_attn_interface", flash_attn_3_before),
    ("flash_attn_3", "flash_attn_3.flash_attn_interface", flash_attn_3),
    ("flash_attn_4", "flash_attn.cute", flash_attn_4),
])  # fmt: skip
def test_packages_are_called_as_they_say(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    module: str,
    function: Any,
    shape: AttentionShape,
    scale: float | None,
) -> None:
    install(monkeypatch, module, function)
    assert_is_attention(kernel_of(name), shape, scale)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel", [
    sdpa,
    math_attention,
    _sdpa_with(SDPBackend.FLASH_ATTENTION),
    _sdpa_with(SDPBackend.MATH, has_grouped_heads=False),  # as the efficient kernel is called
])  # fmt: skip
def test_torch_is_called_rightly(kernel: Kernel, shape: AttentionShape, scale: float | None) -> None:
    assert_is_attention(kernel, shape, scale)


def test_flash_attn_4_alone_is_not_flash_attn_2(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "flash_attn.cute", flash_attn_4)
    with pytest.raises(ImportError):
        kernel_of("flash_attn")
    kernel_of("flash_attn_4")


def test_kernels_are_kept_from_gpus_they_are_not_for(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "flash_attn_interface", flash_attn_3)
    install(monkeypatch, "flash_attn.cute", flash_attn_4)
    for name, capability in (("flash_attn_3", (10, 0)), ("flash_attn_3", (8, 0))):
        with pytest.raises(Unfit, match=rf"this GPU has {capability[0]}\.{capability[1]}"):
            kernel_of(name, capability)
    kernel_of("flash_attn_4", (10, 0))  # refuses GPUs by itself
    for name in ("flash_attn_3", "flash_attn_4"):
        with pytest.raises(Unfit, match="has no dropout"):
            kernel_of(name, drops=True)


def test_a_kernel_with_another_mask_scale_or_head_order_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the trial before a run must notice, should a package change its meaning."""
    task = attention_task(SHAPES[0], torch.device("cpu"), torch.bfloat16)
    changes: list[Callable[..., Any]] = [
        lambda q, k, v, **_: formula_BSHD(q, k, v, None, False)[0],
        lambda q, k, v, **_: formula_BSHD(q, k, v, 1.0, True)[0],
        lambda q, k, v, **_: formula_BSHD(q, k.flip(2), v.flip(2), None, True)[0],
        lambda q, k, v, **_: formula_BSHD(q, k, v, None, True)[0].detach() + 0 * (q + k.sum() + v.sum()),
    ]
    for change in changes:
        install(monkeypatch, "flash_attn", change)
        reason = why_unfit(task, cuda_kernels(HOPPER, False)[0])
        assert reason is not None
        assert "from the formula's" in reason
    install(monkeypatch, "flash_attn", flash_attn_2)
    assert why_unfit(task, cuda_kernels(HOPPER, False)[0]) is None


def test_a_run_takes_the_fastest_and_its_random_state_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """All candidates of CUDA on the CPU: torch's flash runs here, so do the stand-ins; the others fail."""
    install(monkeypatch, "flash_attn", flash_attn_2)
    times = iter([3e-3, 1e-3])
    state = torch.get_rng_state()
    choice = choose_attention(
        "auto", torch.device("cpu"), torch.float32, SHAPES[0], candidates=cuda_kernels(HOPPER, False),
        clock=lambda step: next(times), cache=Cache(None, print),
    )  # fmt: skip
    assert choice.name == "torch_flash"
    assert "torch_flash 1 ms, flash_attn 3 ms" in choice.reason
    for name in ("flash_attn_3: not installed", "flash_attn_4: not installed", "cudnn: ", "efficient: "):
        assert name in choice.reason
    assert torch.equal(torch.get_rng_state(), state)


def test_a_kernel_by_name_that_fails_names_the_remedy() -> None:
    with pytest.raises(
        UserError, match=r"attention_backend=cudnn: no such attention runs here \(.*precision: bfloat16"
    ):
        choose_attention(
            "cudnn", torch.device("cpu"), torch.float32, SHAPES[0], candidates=cuda_kernels(HOPPER, False)
        )


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [(32, 32), (8, 1)])
def test_every_kernel_that_runs_on_this_gpu_is_right(heads: tuple[int, int]) -> None:
    """Against the formula in float64, no worse than twice torch's math kernel in bfloat16."""
    device = torch.device("cuda")
    shape = AttentionShape(tokens=512, sequences=2, heads=heads[0], kv_heads=heads[1], head_dim=128)
    task = attention_task(shape, device, torch.bfloat16)
    inputs = task.inputs(False)
    exact = forward_backward(task, math_attention, [x.detach().double().requires_grad_() for x in inputs])
    plain = forward_backward(task, math_attention, inputs)
    ran = 0
    for candidate in cuda_kernels(torch.cuda.get_device_capability(), False):
        if why_unfit(task, candidate) is not None:
            continue
        ran += 1
        for found, expected, twin in zip(
            forward_backward(task, candidate.load(), inputs), exact, plain, strict=True
        ):
            bar = 2 * relative_difference(twin, expected)
            assert relative_difference(found, expected) < bar, candidate.name
    assert ran, "no attention kernel runs on this GPU"
    choice = choose_attention("auto", device, torch.bfloat16, shape, cache=Cache(None, print))
    assert "the fastest forward and backward, measured now" in choice.reason
