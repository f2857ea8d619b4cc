# SPDX-License-Identifier: Apache-2.0
"""Whose linear layers a model is built of, and where the gradients of their weights are added. Chosen once.

The embedding and the output layer are megatron-core's in either case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from megatron.core.tensor_parallel import layers as core_layers
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.model.norms import NormedRowParallelLinear
from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import UserError


@dataclass(frozen=True)
class LinearLayers:
    """Classes for the layer specification, what goes with them into megatron-core's configuration, and why.

    `starts`, where there is one, is called with the number of data parallel ranks before layers are built.
    """

    column: type
    row: type
    normed_row: type
    words: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)
    starts: Callable[[int], None] | None = None


def choose_linear_layers(cfg: RunConfig, device: torch.device) -> LinearLayers:
    """megatron-core's linear layers, or TransformerEngine's where the configuration asks for them.

    On paper (the meta device) megatron-core's stand for both: weights and activations have the same sizes.

    Raises:
        UserError: what is asked for cannot be done on this device, or with the installed packages.
    """
    is_engine = cfg.acceleration.transformer_impl == "transformer_engine"
    if is_engine and device.type != "meta":
        from megatron.model import transformer_engine  # takes seconds, and is often not installed

        return transformer_engine.linear_layers(cfg, device, has_fused_gradients())
    fuses, words = fuse_gradients(cfg, device)
    return LinearLayers(
        ColumnParallelLinear,
        RowParallelLinear,
        NormedRowParallelLinear,
        words,
        {"gradient_accumulation_fusion": fuses},
    )


def has_fused_gradients() -> bool:
    """Whether megatron-core found Apex's product that adds its result to what is there."""
    return bool(core_layers._grad_accum_fusion_available)


def fuse_gradients(cfg: RunConfig, device: torch.device) -> tuple[bool, tuple[str, ...]]:
    """Whether megatron-core's layers add the gradient of a weight in the product that makes it; for the log.

    Raises:
        UserError: it was asked for and cannot be.
    """
    wanted = cfg.acceleration.gradient_accumulation_fusion
    if device.type != "cuda":
        if wanted and device.type == "cpu":
            raise UserError(
                "gradient_accumulation_fusion=true: is done by a CUDA kernel, and this run computes on the "
                "CPU; remove the key"
            )
        return False, ()
    name = "gradient accumulation fusion"
    if wanted is False:
        return False, (f"{name}: off (by name)",)
    if cfg.acceleration.torch_compile != "none":
        return False, (f"{name}: off (torch_compile={cfg.acceleration.torch_compile})",)
    if has_fused_gradients():
        return True, (f"{name}: on (Apex's fused_weight_gradient_mlp_cuda is installed)",)
    if wanted:
        raise UserError(
            "gradient_accumulation_fusion=true: Apex's extension fused_weight_gradient_mlp_cuda is not "
            "installed; build Apex with --cpp_ext and --cuda_ext (docs/gpus.md), or remove the key"
        )
    return False, (f"{name}: off (Apex's fused_weight_gradient_mlp_cuda is not installed)",)
