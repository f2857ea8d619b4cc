# SPDX-License-Identifier: Apache-2.0
"""From measurements on one GPU to the rates that a plan is counted with.

Kernels come first: measured over modelled seconds at each measured shape. Whole steps come last: what they
take more than their kernels together is `sustained_share`, for which published runs stand otherwise.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

from megatron.neox_arguments.config import ModelConfig
from megatron.neox_arguments.errors import UserError
from megatron.planning.calibration import Calibration, Step
from megatron.planning.gpus import Gpu, find_gpu
from megatron.planning.kernels import KernelClock
from megatron.planning.memory import Choice, stage_parameters
from megatron.planning.plausible import implausible
from megatron.planning.rates import Corrections, Point, Rates, assumed_rates
from megatron.planning.rings import Ring
from megatron.planning.software import Software
from megatron.planning.stages import stage_seconds, without_tensor

# A step's kernels cannot take half of what was measured, nor less than nothing: the file is of another GPU,
# or of a machine that did something else.
_SUSTAINED_SHARES = (0.3, 1.2)
# Where the share of a step is looked for.
_SOUGHT_SHARES = (0.05, 5.0)
_NO_RING = Ring(ranks=1, bytes_per_second=math.inf, step_seconds=0.0, crosses_nodes=False)
_BFLOAT16_BYTES = 2


def calibrated_rates(gpu: Gpu, measured: Sequence[tuple[str, Calibration]]) -> Rates:
    """The rates of `gpu`, those that were measured from `measured`: names of files, and what is in them.

    Raises:
        UserError: one was measured on another GPU, or a kernel or the steps in one take what none can take.
    """
    for name, one in measured:
        measured_on = find_gpu(one.gpu)
        if measured_on is None or measured_on.name != gpu.name:
            raise UserError(
                f"--calibration={name}: was measured on {one.gpu}, and the plan is for {gpu.name}; "
                "name the former with --gpu, or measure on the latter"
            )
        for wrong in implausible(gpu, one):
            raise UserError(
                f"--calibration={name}: {wrong}; measure it again, with nothing else on the GPU, and write "
                "seconds"
            )
    calibration = functools.reduce(Calibration.joined, (one for _, one in measured))
    rates = replace(assumed_rates(gpu), calibration=calibration)
    points: dict[str, list[Point]] = {}
    for stage in (_kernels, _losses_and_optimizers):
        known = replace(
            rates, corrections=Corrections({kind: tuple(found) for kind, found in points.items()})
        )
        for kind, point in stage(gpu, known, calibration):
            points.setdefault(kind, []).append(point)
    rates = replace(rates, corrections=Corrections({kind: tuple(found) for kind, found in points.items()}))
    if not calibration.steps:
        return rates
    shares = [
        _sustained_share(gpu, rates, step, f"--calibration={name}: steps.{number}")
        for name, one in measured
        for number, step in enumerate(one.steps)
    ]
    share = statistics.median(shares)
    low, high = _SUSTAINED_SHARES
    if not low <= share <= high:
        names = " and ".join(name for name, one in measured if one.steps)
        raise _no_step(f"--calibration={names}: steps: take {1 / share:.2f} times")
    return replace(rates, sustained_share=share)


def _no_step(takes: str) -> UserError:
    return UserError(
        f"{takes} what their kernels take together, which no step does; "
        "measure the steps again, with nothing else on the GPU"
    )


def _kernels(gpu: Gpu, rates: Rates, calibration: Calibration) -> Iterator[tuple[str, Point]]:
    """What is corrected of matrix products, attention and pointwise kernels, each by itself."""
    alone = replace(rates, sustained_share=1.0)
    clock = KernelClock(gpu, alone, Software(), _BFLOAT16_BYTES)
    for product in calibration.matrix_products:
        shape = (product.m, product.n, product.k)
        yield "matrix_products", Point(shape, product.seconds / clock.matrix(*shape))
    for one in calibration.attention:
        model = ModelConfig(
            num_layers=1,
            hidden_size=one.heads * one.head_dim,
            num_attention_heads=one.heads,
            num_kv_heads=one.kv_heads,
            head_dim=one.head_dim,
            seq_length=one.tokens,
        )
        modelled = clock.attention(model, Choice(1, 1, one.sequences, "none", False))
        at = (one.sequences, one.tokens, one.heads, one.kv_heads, one.head_dim)
        yield "attention forward", Point(at, one.forward_seconds / modelled.forward)
        yield "attention backward", Point(at, one.backward_seconds / modelled.backward)
    for kernel in calibration.pointwise:
        software = Software(norm_fused=kernel.fused, rotary_fused=kernel.fused, swiglu_fused=kernel.fused)
        seconds = KernelClock(gpu, alone, software, _BFLOAT16_BYTES).pointwise(
            kernel.kernel, kernel.rows, kernel.columns
        )
        kind = f"{kernel.kernel} {'fused' if kernel.fused else 'plain'}"
        size = (kernel.rows, kernel.columns)
        yield f"{kind} forward", Point(size, kernel.forward_seconds / seconds.forward)
        yield f"{kind} backward", Point(size, kernel.backward_seconds / seconds.backward)


def _losses_and_optimizers(gpu: Gpu, rates: Rates, calibration: Calibration) -> Iterator[tuple[str, Point]]:
    """What is corrected of what is made of others: with their corrections."""
    alone = replace(rates, sustained_share=1.0)
    for loss in calibration.losses:
        clock = KernelClock(gpu, alone, Software(loss_fused=loss.fused), _BFLOAT16_BYTES)
        kind = f"loss {'fused' if loss.fused else 'plain'}"
        modelled = clock.cross_entropy(loss.rows, loss.hidden, loss.vocabulary)
        shape = (loss.rows, loss.hidden, loss.vocabulary)
        yield f"{kind} forward", Point(shape, loss.forward_seconds / modelled.forward)
        yield f"{kind} backward", Point(shape, loss.backward_seconds / modelled.backward)
    clock = KernelClock(gpu, alone, Software(), _BFLOAT16_BYTES)
    for update in calibration.optimizers:
        yield "optimizers", Point((update.parameters,), update.seconds / clock.update(update.parameters))


def _sustained_share(gpu: Gpu, rates: Rates, step: Step, entry: str) -> float:
    """The share that makes the model's step take what was measured: found by halving, as it only grows.

    Raises:
        UserError: the step at `entry` takes so much, or so little, that there is none in `_SOUGHT_SHARES`.
    """
    low, high = _SOUGHT_SHARES
    if step.seconds > modelled_step(gpu, replace(rates, sustained_share=low), step):
        raise _no_step(f"{entry}: takes more than {1 / low:g} times")
    if step.seconds < modelled_step(gpu, replace(rates, sustained_share=high), step):
        raise _no_step(f"{entry}: takes less than {1 / high:g} times")
    for _ in range(40):
        middle = math.sqrt(low * high)
        if modelled_step(gpu, replace(rates, sustained_share=middle), step) > step.seconds:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def modelled_step(gpu: Gpu, rates: Rates, step: Step) -> float:
    """Seconds of a step on one GPU that communicates with nobody."""
    shape = step.model
    model = ModelConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        seq_length=shape.seq_length,
        no_weight_tying=True,
    )
    software = Software(
        norm_fused=step.fused, rotary_fused=step.fused, swiglu_fused=step.fused, loss_fused=step.fused
    )
    clock = KernelClock(gpu, rates, software, _BFLOAT16_BYTES)
    modules = ("core_attn",) if step.recompute == "selective" else ()
    choice = Choice(step.tensor, 1, step.micro, step.recompute, False, recompute_modules=modules)
    vocabulary = -(-shape.vocab_size // step.tensor)
    stage = stage_seconds(
        clock, model, choice, _NO_RING, model.num_layers,
        vocabulary=vocabulary, is_first=True, is_last=True,
    )  # fmt: skip
    parameters = stage_parameters(model, vocabulary * step.tensor, step.tensor, 1, 0)
    return step.accumulation * without_tensor(stage).total + clock.optimizer(parameters, shards=1)
