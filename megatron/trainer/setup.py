# SPDX-License-Identifier: Apache-2.0
"""From a configuration to something that can be trained: model, gradients, optimizer, first state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from megatron.backend import Backend
from megatron.checkpointing import folders
from megatron.checkpointing.record import BASE_FILES, CheckpointRecord
from megatron.checkpointing.state import Trainable, layout_of, load_all, load_weights
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.model import BuiltModel, build, dtype_of
from megatron.model.rotary import PeriodChange
from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import UserError
from megatron.tokenizer import Tokenizer, pad_vocab
from megatron.trainer.adam import give_to_megatron_core


@dataclass
class Progress:
    """How far a run is. Sequences count from its first iteration and are the place in the data's order."""

    iteration: int = 0
    sequences_seen: int = 0
    tokens_seen: int = 0


@dataclass
class TrainingState:
    """Everything a step works on."""

    built: BuiltModel
    trainable: Trainable
    progress: Progress = field(default_factory=Progress)
    rotary_history: list[dict[str, Any]] = field(default_factory=list)
    base_files: Path | None = None

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
    buffers = DistributedDataParallelConfig(
        grad_reduce_in_fp32=cfg.precision.grad_accum_dtype == "fp32",
        use_distributed_optimizer=is_sharded,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        bucket_size=parallel.reduce_bucket_size if parallel.overlap_grad_reduce else None,
    )
    model = DistributedDataParallel(built.config, buffers, built.module)
    dtype = dtype_of(cfg)
    core_optimizer = get_megatron_optimizer(
        OptimizerConfig(
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
            overlap_param_gather=parallel.overlap_param_gather,
        ),
        [model],
    )
    built.config.finalize_model_grads_func = finalize_model_grads
    built.config.grad_scale_func = core_optimizer.scale_loss
    if parallel.overlap_grad_reduce:
        built.config.no_sync_func = model.no_sync
    return Trainable(model, core_optimizer)


def _source_of(cfg: RunConfig, log: Callable[[str], None]) -> tuple[Path | None, bool]:
    """The checkpoint to start from, and whether it is this run's own (then all of its state is taken)."""
    checkpoint = cfg.checkpoint
    save, load, iteration = checkpoint.save, checkpoint.load, checkpoint.iteration
    goes_back = load is not None and load == save and iteration is not None
    # An `iteration` of another folder is where this run began: the same command goes on all the same.
    own = folders.find(save) if save is not None and not goes_back else None
    if own is not None:
        if load not in (None, save):
            log(f"resuming {own}: `save` holds a checkpoint, so `load` ({load}) is not read")
        return own, True
    if load is None:
        return None, False
    found = folders.find(load, iteration)
    if goes_back:
        log(f"going back to {found}; checkpoints after it are replaced as the run comes to them")
    elif found is None and load != save:
        raise UserError(
            f"load={load}: no checkpoint there; give a folder with `latest`, or remove the key "
            "to train from scratch"
        )
    return found, goes_back or not checkpoint.finetune


def check_world(cfg: RunConfig, backend: Backend, padded_vocab_size: int) -> None:
    """Refuses what a layout cannot do, by name.

    Raises:
        UserError: see the message.
    """
    if cfg.parallel.overlap_param_gather and not cfg.parallel.overlap_grad_reduce:
        raise UserError(
            "overlap_param_gather=true: needs overlap_grad_reduce: true in megatron-core; set both or neither"
        )
    if padded_vocab_size % backend.tensor_parallel_size:
        raise UserError(
            f"vocab_size={padded_vocab_size}: is not divisible by "
            f"model_parallel_size={backend.tensor_parallel_size}"
        )


def prepare(
    cfg: RunConfig, backend: Backend, tokenizer: Tokenizer, log: Callable[[str], None]
) -> TrainingState:
    """Builds the model and its optimizer, and fills them from a checkpoint where there is one.

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
    source, is_own = _source_of(cfg, log)
    record = None
    if source is not None:
        record = CheckpointRecord.read(source)
        record.refuse_other_shape(source, cfg.model, vocab_size)
        _refuse_other_tokenizer(record, source, tokenizer)
    log(give_to_megatron_core())
    built = build(cfg, backend, vocab_size, padded, initialize=source is None)
    log(built.attention.describe())
    state = TrainingState(built, wrap(cfg, built))
    if source is None or record is None:
        log("weights: drawn at random, no checkpoint given")
    else:
        _fill(state, cfg, backend, source, record, is_own, log)
    return state


def _refuse_other_tokenizer(record: CheckpointRecord, source: Path, tokenizer: Tokenizer) -> None:
    if record.tokenizer_fingerprint and record.tokenizer_fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"vocab_file: the checkpoint {source} was made with another tokenizer (fingerprint "
            f"{record.tokenizer_fingerprint[:12]}, not {tokenizer.fingerprint[:12]}); use the one in "
            f"{source / BASE_FILES}"
        )


def _fill(
    state: TrainingState,
    cfg: RunConfig,
    backend: Backend,
    source: Path,
    record: CheckpointRecord,
    is_own: bool,
    log: Callable[[str], None],
) -> None:
    takes_optimizer = is_own and record.has_optimizer and not cfg.checkpoint.no_load_optim
    if takes_optimizer:
        load_all(source, state.trainable, record, backend, with_random_state=not cfg.checkpoint.no_load_rng)
    else:
        load_weights(source, state.model.module)
        state.trainable.optimizer.reload_model_params()
    if is_own:
        state.progress = Progress(record.iteration, record.sequences_seen, record.tokens_seen)
    what = "weights and optimizer" if takes_optimizer else "weights"
    log(f"loaded {what} of {source} (iteration {record.iteration}, {record.tokens_seen:,} tokens)")
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
    )
