# SPDX-License-Identifier: Apache-2.0
"""Which kernels norm, rotary embedding and SwiGLU run with: plain, Liger-Kernel's, or our own in Triton.

"plain" is what torch and megatron-core bring: torch's RMSNorm (one kernel on CUDA; `rmsnorm_neox` in
operations), megatron-core's rotary embedding in operations, and its SwiGLU, which torch compiles on CUDA. All
are chosen by measurement on CUDA (`kernel_choice.py`) and tested against the formula here
(`benchmarks/kernel_errors.py`).

Legend: S tokens, B sequences, N rows, D the last dimension of a norm or of a head; G local KV heads, R query
heads of each, H = G * R, E = G * (R + 2) * D; F this rank's width of the MLP.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl
from megatron.model.kernel_choice import Candidate, Choice, Task, Unfit, choose
from megatron.model.norms import NORMS, NormKernel, fused_norm_on_paper
from megatron.neox_arguments.config import ModelConfig
from megatron.neox_arguments.errors import UserError

KEY = "fused_kernels"
_TRITON = ("triton",)
_LIGER = ("liger-kernel", "triton")

# (qkv_SBE, cos_SD, sin_SD, G, R) -> q_SBHD, k_SBGD, v_SBGD. Cosines and sines are float32, twice in a row.
Rotary = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, int, int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]
]
# [..., 2F], gate beside up -> [..., F]
Swiglu = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class FusedKernels:
    """What was chosen for each. A plain rotary embedding or SwiGLU is megatron-core's own module."""

    norm: Choice[NormKernel]
    rotary: Choice[Rotary]
    swiglu: Choice[Swiglu]

    def describe(self) -> list[str]:
        """Lines for the log; one, where there was nothing to choose."""
        choices = (self.norm, self.rotary, self.swiglu)
        if len({(choice.name, choice.reason) for choice in choices}) == 1:
            return [f"norm, rotary embedding, SwiGLU: {self.norm.name} ({self.norm.reason})"]
        return [choice.describe() for choice in choices]


@dataclass(frozen=True)
class LayerShape:
    """A layer of a run on one rank. `norm_tokens` are the tokens of a norm: cut where activations are."""

    tokens: int
    sequences: int
    norm_tokens: int
    hidden: int
    kv_heads: int
    queries: int
    head_dim: int
    ffn: int
    eps: float


def split_qkv(
    qkv_SBE: torch.Tensor, kv_heads: int, queries: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values as they lie in the product."""
    grouped = qkv_SBE.unflatten(-1, (kv_heads, queries + 2, -1))
    return grouped[..., :queries, :].flatten(2, 3), grouped[..., queries, :], grouped[..., queries + 1, :]


def rotary_formula(
    qkv_SBE: torch.Tensor, cos_SD: torch.Tensor, sin_SD: torch.Tensor, kv_heads: int, queries: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x cos + (-x2, x1) sin for queries and keys, as megatron-core and transformers compute it."""
    q, k, v = split_qkv(qkv_SBE, kv_heads, queries)
    cos, sin = (table[:, None, None].to(q.dtype) for table in (cos_SD, sin_SD))

    def turned(x: torch.Tensor) -> torch.Tensor:
        one, two = x.chunk(2, -1)
        return x * cos + torch.cat([-two, one], -1) * sin

    return turned(q), turned(k), v


def swiglu_formula(product: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up."""
    gate, up = product.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


class _RotaryOnPaper(torch.autograd.Function):
    """Shapes of the fused rotary embedding, which keeps nothing that it did not make, on the meta device."""

    @staticmethod
    def forward(
        ctx: Any, qkv_SBE: torch.Tensor, kv_heads: int, queries: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.shape = qkv_SBE.shape
        head_dim = qkv_SBE.size(2) // (kv_heads * (queries + 2))
        heads = (kv_heads * queries, kv_heads, kv_heads)
        q, k, v = (qkv_SBE.new_empty(*qkv_SBE.shape[:2], count, head_dim) for count in heads)
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradients[0].new_empty(ctx.shape), None, None


def rotary_on_paper(
    qkv_SBE: torch.Tensor, cos_SD: torch.Tensor, sin_SD: torch.Tensor, kv_heads: int, queries: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _RotaryOnPaper.apply(qkv_SBE, kv_heads, queries)
    return found


# --- Liger-Kernel ---------------------------------------------------------------------------------------


def _liger_norm(form: str) -> NormKernel:
    if form != "rmsnorm":
        raise Unfit(f"Liger-Kernel has no {form}")
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    def call(x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
        # "gemma" names the arithmetic: float32 until the result is rounded. The gradient that comes back may
        # be somebody else's too, so it is not written over.
        y: torch.Tensor = LigerRMSNormFunction.apply(x, weight_D, eps, 0.0, "gemma", False)
        return y

    return call


def _liger_rotary() -> Rotary:
    from liger_kernel.ops.rope import LigerRopeFunction

    def call(
        qkv_SBE: torch.Tensor, cos_SD: torch.Tensor, sin_SD: torch.Tensor, kv_heads: int, queries: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q_SBHD, k_SBGD, v_SBGD = split_qkv(qkv_SBE, kv_heads, queries)
        # It writes over what it is given where that lies in one piece, so it is given copies.
        q_BHSD, k_BGSD = (x.transpose(0, 1).contiguous().transpose(1, 2) for x in (q_SBHD, k_SBGD))
        q_BHSD, k_BGSD = LigerRopeFunction.apply(q_BHSD, k_BGSD, cos_SD[None], sin_SD[None])
        return q_BHSD.permute(2, 0, 1, 3), k_BGSD.permute(2, 0, 1, 3), v_SBGD

    return call


def _liger_swiglu() -> Swiglu:
    from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction

    def call(product: torch.Tensor) -> torch.Tensor:
        y_NF: torch.Tensor = LigerFusedGateUpSiLUMulFunction.apply(
            product.flatten(0, -2)
        )  # its gradient is flat
        return y_NF.view(*product.shape[:-1], -1)

    return call


# --- Our own, in Triton ---------------------------------------------------------------------------------


def _triton_norm(form: str) -> NormKernel:
    from megatron.model.triton_norm import rms_norm

    return functools.partial(rms_norm, is_neox=form == "rmsnorm_neox")


def _triton_rotary() -> Rotary:
    from megatron.model.triton_rotary import split_and_rotate

    return split_and_rotate


def _triton_swiglu() -> Swiglu:
    from megatron.model.triton_swiglu import swiglu

    return swiglu


# --- Candidates and what they are asked -----------------------------------------------------------------


def norm_candidates(form: str) -> list[Candidate[NormKernel]]:
    return [
        Candidate("plain", lambda: NORMS[form].plain),
        Candidate("liger", lambda: _liger_norm(form), _LIGER),
        Candidate("triton", lambda: _triton_norm(form), _TRITON),
    ]


def rotary_candidates() -> list[Candidate[Rotary]]:
    return [
        Candidate("plain", lambda: rotary_formula),
        Candidate("liger", _liger_rotary, _LIGER),
        Candidate("triton", _triton_rotary, _TRITON),
    ]


def swiglu_candidates() -> list[Candidate[Swiglu]]:
    return [
        Candidate("plain", lambda: bias_swiglu_of_megatron_core),
        Candidate("liger", _liger_swiglu, _LIGER),
        Candidate("triton", _triton_swiglu, _TRITON),
    ]


def bias_swiglu_of_megatron_core(product: torch.Tensor) -> torch.Tensor:
    """What megatron-core's MLP calls; compiled on CUDA."""
    y: torch.Tensor = bias_swiglu_impl(product, None)
    return y


def _draw(device: torch.device, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Normal numbers from a generator of their own: the run's random state stays as it is."""
    generator = torch.Generator(device).manual_seed(1)
    return torch.randn(shape, dtype=dtype, device=device, generator=generator)


def norm_task(shape: LayerShape, form: str, device: torch.device, dtype: torch.dtype) -> Task[NormKernel]:
    def inputs(is_small: bool) -> list[torch.Tensor]:
        tokens = min(16, shape.norm_tokens) if is_small else shape.norm_tokens
        x_SBD = _draw(device, dtype, tokens, shape.sequences, shape.hidden)
        weight_D = _draw(device, dtype, shape.hidden) * 0.1 + 1
        return [x_SBD.requires_grad_(), weight_D.detach().requires_grad_()]

    return Task(
        kind="norm",
        shape={
            "form": form, "tokens": shape.norm_tokens, "sequences": shape.sequences, "hidden": shape.hidden,
            "dtype": str(dtype),
        },
        inputs=inputs,
        call=lambda kernel, given: [kernel(given[0], given[1], shape.eps)],
        reference=NORMS[form].formula,
    )  # fmt: skip


def rotary_task(shape: LayerShape, device: torch.device, dtype: torch.dtype) -> Task[Rotary]:
    width = shape.kv_heads * (shape.queries + 2) * shape.head_dim

    def inputs(is_small: bool) -> list[torch.Tensor]:
        tokens = min(16, shape.tokens) if is_small else shape.tokens
        return [_draw(device, dtype, tokens, shape.sequences, width).requires_grad_()]

    def call(kernel: Rotary, given: Any) -> tuple[torch.Tensor, ...]:
        tokens = torch.arange(given[0].size(0), device=device, dtype=torch.float32)
        angles_SD = torch.outer(tokens, torch.linspace(1, 0, shape.head_dim // 2, device=device)).repeat(1, 2)
        return kernel(given[0], angles_SD.cos(), angles_SD.sin(), shape.kv_heads, shape.queries)

    return Task(
        kind="rotary embedding",
        shape={
            "tokens": shape.tokens, "sequences": shape.sequences, "kv_heads": shape.kv_heads,
            "queries": shape.queries, "head_dim": shape.head_dim, "dtype": str(dtype),
        },
        inputs=inputs,
        call=call,
        reference=rotary_formula,
    )  # fmt: skip


def swiglu_task(shape: LayerShape, device: torch.device, dtype: torch.dtype) -> Task[Swiglu]:
    def inputs(is_small: bool) -> list[torch.Tensor]:
        tokens = min(16, shape.tokens) if is_small else shape.tokens
        return [_draw(device, dtype, tokens, shape.sequences, 2 * shape.ffn).requires_grad_()]

    return Task(
        kind="SwiGLU",
        shape={
            "tokens": shape.tokens, "sequences": shape.sequences, "ffn": shape.ffn, "dtype": str(dtype)
        },
        inputs=inputs,
        call=lambda kernel, given: [kernel(given[0])],
        reference=swiglu_formula,
    )  # fmt: skip


# --- The choice -----------------------------------------------------------------------------------------


def _everywhere(model: ModelConfig, name: str, reason: str) -> FusedKernels:
    """The same for all three, without a measurement; `name` is plain, or fused on paper."""
    is_paper = name != "plain"
    norm = fused_norm_on_paper if is_paper else NORMS[model.norm].plain
    rotary = rotary_on_paper if is_paper and model.qk_norm == "none" else rotary_formula
    return FusedKernels(
        Choice("norm", name, reason, norm),
        Choice("rotary embedding", name if rotary is rotary_on_paper else "plain", reason, rotary),
        Choice("SwiGLU", "plain", reason, bias_swiglu_of_megatron_core),
    )


def choose_fused(
    model: ModelConfig,
    shape: LayerShape,
    device: torch.device,
    dtype: torch.dtype,
    *,
    is_trained: bool = True,
    log: Callable[[str], None] = lambda line: None,
) -> FusedKernels:
    """The kernels of a run's layers, as `fused_kernels` says. Every rank calls this.

    Raises:
        UserError: a kernel was asked for by name and cannot run here.
    """
    wanted = model.fused_kernels
    if wanted == "plain":
        return _everywhere(model, "plain", "by name")
    if device.type == "meta":
        if wanted == "auto":  # nobody knows yet what is installed where the run will be
            return _everywhere(model, "plain", "a plan counts what needs the most")
        return _everywhere(model, "fused on paper", "a plan is made, nothing is computed")
    if not is_trained:
        return _everywhere(model, "plain", "the model is only read")
    if device.type == "cpu":
        if wanted == "auto":
            return _everywhere(model, "plain", "on a CPU fused ones are no faster")
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise UserError(
                f"{KEY}={wanted}: Triton's kernels run on a GPU, and this run computes on the CPU; use "
                f"{KEY}: auto, or set TRITON_INTERPRET=1 to have them interpreted, which is for tests"
            )
    ask = functools.partial(choose, wanted=wanted, device=device, key=KEY, log=log)
    norm = ask(norm_task(shape, model.norm, device, dtype), norm_candidates(model.norm))
    if model.qk_norm == "none":
        rotary = ask(rotary_task(shape, device, dtype), rotary_candidates())
    else:
        reason = "between the product and the rotary embedding lies a norm of queries and keys"
        rotary = Choice("rotary embedding", "plain", reason, rotary_formula)
    return FusedKernels(norm, rotary, ask(swiglu_task(shape, device, dtype), swiglu_candidates()))
