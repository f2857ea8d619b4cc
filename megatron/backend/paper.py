# SPDX-License-Identifier: Apache-2.0
"""One rank of a run that is not there: process groups that reach nobody, and tensors without memory.

`meta` tensors have shapes and dtypes and no bytes, and the `fake` process group of torch's own tests returns
at once from every collective, so that one process can build its part of a model for any number of ranks. The
meta device stands for a GPU: what is built is what a GPU would hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron.backend.distributed import Backend, backend_of
from megatron.core import parallel_state, tensor_parallel
from megatron.neox_arguments.config import ParallelConfig

_META = torch.device("meta")


def _prepare_torch() -> None:
    """The current device is meta, and a meta tensor's type is that of a CPU tensor.

    megatron-core's optimizers tell dtypes by the name of the type, as `cpu_engine` has rewritten it.
    """
    torch.cuda.current_device = lambda: _META  # type: ignore[assignment, return-value]
    type_of = torch.Tensor.type

    def named_type(self: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        found = type_of(self, *arguments, **keywords)
        return found.replace("torch.meta.", "torch.") if isinstance(found, str) else found

    torch.Tensor.type = named_type  # type: ignore[assignment, method-assign]


def own_group(parallel_size: Sequence[int], mask: Sequence[bool], rank: int) -> list[int]:
    """The one group with `rank` in it of megatron-core's `generate_masked_orthogonal_rank_groups`.

    `parallel_size` are the sizes of the dimensions that ranks are laid out in, the fastest first; ranks of a
    group differ in those of the `mask` only.
    """
    group, first, stride = [0], 0, 1
    for size, is_masked in zip(parallel_size, mask, strict=True):
        if is_masked:
            group = [other + place * stride for place in range(size) for other in group]
        else:
            first += rank // stride % size * stride
        stride *= size
    return [first + other for other in group]


def initialize_on_paper(parallel: ParallelConfig, rank: int, world_size: int) -> Backend:
    """This process as rank `rank` of `world_size`. Only for a process that does nothing else afterwards."""
    assert not torch.cuda.is_available(), (
        "start it with CUDA_VISIBLE_DEVICES= so that the CPU engine is there"
    )
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
    else:
        _prepare_torch()
    # Of all groups the rank needs its own. Those of all ranks would take longer and longer.
    parallel_state.generate_masked_orthogonal_rank_groups = lambda _, parallel_size, mask: [
        own_group(parallel_size, mask, rank)
    ]
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_size,
        create_gloo_process_groups=False,  # gloo would look for the other ranks
    )
    # The ranks with one optimizer between them: all. megatron-core gathers them from groups not made here.
    parallel_state._INTRA_DISTRIBUTED_OPTIMIZER_INSTANCE_GROUP = dist.group.WORLD
    for name in vars(parallel_state):  # the optimizer asks for gloo's groups too
        if name.endswith("_GLOO"):
            setattr(parallel_state, name, getattr(parallel_state, name.removesuffix("_GLOO")))
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    return backend_of(parallel, _META, "fake", rank=rank, local_rank=0, world_size=world_size)
