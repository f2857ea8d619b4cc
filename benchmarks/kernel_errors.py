#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""How far each fused kernel is from its formula in float64, beside its plain twin: results and gradients.

    python benchmarks/kernel_errors.py [--json]

An error is |found - formula| / |formula| in the L2 norm, with the inputs as they are after rounding to the
dtype. The plain twin is the same formula in torch's operations in that dtype, rounded where transformers and
megatron-core round. On a GPU kernels run there at a layer's real shape; elsewhere Triton's interpreter runs
them on small shapes (TRITON_INTERPRET, set before Triton is imported). The interpreter cuts float32 to
bfloat16 where a GPU rounds to the nearest, computes no bfloat16, and hands numbers over as Python's; it is
taught all three here.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

IS_INTERPRETED = not torch.cuda.is_available()
if IS_INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"

import megatron.backend  # noqa: E402, F401  (before megatron.core)
from megatron.model.fused_kernels import (  # noqa: E402
    LayerShape,
    norm_candidates,
    norm_task,
    rotary_candidates,
    rotary_formula,
    rotary_task,
    swiglu_candidates,
    swiglu_formula,
    swiglu_task,
)
from megatron.model.kernel_choice import (  # noqa: E402
    Candidate,
    Task,
    Unfit,
    forward_backward,
    relative_difference,
)
from megatron.model.norms import NORMS  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Odd sizes: tiles that are not full. GPU shapes: Llemma 7B at TP 2 and 34B at TP 8, with 4,096 tokens.
INTERPRETED_SHAPES = {
    "small": LayerShape(21, 2, 21, 200, kv_heads=3, queries=1, head_dim=24, ffn=172, eps=1e-5),
    "grouped": LayerShape(10, 3, 10, 3000, kv_heads=2, queries=3, head_dim=16, ffn=1100, eps=1e-5),
}
GPU_SHAPES = {
    "7B, TP 2": LayerShape(4096, 1, 2048, 4096, kv_heads=16, queries=1, head_dim=128, ffn=5504, eps=1e-5),
    "34B, TP 8": LayerShape(4096, 1, 512, 8192, kv_heads=1, queries=8, head_dim=128, ffn=2752, eps=1e-5),
}


@dataclasses.dataclass(frozen=True)
class Error:
    """One quantity of one kernel. `plain` is the twin's error; None and a reason where it did not run."""

    what: str
    shape: str
    kernel: str
    dtype: str
    quantity: str
    error: float | None
    plain: float
    reason: str = ""


def teach_interpreter() -> None:
    """Conversion to bfloat16 rounds to the nearest even number, its arithmetic goes through float32, and a
    kernel's float arguments are float32, as on a GPU."""
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        raise SystemExit("triton is not installed: pip install triton==3.7.1") from None

    builder = interpreter.InterpreterBuilder
    cast, binary, converted = builder.cast_impl, builder.binary_op, interpreter._implicit_cvt

    def to_float(handle: Any) -> Any:
        wide = (handle.data.astype("uint32") << 16).view("float32")
        return interpreter.TensorHandle(wide, tl.float32)

    def rounded(handle: Any) -> Any:
        near = torch.from_numpy(handle.data.astype("float32")).to(torch.bfloat16).view(torch.uint16)
        return interpreter.TensorHandle(near.numpy(), tl.bfloat16)

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        if source.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
            return rounded(source)
        return cast(self, source, to)

    def binary_op(self: Any, left: Any, right: Any, operation: Callable[..., Any]) -> Any:
        if left.dtype.scalar != tl.bfloat16:
            return binary(self, left, right, operation)
        return rounded(binary(self, to_float(left), to_float(right), operation))

    def implicit_conversion(argument: Any) -> Any:
        if not isinstance(argument, float):
            return converted(argument)
        number = interpreter.TensorHandle(torch.tensor([argument]).numpy(), tl.float32)
        return tl.tensor(number, tl.float32)

    builder.cast_impl, builder.binary_op = cast_impl, binary_op
    interpreter._implicit_cvt = implicit_conversion
    with contextlib.suppress(ImportError):  # a function of CUDA's library, which Triton has too
        liger = importlib.import_module("liger_kernel.ops.rms_norm")
        liger.rsqrt = lambda x: tl.rsqrt(x)  # type: ignore[attr-defined]  # looked up when it is called


def plain_norm(form: str) -> Callable[..., torch.Tensor]:
    """Normalised in float32, rounded, times the weight: Llama's of transformers, with either root."""

    def call(x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        normed = wide / NORMS[form].root(wide.pow(2).mean(-1, keepdim=True), eps)
        return normed.to(x.dtype) * weight_D

    return call


# What is compared: its task, its candidates, its plain twin.
Subject = tuple[Task[Any], list[Candidate[Any]], Callable[..., Any]]


def subjects(shape: LayerShape, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Subject]]:
    for form in NORMS:
        yield form, (norm_task(shape, form, device, dtype), norm_candidates(form), plain_norm(form))
    yield "rotary", (rotary_task(shape, device, dtype), rotary_candidates(), rotary_formula)
    yield "swiglu", (swiglu_task(shape, device, dtype), swiglu_candidates(), swiglu_formula)


QUANTITIES = {
    "rmsnorm": ("y", "dx", "dw"),
    "rmsnorm_neox": ("y", "dx", "dw"),
    "rotary": ("q", "k", "v", "dqkv"),
    "swiglu": ("y", "dx"),
}


def errors_of(what: str, subject: Subject, shape: str, dtype: str) -> Iterator[Error]:
    """Rows of every kernel but the plain one."""
    task, candidates, plain = subject
    inputs = task.inputs(False)
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    exact = forward_backward(task, task.reference, exact_inputs)
    plain_errors = [
        relative_difference(*pair) for pair in zip(forward_backward(task, plain, inputs), exact, strict=True)
    ]
    for candidate in candidates:
        if candidate.name == "plain":
            continue
        names = QUANTITIES[what]
        try:
            found = forward_backward(task, candidate.load(), inputs)
        except (Unfit, ImportError) as reason:
            yield Error(what, shape, candidate.name, dtype, "", None, plain_errors[0], str(reason))
            continue
        for name, one, expected, twin in zip(names, found, exact, plain_errors, strict=True):
            yield Error(what, shape, candidate.name, dtype, name, relative_difference(one, expected), twin)


def all_errors() -> list[Error]:
    """On this machine's GPU, or through the interpreter."""
    device = torch.device("cpu" if IS_INTERPRETED else "cuda")
    if IS_INTERPRETED:
        teach_interpreter()
    return [
        error
        for name, shape in (INTERPRETED_SHAPES if IS_INTERPRETED else GPU_SHAPES).items()
        for dtype_name, dtype in DTYPES.items()
        for what, subject in subjects(shape, device, dtype)
        for error in errors_of(what, subject, name, dtype_name)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    errors = all_errors()
    if parser.parse_args().json:
        print(json.dumps([dataclasses.asdict(error) for error in errors]))
        return
    for row in errors:
        found = row.reason if row.error is None else f"{row.error:.3e}  plain {row.plain:.3e}"
        print(f"{row.what:13}{row.shape:10}{row.kernel:8}{row.dtype:10}{row.quantity:5} {found}")


if __name__ == "__main__":
    main()
