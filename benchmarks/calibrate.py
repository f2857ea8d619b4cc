#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Times of one GPU's kernels at the shapes of a run, for `deepy.py … --plan --calibration FILE.json`.

    python benchmarks/calibrate.py configs/llemma_34b.yml configs/proof_pile_2.yml --output h200.json

Measures what a plan is counted with: the layers' matrix products, forward and both gradients, for the tensor
parallel sizes and micro-batches that a plan tries; the same of the output layer; attention with each kernel
of torch; the optimizer's update. A time is the median of --calls calls by the GPU's own clock, after three
that do not count, with the caches as they leave them. Whole steps, which also say what clock a GPU keeps
under load, are measured by benchmarks/train_gpu.py; give both files to the plan.

On a CPU it says so and writes nothing.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron.neox_arguments.config import ModelConfig
from megatron.neox_arguments.errors import UserError, exit_on_user_error
from megatron.neox_arguments.loader import load_config
from megatron.neox_arguments.whole_files import write_whole
from megatron.planning.calibration import Attention, Calibration, MatrixProduct, OptimizerStep
from megatron.planning.kernels import layer_matrices
from megatron.planning.memory import Choice

ROOT = Path(__file__).resolve().parents[1]
WARM_UP_CALLS = 3
# Weights of the optimizer that is measured: 18 bytes each.
UPDATED_PARAMETERS = 500_000_000
BACKENDS = {"torch_flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}

# Seconds of one call, the median of so many.
Clock = Callable[[Callable[[], Any], int], float]


def gpu_clock(call: Callable[[], Any], calls: int) -> float:
    """By CUDA's events, each call between two of them."""
    for _ in range(WARM_UP_CALLS):
        call()
    seconds = []
    for _ in range(calls):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        last.synchronize()
        seconds.append(first.elapsed_time(last) / 1000)
    return statistics.median(seconds)


def cpu_clock(call: Callable[[], Any], calls: int) -> float:
    """By the machine's clock, for tests."""
    call()
    seconds = []
    for _ in range(calls):
        before = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - before)
    return max(statistics.median(seconds), 1e-9)


def product_shapes(
    model: ModelConfig, vocab: int, tensors: tuple[int, ...], micros: tuple[int, ...]
) -> list[tuple[int, int, int]]:
    """(m, n, k) of every product of a step, forward and both gradients, each once."""
    found: dict[tuple[int, int, int], None] = {}
    for tensor in tensors:
        if model.num_attention_heads % tensor or model.intermediate_size % tensor:
            continue
        for micro in micros:
            shapes = [
                (shape.m, shape.n, shape.k)
                for shape in layer_matrices(model, Choice(tensor, 1, micro, "none", tensor > 1))
            ]
            shapes.append((micro * model.seq_length, -(-vocab // tensor), model.hidden_size))
            for m, n, k in shapes:
                found.update(dict.fromkeys([(m, n, k), (m, k, n), (k, n, m)]))
    return list(found)


def matrix_products(
    shapes: list[tuple[int, int, int]], device: torch.device, clock: Clock, calls: int
) -> Iterator[MatrixProduct]:
    """As a linear layer calls them: the second operand is a weight as it is stored, [n, k]."""
    for m, n, k in shapes:
        left = torch.randn(m, k, device=device, dtype=torch.bfloat16)
        right = torch.randn(n, k, device=device, dtype=torch.bfloat16)
        seconds = clock(functools.partial(torch.nn.functional.linear, left, right), calls)
        yield MatrixProduct(m=m, n=n, k=k, seconds=seconds)


def attentions(
    model: ModelConfig,
    tensors: tuple[int, ...],
    micros: tuple[int, ...],
    device: torch.device,
    clock: Clock,
    calls: int,
) -> Iterator[Attention]:
    """Causal, with the heads of a rank; the fastest of torch's kernels that run counts for a plan."""
    for tensor in tensors:
        if model.num_attention_heads % tensor:
            continue
        heads, kv_heads = model.num_attention_heads // tensor, max(1, model.num_kv_heads // tensor)
        for micro in micros:
            times = _attention_times(
                micro, model.seq_length, heads, kv_heads, model.head_dim, device, clock, calls
            )
            if not times:
                continue
            kernel, (forward, backward) = min(times.items(), key=lambda one: sum(one[1]))
            yield Attention(
                sequences=micro,
                tokens=model.seq_length,
                heads=heads,
                kv_heads=kv_heads,
                head_dim=model.head_dim,
                kernel=kernel,
                forward_seconds=forward,
                backward_seconds=backward,
            )


def _attention_times(
    sequences: int,
    tokens: int,
    heads: int,
    kv_heads: int,
    width: int,
    device: torch.device,
    clock: Clock,
    calls: int,
) -> dict[str, tuple[float, float]]:
    """Forward and backward seconds of each kernel that runs."""

    def tensor(number: int) -> torch.Tensor:
        shape = (sequences, number, tokens, width)
        return torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)

    q_BHSD, k_BKTD, v_BKTD = tensor(heads), tensor(kv_heads), tensor(kv_heads)
    found = {}
    for name, backend in BACKENDS.items():

        def forward(backend: SDPBackend = backend) -> torch.Tensor:
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(
                    q_BHSD, k_BKTD, v_BKTD, is_causal=True, enable_gqa=heads != kv_heads
                )

        try:
            out_BHSD = forward()
        except RuntimeError:  # torch has no such kernel for this device or shape
            continue
        gradient = torch.randn_like(out_BHSD)

        def backward(out: torch.Tensor = out_BHSD, gradient: torch.Tensor = gradient) -> Any:
            return torch.autograd.grad(out, (q_BHSD, k_BKTD, v_BKTD), gradient, retain_graph=True)

        found[name] = clock(forward, calls), clock(backward, calls)
    return found


def optimizer_step(parameters: int, device: torch.device, clock: Clock, calls: int) -> OptimizerStep:
    """The norm and clipping of gradients, the fused update, and the copy to bfloat16 weights."""
    copies, gradients, first, second = (torch.zeros(parameters, device=device) for _ in range(4))
    weights = torch.zeros(parameters, device=device, dtype=torch.bfloat16)
    step = torch.ones((), device=device)

    def update() -> None:
        gradients.mul_(torch.clamp(1.0 / (torch.linalg.vector_norm(gradients) + 1e-6), max=1.0))
        torch._fused_adamw_(
            [copies], [gradients], [first], [second], [], [step], lr=1e-4, beta1=0.9, beta2=0.95,
            weight_decay=0.1, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip
        weights.copy_(copies)

    return OptimizerStep(parameters=parameters, seconds=clock(update, calls))


def measure(
    model: ModelConfig,
    vocab: int,
    device: torch.device,
    clock: Clock,
    *,
    tensors: tuple[int, ...],
    micros: tuple[int, ...],
    calls: int,
    parameters: int,
    origin: dict[str, str],
) -> Calibration:
    """All of it, as the file of a calibration."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    shapes = product_shapes(model, vocab, tensors, micros)
    return Calibration(
        version=1,
        gpu=name,
        origin=origin,
        matrix_products=tuple(matrix_products(shapes, device, clock, calls)),
        attention=tuple(attentions(model, tensors, micros, device, clock, calls)),
        optimizers=(optimizer_step(parameters, device, clock, calls),),
    )


def origin() -> dict[str, str]:
    """Where a file comes from."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "command": shlex.join(["python", *sys.argv]),
        "torch": torch.__version__,
        "commit": found.stdout.strip() or "not known: no git here",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", type=Path, help="YAML files of the run")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--tensor", type=int, nargs="+", default=[1, 2, 4, 8], help="tensor parallel sizes")
    parser.add_argument("--micro", type=int, nargs="+", default=[1, 2, 4], help="sequences of a micro-batch")
    parser.add_argument("--calls", type=int, default=20)
    options = parser.parse_args()
    cfg = load_config(options.configs, [], check_files=False)[0]
    if not torch.cuda.is_available():
        raise UserError(
            "calibrate: there is no GPU here, and a plan is for GPUs; run it on one of the kind you plan for"
        )
    if cfg.model.vocab_size is None:
        raise UserError("vocab_size: is not in the configuration; add it, as in configs/llemma_34b.yml")
    found = measure(
        cfg.model,
        cfg.model.vocab_size,
        torch.device("cuda"),
        gpu_clock,
        tensors=tuple(options.tensor),
        micros=tuple(options.micro),
        calls=options.calls,
        parameters=UPDATED_PARAMETERS,
        origin=origin(),
    )
    write_whole(options.output, json.dumps(found.model_dump(), indent=1) + "\n")
    print(f"{options.output}: {', '.join(found.measured())} of {found.gpu}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_on_user_error(lambda _: main())(None))
