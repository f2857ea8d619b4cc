# SPDX-License-Identifier: Apache-2.0
"""The plan of a run as one object: arithmetic, but for the memory, which is measured where torch is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron.launcher.plan import tokens_per_step
from megatron.neox_arguments.checks import check_world
from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import ConfigError, Problem, UserError
from megatron.neox_arguments.model import pad_vocab
from megatron.planning.epochs import SourceUse, source_uses
from megatron.planning.flops import flops_per_token, parameter_counts
from megatron.planning.gpus import fp8_problems
from megatron.planning.groups import Layout
from megatron.planning.layouts import Candidate, candidates, evaluate, fastest, nearest
from megatron.planning.length import Length, length_of
from megatron.planning.machine import RESERVED_BYTES, Machine
from megatron.planning.measured import Building, missing_packages
from megatron.planning.memory import Memory, choice_of, stage_memory, stage_parameters
from megatron.planning.published import PublishedRun, published_run
from megatron.planning.recompute import Settled, settle
from megatron.planning.saves import saves_of
from megatron.planning.sensitivity import Swing, swings

_SUGGESTIONS = 5
_NEAREST = 3


@dataclass(frozen=True)
class Stage:
    """A pipeline stage: parameters and memory of each of its ranks."""

    stage: int
    rank: int
    parameters: int
    memory: Memory


@dataclass(frozen=True)
class Checkpoints:
    """Bytes of one checkpoint, and how many are written and kept. Weights are in the run's precision.

    Milestones are never removed: `milestones` of those kept are such.
    """

    bytes_each: int
    weights_bytes: int
    seconds_each: float
    written: int
    kept: int
    milestones: int


@dataclass(frozen=True)
class Plan:
    """Everything `--plan` says."""

    cfg: RunConfig
    machine: Machine
    layout: Layout
    vocab: int
    accumulation: int
    sequences_per_step: int
    tokens_per_step: int
    stages: list[Stage]
    is_measured: bool
    not_measured_because: str | None
    sources: list[SourceUse]
    run: Candidate
    mfu: float
    mfu_is_given: bool
    checkpoints: Checkpoints
    length: Length
    swings: list[Swing]
    suggestions: list[Candidate]
    remedies: list[Candidate]
    published: PublishedRun | None
    settled: Settled | None = None

    @property
    def fullest(self) -> Stage:
        return max(self.stages, key=lambda stage: stage.memory.total)

    @property
    def fits(self) -> bool:
        return self.fullest.memory.total <= self.machine.planned_bytes

    @property
    def steps(self) -> int:
        return self.cfg.schedule.train_iters

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    @property
    def flops_per_token(self) -> float:
        return flops_per_token(self.cfg.model, self.vocab)[0]

    @property
    def tokens_per_second(self) -> float:
        """Over all GPUs, at the plan's MFU."""
        peak = self.machine.gpus * self.machine.gpu.bf16_tflops * 1e12
        return self.mfu * peak / self.flops_per_token

    @property
    def gpu_hours(self) -> float:
        """Of the steps; `length` has what evaluations and saves add."""
        return self.tokens / self.tokens_per_second / 3600 * self.machine.gpus

    @property
    def hours(self) -> float:
        """From the first step to the last save."""
        return self.length.total_seconds / 3600


def make_plan(cfg: RunConfig, machine: Machine, mfu: float | None = None) -> Plan:
    """The plan of `cfg` on `machine`; `mfu` is a share of the peak, None takes the model's.

    Raises:
        UserError: the run cannot be laid out on that many GPUs, they have not the fp8 that it asks for, or
            its vocabulary is not known.
    """
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(f"--mfu={mfu:g}: must be over 0 and at most 1; write 0.4 for 40%")
    vocab = cfg.model.vocab_size
    if vocab is None:
        remedy = "set it for the plan, as --set vocab_size=32000"
        raise ConfigError(
            [Problem("vocab_size", None, "is the tokenizer's, which a plan does not read", remedy)]
        )
    problems = [*check_world(cfg, machine.gpus), *fp8_problems(cfg, machine.gpu)]
    if problems:
        raise ConfigError(problems)
    settled = None
    if cfg.parallel.recompute == "auto":
        cfg, settled = settle(cfg, machine.gpus, vocab, machine.planned_bytes)
    tensor, pipeline = cfg.parallel.model_parallel_size, cfg.parallel.pipeline_size
    layout = Layout(tensor, pipeline, machine.gpus // (tensor * pipeline))
    padded = pad_vocab(vocab, cfg.model.make_vocab_size_divisible_by, tensor)
    stages = sorted({0, min(1, pipeline - 1), pipeline - 1})
    lacking = missing_packages()
    building = None
    if not lacking:
        ranks = [layout.first_rank_of_stage(stage) for stage in stages]
        building = Building(cfg, vocab, padded, ranks, machine.gpus)

    shape = cfg.batch.batch_shape(layout.data)
    run = evaluate(cfg, choice_of(cfg, machine.gpus), machine, vocab, shape.global_)
    found = list(candidates(cfg, machine, vocab, shape.global_))
    sources = source_uses(cfg, cfg.schedule.train_iters * shape.global_)
    measured = _measured(building, stages) if building is not None else _by_arithmetic(
        cfg, padded, machine, shape.accumulation, stages
    )  # fmt: skip
    fits = max(stage.memory.total for stage in measured) <= machine.planned_bytes
    checkpoints = checkpoints_of(cfg, vocab, machine)
    # A given MFU says how long a step takes, and the model what share of it the forward passes are.
    slower = run.mfu / mfu if mfu is not None else 1.0
    length = length_of(
        cfg,
        machine,
        step_seconds=slower * run.time.total,
        forward_seconds=slower * run.time.forward_passes,
        checkpoint_bytes=checkpoints.bytes_each,
    )
    return Plan(
        cfg=cfg,
        machine=machine,
        layout=layout,
        vocab=vocab,
        accumulation=shape.accumulation,
        sequences_per_step=shape.global_,
        tokens_per_step=tokens_per_step(cfg, machine.gpus),
        stages=measured,
        is_measured=building is not None,
        not_measured_because=f"{' and '.join(lacking)} not installed" if lacking else None,
        sources=sources,
        run=run,
        mfu=run.mfu if mfu is None else mfu,
        mfu_is_given=mfu is not None,
        checkpoints=checkpoints,
        length=length,
        swings=swings(cfg, run.choice, machine, padded, shape.accumulation),
        suggestions=fastest(found, machine.planned_bytes, _SUGGESTIONS),
        remedies=[] if fits else nearest(found, run, machine.planned_bytes, _NEAREST),
        published=published_run(cfg.model),
        settled=settled,
    )


def _measured(building: Building, stages: list[int]) -> list[Stage]:
    return [
        Stage(stage, built.rank, built.parameters, replace(built.memory, reserved=RESERVED_BYTES))
        for stage, built in zip(stages, building.wait(), strict=True)
    ]


def _by_arithmetic(
    cfg: RunConfig, padded: int, machine: Machine, accumulation: int, stages: list[int]
) -> list[Stage]:
    choice = choice_of(cfg, machine.gpus)
    stage_ranks = machine.gpus // choice.pipeline
    return [
        Stage(
            stage,
            stage * stage_ranks,
            stage_parameters(cfg.model, padded, choice.tensor, choice.pipeline, stage),
            replace(
                stage_memory(cfg, choice, padded, machine.gpus, accumulation, stage), reserved=RESERVED_BYTES
            ),
        )
        for stage in stages
    ]


def checkpoints_of(cfg: RunConfig, vocab: int, machine: Machine) -> Checkpoints:
    """A checkpoint holds each weight once, and the optimizer's float32 copy and two moments of each."""
    embedding, others = parameter_counts(cfg.model, vocab)
    parameters = others + (embedding if cfg.model.no_weight_tying else 0)
    weights = parameters * (2 if cfg.precision.dtype_name == "bfloat16" else 4)
    whole = weights + 12 * parameters
    saves = saves_of(cfg)
    return Checkpoints(
        whole, weights, whole / machine.disk_bytes_per_second, saves.written, saves.kept, saves.milestones
    )
