# SPDX-License-Identifier: Apache-2.0
"""Writing checkpoints: while the run waits, or from a copy in the host's memory while it goes on.

A save has three parts. Beginning it plans with all ranks which of them writes what. Writing is each rank's
own, and done by a thread where the run goes on; it communicates with nobody. Finishing it, on the main
threads of all ranks, collects what was written, adds the small files and the manifest, and gives the
checkpoint its name. megatron-core's own writer forks workers from a threaded process, and where one of them
dies its parent waits for ever; a thread of this one reports. The bytes on disk have the same form.
"""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.checkpoint.utils import _DistWrapper

from megatron.backend import Backend
from megatron.checkpointing import folders
from megatron.checkpointing.huggingface import copy_travelling
from megatron.checkpointing.manifest import FileEntry, describe, seal
from megatron.checkpointing.record import BASE_FILES, CheckpointRecord
from megatron.checkpointing.state import Trainable, first_line, state_of
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies import torch as torch_strategies
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.neox_arguments.errors import UserError

# A checkpoint is refused before it is begun where less than this share of its last size is free.
_FREE_SPACE_MARGIN = 1.05
# A write that failed with less than this left failed for want of space; torch's writer does not say so.
_FULL_BYTES = 2**20


class SaveFailed(Exception):
    """A checkpoint could not be written; the run may go on. The message is for the user."""


@dataclass(frozen=True)
class _Written:
    """What one rank wrote, or why it could not."""

    results: list[WriteResult] = field(default_factory=list)
    files: dict[str, FileEntry] = field(default_factory=dict)
    problem: str | None = None


class _Copies:
    """Stands for torch's planner where a rank's share is written from copies.

    The copies' memory is kept from one save to the next.
    """

    def __init__(self) -> None:
        self._tensors: dict[Any, torch.Tensor] = {}
        self._objects: dict[Any, Any] = {}

    def take(self, plan: SavePlan, resolve: Callable[[WriteItem], Any]) -> None:
        """Copies everything that `plan` writes into the host's memory."""
        before, self._tensors, self._objects = self._tensors, {}, {}
        on_gpu = False
        for item in plan.items:
            value = resolve(item)
            if item.type == WriteItemType.BYTE_IO:
                self._objects[item.index] = value
                continue
            value, copy = value.detach(), before.get(item.index)
            if copy is None or copy.shape != value.shape or copy.dtype != value.dtype:
                copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._tensors[item.index] = copy.copy_(value, non_blocking=value.is_cuda)
            on_gpu = on_gpu or value.is_cuda
        if on_gpu:
            torch.cuda.synchronize()

    def resolve_data(self, item: WriteItem) -> Any:
        return self._objects[item.index] if item.type == WriteItemType.BYTE_IO else self._tensors[item.index]


@dataclass
class _Begun:
    """A save between its beginning and its end, on one rank."""

    record: CheckpointRecord
    unfinished: Path
    writer: FileSystemWriter
    metadata: Metadata | None  # on rank 0
    common: bytes
    base_files: Path | None
    tokenizer_files: list[Path]
    written: _Written = field(default_factory=_Written)
    thread: threading.Thread | None = None


class Saver:
    """Writes the checkpoints of a run into `save`; one at a time. Every method is called on every rank."""

    def __init__(
        self,
        save: Path,
        trainable: Trainable,
        backend: Backend,
        *,
        in_background: bool,
        attempt: int = 0,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        """`guard` is called on rank 0 before `save` is changed; it raises UserError where it may not be.

        `attempt` is a part of the names of what is not finished.
        """
        self._save, self._trainable, self._backend = save, trainable, backend
        self._attempt, self._guard = attempt, guard
        self._copies = _Copies() if in_background else None
        self._begun: _Begun | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a save is begun and not finished; equal on every rank."""
        return self._begun is not None

    def begin(self, record: CheckpointRecord, base_files: Path | None, tokenizer_files: list[Path]) -> None:
        """Writes this rank's share, or, in the background, copies it and starts the thread that writes it.

        What goes wrong on one rank alone is told by `finish`.

        Raises:
            SaveFailed: on every rank, when there is no room for it; what was there before is untouched.
        """
        assert self._begun is None
        unfinished = self._save / folders.unfinished_name(record.iteration, self._attempt)
        final = self._save / folders.step_name(record.iteration)
        is_main = self._backend.is_main
        problem = _first_problem(_make_room(self._save, unfinished, self._guard) if is_main else None)
        if problem is not None:
            raise SaveFailed(f"checkpoint {final} was not written: {problem}")
        plan, planner, begun = _plan(self._trainable, record, unfinished, base_files, tokenizer_files)
        self._begun = begun
        source: Any = planner
        if self._copies is not None:
            try:
                self._copies.take(plan, planner.resolve_data)
            except (MemoryError, RuntimeError) as error:  # told when all ranks meet again
                begun.written = _Written(problem=f"no memory for a copy of it: {first_line(error)}")
                return
            source = self._copies
            # Nothing is on the device any more, and a thread would look for it on device 0.
            begun.writer.per_thread_copy_ahead = 0

        def write() -> None:
            begun.written = _write(begun.writer, plan, source, unfinished)

        if self._copies is None:
            write()
        else:
            begun.thread = threading.Thread(target=write, name="checkpoint")
            begun.thread.start()

    def is_ready(self) -> bool:
        """Whether every rank has written its share, so that `finish` does not wait."""
        assert self._begun is not None
        thread = self._begun.thread
        is_here = torch.tensor(int(thread is None or not thread.is_alive()), device=self._backend.device)
        dist.all_reduce(is_here, dist.ReduceOp.MIN)
        return bool(is_here)

    def finish(self) -> Path:
        """Waits for the writing, completes the checkpoint and moves `latest` to it; returns its folder.

        Raises:
            SaveFailed: on every rank, when any rank could not write; the partial folder is removed, and
                what was there before is untouched.
        """
        begun, self._begun = self._begun, None
        assert begun is not None
        if begun.thread is not None:
            begun.thread.join()
        final = self._save / folders.step_name(begun.record.iteration)
        is_main = self._backend.is_main
        parts: list[Any] | None = [None] * self._backend.world_size if is_main else None
        dist.gather_object(begun.written, parts, dst=0)
        problem = _first_problem(None if parts is None else _complete(begun, parts, final, self._guard))
        if problem is not None:
            if is_main:
                shutil.rmtree(begun.unfinished, ignore_errors=True)
            raise SaveFailed(f"checkpoint {final} was not written: {problem}")
        return final

    def rescue(self, exchange: Callable[[Any], list[Any] | None]) -> str | None:
        """`finish` for a run that hangs: what ranks wrote goes to rank 0 by `exchange`, not by a collective.

        Returns what became of the save, where there was one.
        """
        begun = self._begun
        if begun is None or begun.thread is None:
            return None
        begun.thread.join()
        parts = exchange(begun.written)
        if parts is None:
            return None
        final = self._save / folders.step_name(begun.record.iteration)
        problem = _complete(begun, parts, final, self._guard)
        if problem is not None:
            return f"checkpoint {final} was not written: {problem}"
        return f"checkpoint {final}, which was being written, is complete"


def save(
    save_folder: Path,
    trainable: Trainable,
    record: CheckpointRecord,
    backend: Backend,
    base_files: Path | None,
    tokenizer_files: list[Path],
) -> Path:
    """Writes one checkpoint and moves `latest` to it, on every rank; returns its folder.

    Raises:
        SaveFailed: on every rank.
    """
    saver = Saver(save_folder, trainable, backend, in_background=False)
    saver.begin(record, base_files, tokenizer_files)
    return saver.finish()


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


def _make_room(save: Path, unfinished: Path, guard: Callable[[], None]) -> str | None:
    """Rank 0: an empty folder to write to. Returns what is wrong, or None."""
    try:
        guard()
        save.mkdir(parents=True, exist_ok=True)
        folders.remove_unfinished(save)
        free, needed = shutil.disk_usage(save).free, int(_expected_bytes(save) * _FREE_SPACE_MARGIN)
        if free < needed:
            return f"{free / 1e6:,.0f} MB are free, about {needed / 1e6:,.0f} MB are needed"
        unfinished.mkdir()
    except UserError as error:
        return str(error)
    except OSError as error:
        return str(error.strerror or error)
    return None


def _plan(
    trainable: Trainable,
    record: CheckpointRecord,
    unfinished: Path,
    base_files: Path | None,
    tokenizer_files: list[Path],
) -> tuple[SavePlan, Any, _Begun]:
    """Agrees with all ranks on who writes what: this rank's share, where its tensors are, and the rest."""
    sharded, common = save_preprocess(state_of(trainable))
    strategy = torch_strategies.TorchDistSaveShardedStrategy("torch_dist", 1, thread_count=1)
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    FullyParallelSaveStrategyWrapper(strategy, group).apply_saving_parallelization(sharded)
    by_key, _, _ = torch_strategies._replace_state_dict_keys_with_sharded_keys(sharded, True)
    tensors = torch_strategies.mcore_to_pyt_state_dict(by_key, False)
    planner = torch_strategies.MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
    writer = FileSystemWriter(unfinished, thread_count=1)
    ranks = _DistWrapper(None, True, 0)
    metadata: Metadata | None = None

    # As torch.distributed.checkpoint.save does, up to the writing.
    def local_step() -> SavePlan:
        planner.set_up_planner(tensors, writer.storage_meta(), ranks.is_coordinator)
        writer.set_up_storage_writer(ranks.is_coordinator)
        return writer.prepare_local_plan(planner.create_local_plan())

    def global_step(plans: list[SavePlan]) -> list[SavePlan]:
        nonlocal metadata
        plans, metadata = planner.create_global_plan(plans)
        return writer.prepare_global_plan(plans)

    plan = planner.finish_plan(ranks.reduce_scatter("plan", local_step, global_step))
    held = io.BytesIO()
    torch.save(common, held)
    begun = _Begun(record, unfinished, writer, metadata, held.getvalue(), base_files, tokenizer_files)
    return plan, planner, begun


def _write(writer: FileSystemWriter, plan: SavePlan, source: Any, folder: Path) -> _Written:
    """Writes one rank's share, brings it to the disk and reads it back for its digest."""
    try:
        future = writer.write_data(plan, source)
        future.wait()
        results = future.value()
        names = {str(result.storage_data.relative_path) for result in results}
        return _Written(results, {name: describe(folder / name) for name in names})
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # some of torch's errors are BaseExceptions
        return _Written(problem=_in_words(error, folder))


def _in_words(error: BaseException, folder: Path) -> str:
    if shutil.disk_usage(folder.parent).free < _FULL_BYTES:
        return "the disk is full"
    if isinstance(error, OSError):
        return str(error.strerror or error)
    return first_line(error)


def _complete(begun: _Begun, parts: list[_Written], final: Path, guard: Callable[[], None]) -> str | None:
    """Rank 0: adds what exists once, seals the checkpoint and gives it its name. Returns what is wrong."""
    folder = begun.unfinished
    if problem := next((part.problem for part in parts if part.problem is not None), None):
        return problem
    try:
        assert begun.metadata is not None
        begun.writer.finish(begun.metadata, [part.results for part in parts])
        (folder / COMMON_STATE_FNAME).write_bytes(begun.common)
        save_config(CheckpointingConfig("torch_dist", 1), str(folder))
        _write_companions(folder, begun.record, begun.base_files, begun.tokenizer_files)
        seal(folder, {name: entry for part in parts for name, entry in part.files.items()})
        guard()
        folders.put_in_place(folder, final)
    except Exception as error:
        return _in_words(error, folder)
    return None


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
