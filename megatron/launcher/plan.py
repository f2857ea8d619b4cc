# SPDX-License-Identifier: Apache-2.0
"""Which ranks a run gets on this machine, and what the configuration amounts to on them, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from megatron.launcher.devices import GpuCount
from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import ConfigError, Problem


@dataclass(frozen=True)
class RankPlan:
    """Processes to start, why so many, and whether they have a GPU each (None: not known from here)."""

    ranks: int
    reason: str
    on_gpu: bool | None = None

    def __str__(self) -> str:
        device = {True: " on GPU", False: " on CPU", None: ""}[self.on_gpu]
        return f"{counted(self.ranks, 'rank')}{device} ({self.reason})"


def plan_ranks(cfg: RunConfig, gpus: GpuCount) -> RankPlan:
    """One rank a GPU; on a machine without GPUs one copy of the model; `cpu_ranks` overrides both.

    Raises:
        ConfigError: num_gpus asks for more GPUs than there are.
    """
    launch = cfg.launch
    if launch.cpu_ranks is not None:
        hidden = f"; {counted(gpus.count, 'GPU')} left alone" if gpus.count else ""
        return RankPlan(launch.cpu_ranks, f"cpu_ranks={launch.cpu_ranks}{hidden}", on_gpu=False)
    if launch.num_gpus is not None and launch.num_gpus > gpus.count:
        remedy = f"use num_gpus={gpus.count}" if gpus.count else "leave num_gpus out, or use cpu_ranks"
        constraint = f"{counted(gpus.count, 'GPU')} found here (by {gpus.found_by})"
        raise ConfigError([Problem("num_gpus", launch.num_gpus, constraint, remedy)])
    if gpus.count:
        reason = f"num_gpus={launch.num_gpus}" if launch.num_gpus else f"one a GPU, by {gpus.found_by}"
        return RankPlan(launch.num_gpus or gpus.count, reason, on_gpu=True)
    tensor, pipeline = cfg.parallel.model_parallel_size, cfg.parallel.pipeline_size
    copy = f"tensor {tensor} x pipeline {pipeline}"
    reason = f"no GPU here, so one copy of the model: {copy}; --cpu-ranks N changes it"
    return RankPlan(cfg.parallel.model_ranks, reason, on_gpu=False)


def describe(cfg: RunConfig, ranks: int) -> str:
    """What the run amounts to on `ranks` ranks: layout, batch, tokens, learning rate, data, checkpoints.

    Raises:
        ConfigError: the batch keys have no solution on that many ranks.
    """
    rows = [
        ("model", _model(cfg)),
        ("layout", _layout(cfg, ranks)),
        ("batch", _batch(cfg, ranks)),
        ("length", _length(cfg, ranks)),
        ("learning rate", _learning_rate(cfg)),
        ("precision", f"{cfg.precision.dtype_name}, gradients in {cfg.precision.grad_accum_dtype}"),
        ("data", _data(cfg)),
        ("checkpoints", _checkpoints(cfg)),
    ]
    return "\n".join(f"{name:<14}{text}" for name, text in rows)


def torn_groups(ranks_by_machine: Sequence[int], tensor: int) -> str | None:
    """What is wrong where tensor parallel groups, `tensor` neighbouring ranks, lie on several machines."""
    ends = list(accumulate(ranks_by_machine))
    torn = sorted({end // tensor for end in ends[:-1] if end % tensor})
    if not torn:
        return None
    first = torn[0] * tensor
    each = max(ranks_by_machine)
    lies = "group lies" if len(torn) == 1 else "groups lie"
    return (
        f"{len(torn):,} tensor parallel {lies} on more than one machine, such as ranks {first}-"
        f"{first + tensor - 1}: every layer waits for the network; use a model_parallel_size that divides "
        f"the {each} ranks of a machine"
    )


def tokens_per_step(cfg: RunConfig, ranks: int) -> int:
    """Tokens one optimizer step takes in over all ranks."""
    return cfg.batch.batch_shape(ranks // cfg.parallel.model_ranks).global_ * cfg.model.seq_length


def _model(cfg: RunConfig) -> str:
    model = cfg.model
    vocabulary = "the tokenizer's" if model.vocab_size is None else f"{model.vocab_size:,}"
    return (
        f"{model.num_layers} layers, hidden {model.hidden_size:,}, {model.num_attention_heads} heads, "
        f"{model.num_kv_heads} KV heads, feed-forward {model.intermediate_size:,}, vocabulary {vocabulary}, "
        f"rotary base {model.rotary_emb_base:,.0f}"
    )


def _layout(cfg: RunConfig, ranks: int) -> str:
    parallel = cfg.parallel
    copies = ranks // parallel.model_ranks
    extras = [f"ZeRO stage {parallel.zero_stage}", f"recompute {_recompute(cfg)}"]
    if parallel.sequence_parallel:
        extras.insert(0, "sequence parallel")
    return (
        f"{counted(ranks, 'rank')} = tensor parallel {parallel.model_parallel_size} x pipeline "
        f"{parallel.pipeline_size} x data parallel {copies}; {', '.join(extras)}"
    )


def _recompute(cfg: RunConfig) -> str:
    parallel = cfg.parallel
    parts = ", ".join(parallel.recompute_modules)
    if parallel.recompute == "full" and parallel.recompute_method == "block":
        others = f" ({parts} in the others)" if parts else ""
        return f"full in {parallel.recompute_num_layers} layers a stage{others}"
    return f"{parallel.recompute} ({parts})" if parts else parallel.recompute


def _batch(cfg: RunConfig, ranks: int) -> str:
    shape = cfg.batch.batch_shape(ranks // cfg.parallel.model_ranks)
    return (
        f"{counted(shape.micro, 'sequence')} x {counted(shape.accumulation, 'accumulation step')} x "
        f"{shape.data_parallel} data parallel = {counted(shape.global_, 'sequence')} a step; "
        f"x {cfg.model.seq_length:,} tokens = {tokens_per_step(cfg, ranks):,} tokens a step"
    )


def _length(cfg: RunConfig, ranks: int) -> str:
    iterations = cfg.schedule.train_iters
    return f"{counted(iterations, 'iteration')} = {iterations * tokens_per_step(cfg, ranks):,} tokens"


def _learning_rate(cfg: RunConfig) -> str:
    schedule, peak = cfg.schedule, cfg.optimizer.lr
    style = schedule.lr_decay_style
    text = f"{schedule.warmup_iters:,} iterations up to {peak:g}, "
    if style == "constant":
        return text + "then constant"
    if style == "wsd":
        return text + f"constant, over the last {schedule.wsd_decay_iters:,} down to {schedule.min_lr:g}"
    return text + f"{style} down to {schedule.min_lr:g} at iteration {schedule.lr_decay_iters:,}"


def _data(cfg: RunConfig) -> str:
    data = cfg.data
    if data.data_path is not None:
        return f"{data.data_path}, split {data.split}"
    total = sum(data.train_data_weights) or 1.0
    shares = zip(data.data_names, data.train_data_weights, strict=False)
    train = ", ".join(f"{name} {weight / total:.1%}" for name, weight in shares)
    held_out = f"; validation on {len(data.valid_data_paths)}, test on {len(data.test_data_paths)} sources"
    return (train or "none given") + held_out


def _checkpoints(cfg: RunConfig) -> str:
    checkpoint = cfg.checkpoint
    start = "fresh weights" if checkpoint.load is None else f"from {checkpoint.load}"
    if checkpoint.save is None:
        return f"{start}; save is not set: nothing is kept"
    every = checkpoint.checkpoint_factor
    how_often = "at the end" if every is None else f"every {counted(every, 'iteration')}"
    uploads = "" if checkpoint.s3_path is None else f", uploaded to {checkpoint.s3_path}"
    return f"{start}; {how_often} into {checkpoint.save}{uploads}"


def counted(number: int, noun: str) -> str:
    """`1 node`, `32 nodes`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
