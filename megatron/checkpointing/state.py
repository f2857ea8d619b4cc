# SPDX-License-Identifier: Apache-2.0
"""What the state of a run is, and its way back: weights, optimizer and random states, for any layout.

megatron-core's dist_checkpointing describes every tensor by its place in the whole model, and the
distributed optimizer's state likewise ("fully_reshardable"), so the number of ranks, TP, PP and DP may
all change between a save (saving.py) and a load.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron.backend import Backend
from megatron.checkpointing import folders
from megatron.checkpointing.index import damage, tensors_only
from megatron.checkpointing.record import CheckpointRecord
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
)
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.transformer.module import Float16Module
from megatron.neox_arguments.errors import UserError


@dataclass(frozen=True)
class Trainable:
    """What a checkpoint is made of on this rank."""

    model: DistributedDataParallel
    optimizer: MegatronOptimizer


def _metadata() -> dict[str, Any]:
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "singleton_local_shards": False,
        "non_homogeneous_layers": True,
        "chained_optim_avoid_prefix": True,
    }


def _model_state(model: torch.nn.Module) -> dict[str, Any]:
    """Where each weight lies in the whole model; extra states are TransformerEngine's, and empty."""
    state: dict[str, Any] = model.sharded_state_dict(metadata=_metadata())  # type: ignore[operator]
    return {name: entry for name, entry in state.items() if not name.endswith("_extra_state")}


def _put_weights(model: torch.nn.Module, weights: dict[str, Any]) -> None:
    llama = model.module if isinstance(model, Float16Module) else model
    missing, unexpected = llama.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith("_extra_state")]
    assert not missing, missing
    assert not unexpected, unexpected


def _random_state() -> ShardedObject:
    """The generators of this rank, one object for each place in the layout."""
    pp, tp = (
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_world_size(),
    )
    dp = parallel_state.get_data_parallel_world_size()
    place = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(),
    )
    state = {
        "cpu": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }
    return ShardedObject("random_state", state, (pp, tp, dp), place, replica_id=0)


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    torch.cuda.set_rng_state(state["device"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["tracker"])


def layout_of(backend: Backend) -> dict[str, int]:
    return {
        "model_parallel_size": backend.tensor_parallel_size,
        "pipe_parallel_size": backend.pipeline_parallel_size,
        "data_parallel_size": backend.data_parallel_size,
    }


def first_line(error: BaseException) -> str:
    """The line of an error that says most, of one of torch's with a traceback of each rank inside."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    innermost = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "")
    return innermost.strip() or type(error).__name__


def gather_weights(model: DistributedDataParallel) -> None:
    """Completes the weights of this rank after an update, where the next forward pass would have done it.

    With overlap_param_gather a rank has until then its own shard of the new weights, and of all others the
    old ones. Called on every rank; without overlap_param_gather nothing is to be done.
    """
    if model.use_forward_hook:
        model.start_param_sync(force_sync=True)


def _count_padding(model: DistributedDataParallel) -> None:
    """Makes megatron-core 0.16.1 find each parameter's part of the optimizer's state where it is.

    It joins the buckets of a buffer without the padding at their ends, and then looks for each parameter at
    its place with the padding: from the second bucket on, all would be moved by it in what is saved. Where
    the padding counts as a part of a bucket, both places are one.
    """
    for buffer in model.buffers:
        for bucket in buffer.buckets:
            bucket.numel_unpadded = bucket.grad_data.numel()
        buffer.numel_unpadded = buffer.numel


def state_of(trainable: Trainable) -> dict[str, Any]:
    """All tensors and objects of a checkpoint, each with its place in the whole. Called on every rank."""
    gather_weights(trainable.model)
    _count_padding(trainable.model)
    model_state = _model_state(trainable.model.module)
    return {
        "model": model_state,
        "optimizer": trainable.optimizer.sharded_state_dict(model_state, metadata=_metadata()),
        "random_state": _random_state(),
    }


def load_weights(folder: Path, model: torch.nn.Module) -> None:
    """Fills this rank's weights from a checkpoint of any layout; `model` is not wrapped for data parallelism.

    Raises:
        UserError: the files are damaged or do not fit.
    """
    # Rows of padding that the checkpoint has not must be zero, not what was in memory.
    for name, parameter in model.named_parameters():
        if name.endswith(("word_embeddings.weight", "output_layer.weight")):
            parameter.data.zero_()
    state = _load(folder, {"model": _model_state(model)})
    _put_weights(model, state["model"])


def load_all(
    folder: Path,
    trainable: Trainable,
    record: CheckpointRecord,
    backend: Backend,
    *,
    with_random_state: bool = True,
) -> None:
    """Fills weights, optimizer, and (in the layout that wrote them) random states.

    Raises:
        UserError: the files are damaged or do not fit.
    """
    _count_padding(trainable.model)
    model_state = _model_state(trainable.model.module)
    wanted: dict[str, Any] = {
        "model": model_state,
        "optimizer": trainable.optimizer.sharded_state_dict(
            model_state, is_loading=True, metadata=_metadata()
        ),
    }
    takes_random_state = with_random_state and record.layout == layout_of(backend)
    if takes_random_state:
        wanted["random_state"] = _random_state()
    state = _load(folder, wanted)
    _put_weights(trainable.model.module, state["model"])
    trainable.optimizer.load_state_dict(state["optimizer"])
    if takes_random_state:
        _restore_random_state(state["random_state"])


def _load(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    if found := damage(folder):  # looked for first: torch prints tracebacks of its own
        raise unreadable(folder, found)
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    strategy = FullyParallelLoadStrategyWrapper(get_default_load_sharded_strategy(str(folder)), group)
    try:
        with torch.no_grad(), tensors_only():
            state: dict[str, Any] = dist_checkpointing.load(wanted, str(folder), strategy)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # torch's CheckpointException is a BaseException
        raise unreadable(folder, first_line(error)) from error
    return state


def unreadable(folder: Path, why: str) -> UserError:
    """What to say of a checkpoint that cannot be used."""
    save = folder.parent
    others = [step for step in folders.iterations_in(save) if folders.step_name(step) != folder.name]
    return UserError(f"load={folder}: cannot be read ({why}); {folders.choose_from(save, others)}")
