# SPDX-License-Identifier: Apache-2.0
"""What data parallel ranks send each other while they compute: which of it, in what pieces, and in words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch

from megatron.backend import Backend
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.launcher.connections import CONNECTIONS_VARIABLE
from megatron.neox_arguments.config import ParallelConfig

# Fewer buckets leave more than an eighth of the gradients to be sent when nothing is left to compute.
_ENOUGH_BUCKETS = 8


def overlaps(parallel: ParallelConfig, module: torch.nn.Module) -> tuple[bool, bool]:
    """Whether gradients are reduced early, and parameters gathered late, for this rank's part of a model.

    The meta device stands for a GPU.
    """
    device = next(module.parameters()).device
    return parallel.overlaps(
        on_gpu=device.type != "cpu", data_ranks=parallel_state.get_data_parallel_world_size()
    )


def gather_in_time(model: DistributedDataParallel, *, layers_are_compiled: bool) -> None:
    """Has parameters gathered before they are used, where megatron-core's hook on each module does not do.

    The loss may use the output layer's weight without calling the layer: that is gathered before the last
    norm. A compiled layer would have the hooks in it compiled, with all they wait for: one stands before it.
    """
    if not model.use_forward_hook:
        return

    handles = model.remove_forward_pre_hook_handles

    def hook_on(module: torch.nn.Module, parameters: list[torch.nn.Parameter]) -> None:
        """In the place of megatron-core's hook on the module, so that it goes when that goes."""

        def gather(*_: Any) -> None:
            for parameter in parameters:
                model.param_to_bucket_group[parameter].finish_param_sync()

        handles[module].remove()
        handles[module] = module.register_forward_pre_hook(gather)

    parts = dict(model.named_modules())
    for name, output in parts.items():
        if name.endswith("output_layer") and list(output.parameters()):
            norm = parts[name.removesuffix("output_layer") + "decoder.final_layernorm"]
            hook_on(norm, [*norm.parameters(), *output.parameters()])
    for layer in parts.values() if layers_are_compiled else ():
        if isinstance(layer, TransformerLayer):
            for part in layer.modules():
                handles[part].remove()
            hook_on(layer, list(layer.parameters()))


def in_words(model: DistributedDataParallel, backend: Backend) -> Iterator[str]:
    """What ranks do about each other's gradients, for the log; and what keeps it from being fast."""
    reduces, gathers = model.ddp_config.overlap_grad_reduce, model.use_forward_hook
    if reduces:
        sizes = [bucket.grad_data.numel() for buffer in model.buffers for bucket in buffer.buckets]
        with_gather = ", and parameters gathered during the forward pass" if gathers else ""
        yield (
            f"gradients: reduced during the backward pass in {len(sizes)} bucket(s) of up to "
            f"{max(sizes) / 1e6:.3g} M parameters{with_gather}"
        )
        asked = model.ddp_config.bucket_size
        # What megatron-core 0.16.1 takes: a rank's piece of a bucket is not too small for a ring.
        default = max(40_000_000, 1_000_000 * backend.data_parallel_size)
        if asked is not None and asked > default and len(sizes) < _ENOUGH_BUCKETS:
            yield (
                f"note: reduce_bucket_size={asked} leaves {sizes[-1] / sum(sizes):.0%} of the gradients "
                f"for after the backward pass; without it buckets have {default / 1e6:.3g} M parameters"
            )
    elif backend.data_parallel_size > 1:
        yield "gradients: reduced after the backward pass"
    yield from _connections(backend)


def _connections(backend: Backend) -> Iterator[str]:
    """A GPU before Blackwell starts kernels in the order they were given only over one connection."""
    if backend.device.type != "cuda" or backend.tensor_parallel_size == 1:
        return
    major, _ = torch.cuda.get_device_capability(backend.device)
    if major < 10 and os.environ.get(CONNECTIONS_VARIABLE) != "1":
        yield (
            f"note: {CONNECTIONS_VARIABLE} is {os.environ.get(CONNECTIONS_VARIABLE, 'not set')}, and tensor "
            "parallel communication overlaps with computing only where it is 1; deepy.py sets it, unless "
            "the environment does"
        )
