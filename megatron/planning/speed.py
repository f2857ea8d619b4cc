# SPDX-License-Identifier: Apache-2.0
"""How long a step takes: kernels of each stage, collectives over each link, what hides what, a pipeline.

docs/planning.md has the model's sources, what it says about published runs, and what it leaves out.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields

from megatron.neox_arguments.config import RunConfig
from megatron.planning.flops import flops_per_token
from megatron.planning.kernels import KernelClock
from megatron.planning.links import data_ring, send_seconds, tensor_ring
from megatron.planning.machine import Machine
from megatron.planning.memory import Choice, element_bytes, stage_parameters
from megatron.planning.rates import with_attention
from megatron.planning.rings import Ring
from megatron.planning.software import Software, software_of
from megatron.planning.stages import StageSeconds, stage_seconds

# megatron-core's bucket where reduce_bucket_size is not set: parameters, and more of them with more ranks
# (DistributedDataParallelConfig, distributed_data_parallel.py).
_LEAST_BUCKET, _BUCKET_OF_RANK = 40_000_000, 1_000_000


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by what they are spent on, as a rank of the slowest stage sees them.

    They are one after the other, so their sum is the step. `links` has what of communication is hidden.
    """

    matrices: float
    attention: float
    pointwise: float
    ends: float
    recompute: float
    beside: float
    tensor: float
    waiting: float
    sending: float
    gradients: float
    weights: float
    optimizer: float
    links: tuple[LinkUse, ...]
    # Of the forward passes alone, as an evaluation of as many sequences takes.
    forward_passes: float

    @property
    def total(self) -> float:
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """Seconds by the name that a report has for what they are spent on."""
        return {name: getattr(self, field) for field, name in _NAMES.items()}

    def shares(self) -> dict[str, float]:
        """What of a step goes where, the largest first."""
        return {
            name: part / self.total
            for name, part in sorted(self.parts().items(), key=lambda row: -row[1])
            if part > 0.005 * self.total
        }


@dataclass(frozen=True)
class LinkUse:
    """What a rank sends in a step over one kind of link, and how long that takes.

    Kernels run beside `hidden_seconds` of it, and `waited_seconds` are waited for.
    """

    name: str
    is_between_nodes: bool
    sent_bytes: float
    waited_seconds: float
    hidden_seconds: float


_NAMES = {
    "matrices": "matrix products",
    "attention": "attention",
    "pointwise": "pointwise kernels",
    "ends": "embedding, output layer and loss",
    "recompute": "computing again",
    "beside": "kernels slowed by collectives",
    "tensor": "tensor parallel communication",
    "waiting": "waiting in the pipeline",
    "sending": "sending between stages",
    "gradients": "reducing gradients",
    "weights": "gathering weights",
    "optimizer": "optimizer",
}
assert set(_NAMES) == {field.name for field in fields(StepTime)} - {"links", "forward_passes"}


@functools.lru_cache(maxsize=8)
def _clock(machine: Machine, software: Software, size: int) -> KernelClock:
    rates = machine.rates
    if software.attention is not None:
        rates = with_attention(rates, machine.gpu, software.attention)
    return KernelClock(machine.gpu, rates, software, size)


def step_time(
    cfg: RunConfig,
    choice: Choice,
    machine: Machine,
    padded_vocab: int,
    accumulation: int,
    software: Software | None = None,
) -> StepTime:
    """A step of `accumulation` micro-batches on every data parallel rank.

    What pads the vocabulary is computed too. `software` stands for that of another framework; None is this
    repository's.
    """
    software = software or software_of(cfg)
    size = element_bytes(cfg)
    clock = _clock(machine, software, size)
    ring = tensor_ring(machine, machine.rates, choice)
    stages = _stages(clock, cfg, choice, ring, padded_vocab)
    slowest = max(stages, key=lambda stage: stage.total)
    handed_on = _between_stages(cfg, choice, machine, software.chunks, accumulation)
    fill = (_way_through(stages, choice) - slowest.total) / software.chunks
    gradients, weights = _between_copies(cfg, choice, machine, padded_vocab, stages[0])
    count = stage_parameters(cfg.model, padded_vocab, choice.tensor, choice.pipeline, 0)
    shards = machine.gpus // (choice.tensor * choice.pipeline) if cfg.parallel.zero_stage == 1 else 1
    slowed = machine.rates.slowdown_beside_collectives * (gradients.hidden_seconds + weights.hidden_seconds)
    tensor = LinkUse(
        "tensor parallel communication",
        ring.crosses_nodes,
        slowest.tensor_bytes * accumulation,
        slowest.tensor.total * accumulation,
        slowest.tensor_hidden * accumulation,
    )
    return StepTime(
        matrices=slowest.matrices.total * accumulation,
        attention=slowest.attention.total * accumulation,
        pointwise=slowest.pointwise.total * accumulation,
        ends=slowest.ends.total * accumulation,
        recompute=slowest.recompute * accumulation,
        beside=slowest.beside * accumulation + slowed,
        tensor=tensor.waited_seconds,
        waiting=fill,
        sending=handed_on.waited_seconds,
        gradients=gradients.waited_seconds,
        weights=weights.waited_seconds,
        optimizer=clock.optimizer(count, shards),
        links=tuple(use for use in (tensor, handed_on, gradients, weights) if use.sent_bytes),
        forward_passes=slowest.forward * (accumulation + (choice.pipeline - 1) / software.chunks),
    )


def _stages(
    clock: KernelClock, cfg: RunConfig, choice: Choice, ring: Ring, padded_vocab: int
) -> list[StageSeconds]:
    """The first, a middle and the last stage: as many of them as there are."""
    last = choice.pipeline - 1
    return [
        stage_seconds(
            clock,
            cfg.model,
            choice,
            ring,
            cfg.model.num_layers // choice.pipeline,
            vocabulary=-(-padded_vocab // choice.tensor),
            is_first=stage == 0,
            is_last=stage == last,
            first_layer=stage * (cfg.model.num_layers // choice.pipeline),
        )
        for stage in sorted({0, min(1, last), last})
    ]


def _between_stages(
    cfg: RunConfig, choice: Choice, machine: Machine, chunks: int, accumulation: int
) -> LinkUse:
    """Hidden states and their gradients, handed on by every chunk of a stage; each is waited for."""
    handed_bytes = element_bytes(cfg) * choice.micro * cfg.model.seq_length * cfg.model.hidden_size
    handed_bytes //= choice.tensor
    times = 2 * chunks * (accumulation + choice.pipeline - 1) if choice.pipeline > 1 else 0
    seconds = times * send_seconds(machine, machine.rates, choice, handed_bytes)
    is_between = machine.gpus // choice.pipeline >= machine.gpus_per_node
    return LinkUse("sending between stages", is_between, times * handed_bytes, seconds, 0.0)


def _way_through(stages: list[StageSeconds], choice: Choice) -> float:
    """A micro-batch's way through all stages and back: what fills and drains the pipeline, and one's work."""
    if choice.pipeline == 1:
        return stages[0].total
    return stages[0].total + stages[-1].total + (choice.pipeline - 2) * stages[1].total


def _between_copies(
    cfg: RunConfig, choice: Choice, machine: Machine, padded_vocab: int, stage: StageSeconds
) -> tuple[LinkUse, LinkUse]:
    """Gradients that are reduced, and weights that are gathered, between the copies of the model.

    Gradients go bucket by bucket beside the last micro-batch's backward pass, weights beside the first one's
    forward pass: one bucket of each is never hidden. The first stage is the last to end its backward pass.
    Without ZeRO-1 gradients are reduced to all copies, and there are no weights to gather.
    """
    ring = data_ring(machine, machine.rates, choice)
    parallel, zero = cfg.parallel, cfg.parallel.zero_stage == 1
    reduces_early, gathers_late = parallel.overlaps(on_gpu=True, data_ranks=ring.ranks)
    count = stage_parameters(cfg.model, padded_vocab, choice.tensor, choice.pipeline, 0)
    bucket = parallel.reduce_bucket_size or max(_LEAST_BUCKET, _BUCKET_OF_RANK * ring.ranks)
    buckets = math.ceil(count / bucket)

    def use(name: str, whole_bytes: float, window: float, is_overlapped: bool) -> LinkUse:
        seconds = ring.in_buckets(whole_bytes, buckets)
        waited = max(seconds / buckets, seconds - window) if is_overlapped else seconds
        return LinkUse(name, ring.crosses_nodes, ring.sent(whole_bytes), waited, seconds - waited)

    of_gradients = (4 if cfg.precision.grad_accum_dtype == "fp32" else 2) * count * (1 if zero else 2)
    of_weights = element_bytes(cfg) * count if zero else 0.0
    return (
        use("reducing gradients", of_gradients, stage.backward, reduces_early),
        use("gathering weights", of_weights, stage.forward, gathers_late),
    )


def utilisation(
    cfg: RunConfig, machine: Machine, vocab: int, tokens_per_step: int, step_seconds: float
) -> float:
    """MFU: the model's FLOPs over what the GPUs could do in that time."""
    flops, _ = flops_per_token(cfg.model, vocab)
    return flops * tokens_per_step / step_seconds / (machine.gpus * machine.gpu.bf16_tflops * 1e12)
