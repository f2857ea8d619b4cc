# SPDX-License-Identifier: Apache-2.0
"""From a configuration to something that can be trained: model, gradients, optimizer, first state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from megatron.backend import Backend, cpu_products
from megatron.backend.cpu_engine import keep_freed_memory
from megatron.checkpointing.record import BASE_FILES, CheckpointRecord
from megatron.checkpointing.state import Trainable, layout_of, load_all, load_weights
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.model import BuiltModel, build, dtype_of
from megatron.model.rotary import PeriodChange
from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import UserError, shown
from megatron.tokenizer import Tokenizer, pad_vocab
from megatron.trainer.adam import give_to_megatron_core, precision_aware
from megatron.trainer.judge import Ledger
from megatron.trainer.number_formats import StateFormats
from megatron.trainer.overlap import gather_in_time, in_words, overlaps
from megatron.trainer.start import Start
from megatron.trainer.startup import StartUp


@dataclass
class Progress:
    """How far a run is. Sequences count from its first iteration and are the place in the data's order."""

    iteration: int = 0
    sequences_seen: int = 0
    tokens_seen: int = 0

    def advance(self, sequences: int, tokens: int) -> None:
        """One step is done, or skipped: its data are read either way."""
        self.iteration += 1
        self.sequences_seen += sequences
        self.tokens_seen += tokens


@dataclass
class TrainingState:
    """Everything a step works on."""

    built: BuiltModel
    trainable: Trainable
    data: dict[str, Any] | None = None  # the order that `progress` counts in
    progress: Progress = field(default_factory=Progress)
    rotary_history: list[dict[str, Any]] = field(default_factory=list)
    base_files: Path | None = None
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def model(self) -> DistributedDataParallel:
        return self.trainable.model

    @property
    def config(self) -> TransformerConfig:
        return self.built.config


def wrap(cfg: RunConfig, built: BuiltModel) -> Trainable:
    """Puts gradients into contiguous buffers, reduced over data parallel ranks, and adds the optimizer."""
    parallel, optimizer = cfg.parallel, cfg.optimizer
    is_sharded = parallel.zero_stage == 1
    reduces_early, gathers_late = overlaps(parallel, built.module)
    buffers = DistributedDataParallelConfig(
        grad_reduce_in_fp32=cfg.precision.grad_accum_dtype == "fp32",
        use_distributed_optimizer=is_sharded,
        overlap_grad_reduce=reduces_early,
        overlap_param_gather=gathers_late,
        bucket_size=parallel.reduce_bucket_size if reduces_early else None,
    )
    model = DistributedDataParallel(built.config, buffers, built.module)
    gather_in_time(model, layers_are_compiled=cfg.acceleration.torch_compile == "layer")
    dtype = dtype_of(cfg)
    core_config = OptimizerConfig(
        optimizer="adam",
        lr=optimizer.lr,
        min_lr=cfg.schedule.min_lr,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.adam_beta1,
        adam_beta2=optimizer.adam_beta2,
        adam_eps=optimizer.adam_eps,
        clip_grad=optimizer.gradient_clipping,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=is_sharded,
        overlap_param_gather=gathers_late,
    )
    core_optimizer = _optimizer(core_config, model, StateFormats.of(cfg))
    built.config.finalize_model_grads_func = finalize_model_grads
    built.config.grad_scale_func = core_optimizer.scale_loss
    if reduces_early:
        built.config.no_sync_func = model.no_sync
    if next(built.module.parameters()).device.type == "cpu":
        keep_freed_memory()
        cpu_products.take_the_faster_library()
    return Trainable(model, core_optimizer)


def _optimizer(
    core_config: OptimizerConfig, model: DistributedDataParallel, formats: StateFormats
) -> MegatronOptimizer:
    """megatron-core's optimizer with states in `formats`.

    Gradients in bfloat16 go the precision-aware way too, which reads them as they are: the other way makes a
    float32 copy of all of them. Without ZeRO-1 megatron-core has only that one.
    """
    if formats.are_plain or not core_config.use_distributed_optimizer:
        return get_megatron_optimizer(core_config, [model])
    # Set behind the back of its constructor, which asks for TransformerEngine.
    core_config.use_precision_aware_optimizer_no_fp8_or_ds_fp8 = True
    with precision_aware(formats):
        optimizer = get_megatron_optimizer(core_config, [model])
    for one in optimizer.chained_optimizers:
        one.config.use_precision_aware_optimizer = True
        one.config.exp_avg_dtype, one.config.exp_avg_sq_dtype = formats.exp_avg, formats.exp_avg_sq
        one.config.store_param_remainders = formats.remainders
    return optimizer


def check_world(cfg: RunConfig, backend: Backend, padded_vocab_size: int) -> None:
    """Refuses what a layout cannot do, by name.

    Raises:
        UserError: see the message.
    """
    if padded_vocab_size % backend.tensor_parallel_size:
        raise UserError(
            f"vocab_size={padded_vocab_size}: is not divisible by "
            f"model_parallel_size={backend.tensor_parallel_size}"
        )


def prepare(
    cfg: RunConfig,
    backend: Backend,
    tokenizer: Tokenizer,
    start: Start | None,
    data: dict[str, Any],
    log: Callable[[str], None],
    startup: StartUp,
) -> TrainingState:
    """Builds the model and its optimizer, and fills them from a checkpoint where there is one.

    `data` describes the order in which the run reads its sequences; `startup` is told what is done.

    Raises:
        UserError: the checkpoint does not fit the run; the message lists every difference.
    """
    log(backend.describe())
    vocab_size = cfg.model.vocab_size or tokenizer.vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"vocab_size={vocab_size}: the tokenizer has {tokenizer.vocab_size} ids; set vocab_size: "
            f"{tokenizer.vocab_size}, or remove the key"
        )
    padded = pad_vocab(vocab_size, cfg.model.make_vocab_size_divisible_by, backend.tensor_parallel_size)
    check_world(cfg, backend, padded)
    if start is not None:
        start.record.refuse_other_shape(start.folder, cfg.model, vocab_size)
        _refuse_other_tokenizer(start.record, start.folder, tokenizer)
        if start.is_own:
            _refuse_other_data(start.record, start.folder, data, log)
            _refuse_other_zero_stage(start.record, start.folder, cfg)
    chosen, formats = give_to_megatron_core(), StateFormats.of(cfg)
    log(chosen if formats.are_plain else f"optimizer: AdamW of this repository, {formats.in_words()}")
    built = build(cfg, backend, vocab_size, padded, initialize=start is None, log=log)
    for line in (built.attention.describe(), *built.fused.describe(), *built.accelerators):
        log(line)
    state = TrainingState(built, wrap(cfg, built), data)
    for line in (*in_words(state.model, backend), *cpu_products.describe(dtype_of(cfg))):
        log(line)
    startup.done("model")
    if start is None:
        log("weights: drawn at random, no checkpoint given")
    else:
        _fill(state, cfg, backend, start, log)
        startup.done("loading")
    return state


def _refuse_other_data(
    record: CheckpointRecord, source: Path, data: dict[str, Any], log: Callable[[str], None]
) -> None:
    """Refuses to go on in another order than the one `sequences_seen` counts in."""
    if record.sequences_seen == 0:
        return
    if record.data is None:
        log(f"{source} does not say in which order it read its data; it is taken to be that of this run")
        return
    changes = list(_data_changes(record.data, data))
    if changes:
        raise UserError(
            "\n".join(
                f"{change}: the checkpoint {source} has read {record.sequences_seen:,} sequences {before}, "
                "and going on in another order would repeat some and skip others; put it back, or begin a "
                f"new run with its weights: load={source}, finetune=true and another save"
                for change, before in changes
            )
        )


def _data_changes(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each key whose value changes the order, with what it was."""
    for key in ("seq_length", "seed"):
        if before[key] != now[key]:
            yield f"{key}={now[key]}", f"with {before[key]}"
    theirs, ours = before["sources"], now["sources"]
    if [source["documents"] for source in theirs] != [source["documents"] for source in ours]:
        names = ", ".join(source["path"] for source in theirs)
        paths = [source["path"] for source in ours]
        yield f"train_data_paths={paths}", f"of {names}, with other documents or in another order"
        return
    shares = [source["share"] for source in theirs]
    if shares != [source["share"] for source in ours]:
        yield (
            f"train_data_weights={[round(source['share'], 6) for source in ours]}",
            f"with shares {[round(share, 6) for share in shares]}",
        )
        return
    for old, new in zip(theirs, ours, strict=True):
        passes = ("passes", "passes_shuffled_together")
        if [old[key] for key in passes] != [new[key] for key in passes]:
            yield (
                f"train_iters: asks for {new['passes']} passes over {new['name']}, the first "
                f"{new['passes_shuffled_together']} shuffled together",
                f"of an order with {old['passes']} passes, {old['passes_shuffled_together']} together",
            )


def _refuse_other_tokenizer(record: CheckpointRecord, source: Path, tokenizer: Tokenizer) -> None:
    if record.tokenizer_fingerprint and record.tokenizer_fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"vocab_file: the checkpoint {source} was made with another tokenizer (fingerprint "
            f"{record.tokenizer_fingerprint[:12]}, not {tokenizer.fingerprint[:12]}); use the one in "
            f"{source / BASE_FILES}"
        )


def _refuse_other_zero_stage(record: CheckpointRecord, source: Path, cfg: RunConfig) -> None:
    """megatron-core's optimizers of the two stages keep their states under different names."""
    before, now = record.run.get("parallel", {}).get("zero_stage"), cfg.parallel.zero_stage
    if before in (None, now) or not record.has_optimizer or cfg.checkpoint.no_load_optim:
        return
    raise UserError(
        f"zero_stage={now}: the optimizer's state in {source} is that of zero_stage={before}, and cannot be "
        f"read by the other's; use zero_stage: {before}, or begin with a new state: --set "
        f"load={source.parent} --set no_load_optim=true"
    )


def _fill(
    state: TrainingState,
    cfg: RunConfig,
    backend: Backend,
    start: Start,
    log: Callable[[str], None],
) -> None:
    source, record, is_own = start.folder, start.record, start.is_own
    takes_optimizer = is_own and record.has_optimizer and not cfg.checkpoint.no_load_optim
    if takes_optimizer:
        load_all(source, state.trainable, record, backend, with_random_state=not cfg.checkpoint.no_load_rng)
    else:
        load_weights(source, state.model.module)
        state.trainable.optimizer.reload_model_params()
    if is_own:
        state.progress = Progress(record.iteration, record.sequences_seen, record.tokens_seen)
        state.ledger = Ledger.of_record(record.recovery)
    what = "weights and optimizer" if takes_optimizer else "weights"
    log(f"loaded {what} of {source} (iteration {record.iteration}, {record.tokens_seen:,} tokens)")
    if takes_optimizer and (formats := _format_change(record, cfg)):
        log(formats)
    change = PeriodChange(record.rotary_base, cfg.model.rotary_emb_base)
    log(change.describe(cfg.model.head_dim))
    state.rotary_history = list(record.rotary_history)
    if change.is_change:
        state.rotary_history.append(
            {
                "iteration": state.progress.iteration,
                "from": change.checkpoint_base,
                "to": change.run_base,
            }
        )
    state.base_files = source / BASE_FILES


def _format_change(record: CheckpointRecord, cfg: RunConfig) -> str | None:
    """What to say where the optimizer's states were kept in other formats than this run keeps them in."""
    now, before = cfg.optimizer, record.run.get("optimizer", {})
    changes = [
        f"{key} was {shown(before.get(key, plain))} and is {shown(getattr(now, key))}"
        for key, plain in (
            ("exp_avg_dtype", "fp32"),
            ("exp_avg_sq_dtype", "fp32"),
            ("store_param_remainders", False),
        )
        if before.get(key, plain) != getattr(now, key)
    ]
    return f"optimizer states: {', '.join(changes)}; checkpoints hold float32" if changes else None


def record_of(
    state: TrainingState, cfg: RunConfig, backend: Backend, tokenizer: Tokenizer
) -> CheckpointRecord:
    """The record of a checkpoint written now."""
    return CheckpointRecord(
        iteration=state.progress.iteration,
        sequences_seen=state.progress.sequences_seen,
        tokens_seen=state.progress.tokens_seen,
        model=cfg.model.model_dump(mode="json"),
        vocab_size=state.built.vocab_size,
        padded_vocab_size=state.built.padded_vocab_size,
        tokenizer_fingerprint=tokenizer.fingerprint,
        dtype=cfg.precision.dtype_name,
        layout=layout_of(backend),
        has_optimizer=True,
        rotary_history=state.rotary_history,
        run=cfg.model_dump(mode="json"),
        data=state.data,
        recovery=state.ledger.to_record(),
    )
