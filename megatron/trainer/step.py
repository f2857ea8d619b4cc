# SPDX-License-Identifier: Apache-2.0
"""One step of training, and one batch of validation: the mathematics, and nothing else.

Legend: B sequences of a micro-batch, S tokens of a sequence.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from megatron.backend import Backend
from megatron.core import parallel_state
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.neox_arguments.config import BatchShape, RunConfig
from megatron.trainer.setup import TrainingState

if TYPE_CHECKING:
    from megatron.data.loader import MicroBatch


def _mean_loss(
    mask_BS: torch.Tensor, counted: torch.Tensor | None, loss_BS: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The sum over the tokens in the loss by `counted` [], or by their number. The schedule divides its first
    value in place: the report is a copy.
    """
    loss = (loss_BS.float() * mask_BS).sum() / (mask_BS.sum().clamp(min=1) if counted is None else counted)
    return loss, {"loss": loss.detach().clone()}


def _sent(few: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A few numbers of the host on the device, which is not waited for: that takes a pinned copy."""
    return (few.pin_memory() if device.type == "cuda" else few).to(device, non_blocking=True)


def _counted_tokens(batches: Sequence[MicroBatch], backend: Backend) -> torch.Tensor | None:
    """Tokens in the loss of an average micro-batch of all data parallel ranks; [], float32. None where every
    token is in it.

    With it the mean of the micro-batches' losses is the mean over all tokens in the loss, however they are
    dealt to ranks and micro-batches; with a count of each its own, a sequence with few of them would weigh as
    much as one with many.
    """
    if not any(batch.is_masked for batch in batches):
        return None
    counted = torch.stack([batch.loss_mask_BS.sum() for batch in batches]).sum()
    counted = _sent(counted, backend.device)
    dist.all_reduce(counted, group=parallel_state.get_data_parallel_group())
    return counted.clamp(min=1) / (len(batches) * backend.data_parallel_size)


def _forward(
    device: torch.device,
    counted: torch.Tensor | None,
    micro_batches: Iterator[MicroBatch],
    model: torch.nn.Module,
) -> tuple[torch.Tensor, Any]:
    """Runs one micro-batch through this rank's layers, as megatron-core's schedules call it."""
    batch = next(micro_batches)
    tokens_BS = batch.tokens_BS.to(device, non_blocking=True)
    labels_BS = batch.labels_BS.to(device, non_blocking=True)
    positions_BS = torch.arange(tokens_BS.size(1), device=device).expand_as(tokens_BS)
    mask_BS = batch.loss_mask_BS.to(device, non_blocking=True)
    loss_BS = model(tokens_BS, positions_BS, None, labels=labels_BS)
    return loss_BS, functools.partial(_mean_loss, mask_BS, counted)


def forward_backward(
    state: TrainingState,
    cfg: RunConfig,
    backend: Backend,
    micro_batches: Iterator[MicroBatch],
    *,
    forward_only: bool,
    shape: BatchShape | None = None,
) -> torch.Tensor:
    """Runs one global batch's micro-batches (or those of another `shape`) through the pipeline.

    Returns their mean loss on the last pipeline stage, zero elsewhere; [], float64, this rank's data only.
    """
    shape = shape or cfg.batch.batch_shape(backend.data_parallel_size)
    # Taken before the schedule runs, so that stages of a pipeline that read no data advance all the same.
    batches = list(itertools.islice(micro_batches, shape.accumulation))
    counted = _counted_tokens(batches, backend)
    reports = get_forward_backward_func()(
        forward_step_func=functools.partial(_forward, backend.device, counted),
        data_iterator=iter(batches),
        model=state.model,
        num_microbatches=shape.accumulation,
        seq_length=cfg.model.seq_length,
        micro_batch_size=shape.micro,
        forward_only=forward_only,
    )
    losses = [report["loss"].double() for report in reports]
    return (
        torch.stack(losses).mean() if losses else torch.zeros((), dtype=torch.float64, device=backend.device)
    )


def sum_over_ranks(loss: torch.Tensor, more: Sequence[float], backend: Backend) -> torch.Tensor:
    """The sums of the ranks' losses, and of what else they say; on the device, which is not waited for."""
    values = torch.cat([loss.reshape(1), _sent(torch.tensor(more, dtype=torch.float64), backend.device)])
    dist.all_reduce(values)
    return values


def read_sums(values: torch.Tensor, backend: Backend) -> tuple[float, list[float]]:
    """The mean loss of all data, and the other sums; equal on every rank. Waits for the device."""
    mean, *sums = values.tolist()
    # Every tensor parallel rank of the last stage holds the same loss.
    return mean / (backend.data_parallel_size * backend.tensor_parallel_size), sums


def reduce_over_ranks(
    loss: torch.Tensor, more: Sequence[float], backend: Backend
) -> tuple[float, list[float]]:
    """`read_sums` of `sum_over_ranks`, where nothing is to be computed meanwhile."""
    return read_sums(sum_over_ranks(loss, more, backend), backend)


def set_learning_rate(state: TrainingState, cfg: RunConfig, lr: float) -> None:
    """Norms have no weight decay: megatron-core marks their group with `wd_mult` 0."""
    for group in state.trainable.optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = cfg.optimizer.weight_decay * group.get("wd_mult", 1.0)


def compute_gradients(
    state: TrainingState, cfg: RunConfig, backend: Backend, micro_batches: Iterator[MicroBatch]
) -> torch.Tensor:
    """Fills the buffers with the gradient of one global batch's mean loss; returns that loss."""
    state.model.train()
    state.model.zero_grad_buffer()
    state.trainable.optimizer.zero_grad()
    return forward_backward(state, cfg, backend, micro_batches, forward_only=False)


def gradient_norm(state: TrainingState) -> float:
    """The gradient's global norm before clipping, equal on every rank. In a step nothing else waits for the
    device: what is read after it is there.
    """
    optimizer = state.trainable.optimizer
    optimizer.prepare_grads()
    return float(optimizer.get_grad_norm())


def update_weights(state: TrainingState, cfg: RunConfig, lr: float, grad_norm: float | None = None) -> float:
    """Clips the gradient and takes one step of AdamW, which a gradient that is not finite does not reach.

    `grad_norm` is that of `gradient_norm`, where it was called. Returns it.
    """
    optimizer = state.trainable.optimizer
    if grad_norm is None:
        grad_norm = gradient_norm(state)
    if not math.isfinite(grad_norm):
        return grad_norm
    set_learning_rate(state, cfg, lr)
    most, parameters = cfg.optimizer.gradient_clipping, optimizer.get_parameters()
    if most > 0 and parameters:  # a rank may have no shard
        is_decoupled = optimizer.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
        clip_grad_by_total_norm_fp32(parameters, most, grad_norm, is_decoupled)
    optimizer.step_with_ready_grads()
    return grad_norm
