# SPDX-License-Identifier: Apache-2.0
"""How the model learns: batch, optimizer, learning rate schedule, validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator

from .errors import ConfigError, Problem
from .fields import REQUIRED, Concern, NonNegative, Positive, key
from .parallel import FORMATS_ALSO, StateFormat


@dataclass(frozen=True)
class BatchShape:
    """One step's batch, in sequences: global_ = micro * accumulation * data_parallel."""

    micro: int
    accumulation: int
    data_parallel: int
    global_: int


class BatchConfig(Concern):
    """Sequences in a step. Two of the three keys give the third, with the number of data parallel ranks."""

    train_micro_batch_size_per_gpu: Positive | None = key(
        None,
        "Sequences that one data parallel rank takes through the model at once.",
        aliases=("micro_batch_size",),
        derived="from the other two",
    )
    gradient_accumulation_steps: Positive | None = key(
        None, "Micro-batches whose gradients are summed before a step.", derived="from the other two, else 1"
    )
    train_batch_size: Positive | None = key(
        None, "Sequences in one step over all ranks.", derived="from the other two"
    )

    def batch_shape(self, data_parallel_size: int) -> BatchShape:
        """Solve for the batch on `data_parallel_size` ranks; ConfigError where it has no solution."""
        micro, accumulation = self.train_micro_batch_size_per_gpu, self.gradient_accumulation_steps
        total = self.train_batch_size
        if micro is None and total is None:
            raise ConfigError([_no_batch_size()])
        if total is None:
            assert micro is not None
            accumulation = accumulation or 1
            total = micro * accumulation * data_parallel_size
        elif micro is None:
            accumulation = accumulation or 1
            micro = total // (accumulation * data_parallel_size)
        elif accumulation is None:
            accumulation = total // (micro * data_parallel_size)
        if micro * accumulation * data_parallel_size != total:
            raise ConfigError([self._no_solution(data_parallel_size)])
        return BatchShape(micro, accumulation, data_parallel_size, total)

    def _no_solution(self, data_parallel_size: int) -> Problem:
        micro, accumulation = self.train_micro_batch_size_per_gpu, self.gradient_accumulation_steps
        factors = f"{data_parallel_size} data parallel ranks"
        step = data_parallel_size * (micro or 1) * (accumulation or 1)
        if accumulation is not None:
            factors = f"gradient_accumulation_steps={accumulation} x {factors}"
        if micro is not None:
            factors = f"train_micro_batch_size_per_gpu={micro} x {factors}"
        if micro is not None and accumulation is not None:
            constraint = f"is not {factors} = {step}"
            remedy = f"use {step}, or leave one of the three keys out"
        else:
            below = self.train_batch_size // step * step if self.train_batch_size else 0
            constraint = f"is not divisible by {factors}"
            remedy = f"use {below} or {below + step}" if below else f"use a multiple of {step}"
        return Problem("train_batch_size", self.train_batch_size, constraint, remedy)


def _no_batch_size() -> Problem:
    return Problem(
        "train_micro_batch_size_per_gpu",
        None,
        "is not set, and neither is train_batch_size",
        "set the sequences that one GPU takes at once, such as train_micro_batch_size_per_gpu: 1",
    )


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class OptimizerConfig(Concern):
    """Adam with decoupled weight decay, and gradient clipping."""

    optimizer_type: Annotated[Literal["adam", "adamw"], BeforeValidator(_lower)] = key(
        "adam",
        "Adam; both names mean decoupled weight decay, as with GPT-NeoX's fused Adam.",
        aliases=("optimizer.type",),
        also=("Adam", "AdamW"),
    )
    lr: float = key(REQUIRED, "Peak learning rate.", aliases=("optimizer.params.lr",), gt=0)
    adam_beta1: float = key(0.9, "Decay of Adam's mean of gradients.", ge=0, lt=1)
    adam_beta2: float = key(0.999, "Decay of Adam's mean of squared gradients.", ge=0, lt=1)
    adam_eps: float = key(1e-8, "Added to Adam's denominator.", aliases=("optimizer.params.eps",), gt=0)
    weight_decay: float = key(
        0.01,
        "Decoupled weight decay, per unit of learning rate; norms are left out.",
        aliases=("optimizer.params.weight_decay",),
        ge=0,
    )
    gradient_clipping: float = key(
        1.0, "Largest norm of the global gradient; 0 switches clipping off.", aliases=("clip_grad",), ge=0
    )
    exp_avg_dtype: StateFormat = key(
        "fp32", "Format of Adam's mean of gradients; bf16 is rounded stochastically.", also=FORMATS_ALSO
    )
    exp_avg_sq_dtype: StateFormat = key(
        "fp32",
        "Format of Adam's mean of squared gradients; bf16 is rounded stochastically.",
        also=FORMATS_ALSO,
    )
    store_param_remainders: bool = key(
        False,
        "Keep of the fp32 main parameters only the 16 bits that the bfloat16 weights lack; results "
        "are the same to a rounding.",
    )


class ScheduleConfig(Concern):
    """The learning rate over the iterations."""

    train_iters: Positive = key(REQUIRED, "Optimizer steps of the run.")
    lr_decay_iters: Positive = key(
        lambda known: known["train_iters"],
        "Step at which the learning rate has reached its minimum, warm-up included.",
        derived="train_iters",
    )
    lr_decay_style: Literal["cosine", "linear", "constant", "wsd"] = key(
        "cosine",
        "Shape of the decay; wsd stays at the peak and decays linearly over the last wsd_decay_iters.",
    )
    warmup: float | None = key(None, "Warm-up as a fraction of lr_decay_iters.", ge=0, le=1)
    warmup_iters: NonNegative = key(
        lambda known: round((known["warmup"] or 0.0) * known["lr_decay_iters"]),
        "Steps over which the learning rate rises linearly to lr.",
        derived="warmup * lr_decay_iters, else 0",
    )
    decay_lr_to: float | None = key(None, "Final learning rate as a fraction of lr.", ge=0, le=1)
    min_lr: float = key(0.0, "Final learning rate.", derived="decay_lr_to * lr, else 0", ge=0)
    wsd_decay_iters: NonNegative = key(
        lambda known: known["lr_decay_iters"] // 10,
        "Steps of the final decay of lr_decay_style wsd.",
        derived="a tenth of lr_decay_iters",
    )


class ValidationConfig(Concern):
    """Loss on held-out data, for each source by its name."""

    eval_interval: Positive = key(1000, "Steps between two evaluations on validation data.")
    eval_iters: NonNegative = key(100, "Global batches of each source in an evaluation; 0 switches it off.")
    eval_at_start: bool = key(True, "Evaluate before the first step too.")
    do_test: bool = key(True, "Evaluate on test data, where there is any, at the end of the run.")
