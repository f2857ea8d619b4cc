# SPDX-License-Identifier: Apache-2.0
"""Products of float32 matrices on a CPU: by oneDNN where MKL is slow, by what torch takes everywhere else.

torch gives float32 products to MKL, which keeps its fastest kernels for Intel's processors: on an AMD EPYC
with AVX-512 oneDNN computes the products of a training step twice as fast (benchmarks/products_cpu.md, which
has both errors). Which of the two computes a product depends on the processor's maker and on shapes alone, so
that a run computes the same numbers on every start. Only a run that trains asks for it: who reads a model
computes in the library that transformers computes in, so that logits are equal to the bit.

Legend: X rows of the result, Y what is summed over, Z columns of the result.
"""

from __future__ import annotations

from pathlib import Path

import torch

# Multiplications below which calling oneDNN takes longer than it saves.
_LEAST_MULTIPLICATIONS = 2**22
_CPU_INFO = Path("/proc/cpuinfo")
_is_asked_for = False


def take_the_faster_library() -> None:
    """From here on, in this process."""
    global _is_asked_for
    _is_asked_for = onednn_is_faster()


def describe(dtype: torch.dtype) -> tuple[str, ...]:
    """A line for the log of a run in `dtype`; none where torch takes the library."""
    if not _is_asked_for or dtype != torch.float32:
        return ()
    return (f"products in float32: oneDNN (MKL, which torch would take, is slow on {_maker()})",)


def matmul(left: torch.Tensor, right_YZ: torch.Tensor) -> torch.Tensor:
    """[..., Y] times [Y, Z]: [..., Z], which may lie transposed. Any device, any dtype."""
    is_small = left.numel() * right_YZ.size(1) < _LEAST_MULTIPLICATIONS
    is_float32_on_cpu = left.dtype == right_YZ.dtype == torch.float32 and left.device.type == "cpu"
    if is_small or not is_float32_on_cpu or not _is_asked_for:
        return torch.matmul(left, right_YZ)
    if torch.compiler.is_compiling():
        return _opaque(left, right_YZ)
    return _product(left, right_YZ)


def _product(left: torch.Tensor, right_YZ: torch.Tensor) -> torch.Tensor:
    is_transposed = left.dim() == 2 and left.stride(0) == 1 and left.size(0) > 1
    if is_transposed and right_YZ.size(1) < left.size(0):
        # oneDNN's tokens are laid out anew where they lie transposed, its weight is not: the narrower of the
        # two becomes the tokens.
        return _linear(right_YZ.t(), left).t()
    return _linear(left, right_YZ.t())


# torch.compile would lay a weight out once and for all, as it does for a model that is not trained.
@torch.library.custom_op("llemma::product", mutates_args=())
def _opaque(left: torch.Tensor, right_YZ: torch.Tensor) -> torch.Tensor:
    """The same as one operation to torch.compile; the result lies in order."""
    return _product(left, right_YZ).contiguous()


@_opaque.register_fake
def _(left: torch.Tensor, right_YZ: torch.Tensor) -> torch.Tensor:
    return left.new_empty(*left.shape[:-1], right_YZ.size(1))


def _linear(tokens: torch.Tensor, weight_ZY: torch.Tensor) -> torch.Tensor:
    """The product with the transposed weight, without a bias."""
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(tokens, weight_ZY, None, "none", [], "")
    return out


def onednn_is_faster() -> bool:
    """Whether this torch would take MKL, has oneDNN too, and the processor is not one of Intel's."""
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return (
        has_both and hasattr(torch.ops.mkldnn, "_linear_pointwise") and _maker() not in ("", "GenuineIntel")
    )


def _maker() -> str:
    """Who made the processor, as Linux says it; empty where it does not."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        return ""
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
    return next(named, "")
