# SPDX-License-Identifier: Apache-2.0
"""One step of training, and one batch of validation: the mathematics, and nothing else.

Legend: B sequences of a micro-batch, S tokens of a sequence.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from megatron.backend import Backend
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.neox_arguments.config import RunConfig
from megatron.trainer.setup import TrainingState

if TYPE_CHECKING:
    from megatron.data.loader import MicroBatch


def _mean_loss(mask_BS: torch.Tensor, loss_BS: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The mean over counted tokens. The schedule divides its first value in place: the report is a copy."""
    loss = (loss_BS.float() * mask_BS).sum() / mask_BS.sum().clamp(min=1)
    return loss, {"loss": loss.detach().clone()}


def _forward(
    device: torch.device, micro_batches: Iterator[MicroBatch], model: torch.nn.Module
) -> tuple[torch.Tensor, Any]:
    """Runs one micro-batch through this rank's layers, as megatron-core's schedules call it."""
    batch = next(micro_batches)
    tokens_BS = batch.tokens_BS.to(device, non_blocking=True)
    labels_BS = batch.labels_BS.to(device, non_blocking=True)
    positions_BS = torch.arange(tokens_BS.size(1), device=device).expand_as(tokens_BS)
    mask_BS = batch.loss_mask_BS.to(device, non_blocking=True)
    loss_BS = model(tokens_BS, positions_BS, None, labels=labels_BS)
    return loss_BS, functools.partial(_mean_loss, mask_BS)


def forward_backward(
    state: TrainingState,
    cfg: RunConfig,
    backend: Backend,
    micro_batches: Iterator[MicroBatch],
    *,
    forward_only: bool,
) -> torch.Tensor:
    """Runs one global batch's micro-batches through the pipeline.

    Returns their mean loss on the last pipeline stage, zero elsewhere; [], float64, this rank's data only.
    """
    shape = cfg.batch.batch_shape(backend.data_parallel_size)
    # Taken before the schedule runs, so that stages of a pipeline that read no data advance all the same.
    batches = list(itertools.islice(micro_batches, shape.accumulation))
    reports = get_forward_backward_func()(
        forward_step_func=functools.partial(_forward, backend.device),
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


def reduce_over_ranks(loss: torch.Tensor, wants_stop: bool, backend: Backend) -> tuple[float, bool]:
    """The mean loss of all data, and whether any rank was asked to stop; equal on every rank."""
    values = torch.stack([loss, torch.tensor(float(wants_stop), dtype=torch.float64, device=backend.device)])
    dist.all_reduce(values)
    # Every tensor parallel rank of the last stage holds the same loss.
    ranks_with_loss = backend.data_parallel_size * backend.tensor_parallel_size
    return float(values[0]) / ranks_with_loss, bool(values[1] > 0)


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


def update_weights(state: TrainingState, cfg: RunConfig, lr: float) -> float:
    """Clips the gradient, takes one step of AdamW; returns the gradient's global norm before clipping."""
    set_learning_rate(state, cfg, lr)
    _, grad_norm, _ = state.trainable.optimizer.step()
    return float(grad_norm)
