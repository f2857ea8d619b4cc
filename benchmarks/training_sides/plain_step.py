# SPDX-License-Identifier: Apache-2.0
"""A training step of a plain torch module: what transformers, litgpt and torchtitan are timed with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.profiler import record_function

from benchmarks.training_sides.sides import BETAS, CLIP, LR, WEIGHT_DECAY, Step

# Mean loss, [], of tokens [B, S] with labels [B, S].
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def fused_adamw(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW in one kernel over all parameters."""
    return torch.optim.AdamW(parameters, lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)


def plain_step(
    model: torch.nn.Module,
    loss_of: Loss,
    *,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Step:
    """Forward and backward of each micro-batch within `around`, clipping, AdamW."""
    parameters = list(model.parameters())
    optimizer = fused_adamw(parameters)

    def step(sequences_ABS: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=sequences_ABS.device)
        for sequences_BS in sequences_ABS:
            with record_function("forward"), around():
                tokens_BS, labels_BS = sequences_BS[:, :-1].contiguous(), sequences_BS[:, 1:].contiguous()
                loss = loss_of(tokens_BS, labels_BS) / len(sequences_ABS)
            with record_function("backward"):
                loss.backward()
            total += loss.detach()
        with record_function("optimizer"):
            torch.nn.utils.clip_grad_norm_(parameters, CLIP, foreach=True)
            optimizer.step()
        return total

    return step


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def autocast(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: torch.autocast(device.type, torch.bfloat16)


def attention_by_name(name: str) -> Callable[[], AbstractContextManager[Any]]:
    """torch's attention with one of its kernels."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    return lambda: sdpa_kernel(backends[name])
