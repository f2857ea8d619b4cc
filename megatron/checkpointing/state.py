# SPDX-License-Identifier: Apache-2.0
"""Saving and loading a run: weights, optimizer and random states, in a form that any layout can load.

megatron-core's dist_checkpointing describes every tensor by its place in the whole model, and the
distributed optimizer's state likewise ("fully_reshardable"), so the number of ranks, TP, PP and DP may
all change between a save and a load.
"""

from __future__ import annotations

import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

from megatron.backend import Backend
from megatron.checkpointing import folders
from megatron.checkpointing.huggingface import copy_travelling
from megatron.checkpointing.record import BASE_FILES, CheckpointRecord
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from megatron.core.dist_checkpointing.strategies import torch as torch_strategies
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.transformer.module import Float16Module
from megatron.neox_arguments.errors import UserError

# A checkpoint is refused before it is begun where less than this share of its last size is free.
_FREE_SPACE_MARGIN = 1.05
# A write that failed with less than this left failed for want of space; torch's writer does not say so.
_FULL_BYTES = 2**20


class SaveFailed(Exception):
    """A checkpoint could not be written; the run may go on. The message is for the user."""


class _InProcessSave(torch_strategies.TorchDistSaveShardedStrategy):
    """megatron-core's torch_dist strategy, written by torch's plain writer in this process.

    megatron-core's own writer forks workers from a threaded process, and where one of them dies its
    parent waits for ever. This one raises. The bytes on disk have the same form.
    """

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> None:
        by_key, _, _ = torch_strategies._replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        planner = torch_strategies.MCoreSavePlanner(
            dedup_replicated_tensors=not self.keep_only_main_replica, flatten_state_dict=False
        )
        dcp.save(
            torch_strategies.mcore_to_pyt_state_dict(by_key, False),
            storage_writer=FileSystemWriter(checkpoint_dir, thread_count=self.thread_count),
            planner=planner,
        )


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


def _first_problem(problem: str | None) -> str | None:
    """What went wrong on the lowest rank where anything did; the same on every rank."""
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    return next((found for found in problems if found is not None), None)


def _expected_bytes(save: Path) -> int:
    """The size of the newest checkpoint there, as a guess of the next one's."""
    there = folders.iterations_in(save)
    if not there:
        return 0
    newest = save / folders.step_name(there[-1])
    return sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())


def _make_room(save: Path, unfinished: Path) -> str | None:
    """Rank 0: an empty folder to write to. Returns what is wrong, or None."""
    try:
        save.mkdir(parents=True, exist_ok=True)
        folders.remove_unfinished(save)
        free, needed = shutil.disk_usage(save).free, int(_expected_bytes(save) * _FREE_SPACE_MARGIN)
        if free < needed:
            return f"{free / 1e6:,.0f} MB are free, about {needed / 1e6:,.0f} MB are needed"
        unfinished.mkdir()
    except OSError as error:
        return str(error.strerror or error)
    return None


def save(
    save_folder: Path,
    trainable: Trainable,
    record: CheckpointRecord,
    backend: Backend,
    base_files: Path | None,
    tokenizer_files: list[Path],
) -> Path:
    """Writes one checkpoint and then moves `latest` to it; called on every rank.

    Returns its folder.

    Raises:
        SaveFailed: on every rank, when any rank could not write; the partial folder is removed, and
            what was there before is untouched.
    """
    iteration = record.iteration
    final = save_folder / folders.step_name(iteration)
    unfinished = save_folder / folders.unfinished_name(iteration)
    problem = _first_problem(_make_room(save_folder, unfinished) if backend.is_main else None)
    if problem is not None:
        raise SaveFailed(f"checkpoint {final} was not written: {problem}")
    model_state = _model_state(trainable.model.module)
    state = {
        "model": model_state,
        "optimizer": trainable.optimizer.sharded_state_dict(model_state, metadata=_metadata()),
        "random_state": _random_state(),
    }
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    try:
        strategy = FullyParallelSaveStrategyWrapper(_InProcessSave("torch_dist", 1, thread_count=1), group)
        dist_checkpointing.save(state, str(unfinished), strategy)
        if backend.is_main:
            _write_companions(unfinished, record, base_files, tokenizer_files)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # torch's CheckpointException is a BaseException
        is_full = shutil.disk_usage(save_folder).free < _FULL_BYTES
        problem = "the disk is full" if is_full else _first_line(error)
    # From here on nothing but names changes, once every rank has written its part.
    problem = _first_problem(problem)
    if problem is None:
        problem = _first_problem(_put_in_place(unfinished, final) if backend.is_main else None)
    if problem is not None:
        if backend.is_main:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise SaveFailed(f"checkpoint {final} was not written: {problem}")
    return final


def _put_in_place(unfinished: Path, final: Path) -> str | None:
    """Rank 0: gives the checkpoint its name and moves `latest`. Returns what is wrong, or None."""
    try:
        folders.put_in_place(unfinished, final)
    except OSError as error:
        return str(error.strerror or error)
    return None


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    innermost = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "")
    return innermost.strip() or type(error).__name__


def _write_companions(
    folder: Path, record: CheckpointRecord, base_files: Path | None, tokenizer_files: list[Path]
) -> None:
    if base_files is not None and base_files.is_dir():
        copy_travelling(base_files, folder / BASE_FILES)
    (folder / BASE_FILES).mkdir(exist_ok=True)
    for file in tokenizer_files:
        if not (folder / BASE_FILES / file.name).exists():
            shutil.copyfile(file, folder / BASE_FILES / file.name)
    record.write(folder)


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
    if damage := _damage(folder):  # looked for first: torch prints tracebacks of its own
        raise _unreadable(folder, damage)
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    strategy = FullyParallelLoadStrategyWrapper(get_default_load_sharded_strategy(str(folder)), group)
    try:
        with torch.no_grad():
            state: dict[str, Any] = dist_checkpointing.load(wanted, str(folder), strategy)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # torch's CheckpointException is a BaseException
        raise _unreadable(folder, _first_line(error)) from error
    return state


def _unreadable(folder: Path, why: str) -> UserError:
    save = folder.parent
    others = [step for step in folders.iterations_in(save) if folders.step_name(step) != folder.name]
    return UserError(f"load={folder}: cannot be read ({why}); {folders.choose_from(save, others)}")


def _damage(folder: Path) -> str | None:
    """The first file that is missing or shorter than the index of the tensors says, in words."""
    try:
        entries = FileSystemReader(folder).read_metadata().storage_data.values()
    except FileNotFoundError:
        return "the file .metadata is missing"
    except (EOFError, ValueError, pickle.UnpicklingError) as error:
        return f"the file .metadata is damaged: {error}"
    expected_bytes: dict[str, int] = {}
    for entry in entries:
        end = entry.offset + entry.length
        expected_bytes[entry.relative_path] = max(end, expected_bytes.get(entry.relative_path, 0))
    for name, size in sorted(expected_bytes.items()):
        path = folder / name
        if not path.is_file():
            return f"the file {name} is missing"
        if path.stat().st_size < size:
            return f"the file {name} has {path.stat().st_size:,} of its {size:,} bytes"
    return None
