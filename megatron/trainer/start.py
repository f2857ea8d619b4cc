# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint a run starts from: found, compared with its manifest, replaced by an older one if damaged.

Every rank takes part, so that all agree and none starts to train before all of a checkpoint was looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.backend import Backend
from megatron.checkpointing import folders, manifest
from megatron.checkpointing.record import CheckpointRecord
from megatron.checkpointing.state import damage, unreadable
from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import UserError
from megatron.trainer.telling import on_all_ranks


@dataclass(frozen=True)
class Start:
    """A checkpoint that was found good, and whether all of its state is taken or its weights alone."""

    folder: Path
    record: CheckpointRecord
    is_own: bool

    @property
    def iteration(self) -> int:
        return self.record.iteration if self.is_own else 0

    @property
    def sequences_seen(self) -> int:
        return self.record.sequences_seen if self.is_own else 0


@dataclass(frozen=True)
class _Wanted:
    """What the configuration asks for. Only what it does not name itself may be replaced by an older one."""

    folder: Path
    is_own: bool
    may_be_older: bool


def choose_start(cfg: RunConfig, backend: Backend, log: Callable[[str], None]) -> Start | None:
    """The checkpoint to start from, None to start from scratch; the same on every rank.

    Raises:
        UserError: there is none where one is named, or none that is whole.
    """
    if backend.is_main and cfg.checkpoint.save is not None:
        undone = folders.undo_half_replaced(cfg.checkpoint.save)
        if undone is not None:
            log(f"{undone} was about to be replaced when the run was killed; it is in its place again")
    on_all_ranks(lambda: None)  # nobody looks before that is done
    wanted = on_all_ranks(lambda: _wanted(cfg, log))
    if wanted is None:
        return None
    found = find_whole(wanted.folder, cfg, backend, log)
    if isinstance(found, CheckpointRecord):
        return Start(wanted.folder, found, wanted.is_own)
    if not wanted.may_be_older:
        raise unreadable(wanted.folder, found)
    return _older(wanted, found, cfg, backend, log)


def _wanted(cfg: RunConfig, log: Callable[[str], None]) -> _Wanted | None:
    checkpoint = cfg.checkpoint
    save, load, iteration = checkpoint.save, checkpoint.load, checkpoint.iteration
    goes_back = load is not None and load == save and iteration is not None
    # An `iteration` of another folder is where this run began: the same command goes on all the same.
    own = folders.find(save) if save is not None and not goes_back else None
    if own is not None:
        if load not in (None, save):
            log(f"resuming {own}: `save` holds a checkpoint, so `load` ({load}) is not read")
        return _Wanted(own, is_own=True, may_be_older=True)
    if load is None:
        return None
    found = folders.find(load, iteration)
    if found is None:
        if load != save:
            raise UserError(
                f"load={load}: no checkpoint there; give a folder with `latest`, or remove the key "
                "to train from scratch"
            )
        return None
    if goes_back:
        log(f"going back to {found}; checkpoints after it are replaced as the run comes to them")
    return _Wanted(found, is_own=goes_back or not checkpoint.finetune, may_be_older=False)


def _older(wanted: _Wanted, why: str, cfg: RunConfig, backend: Backend, log: Callable[[str], None]) -> Start:
    """The newest good checkpoint before the damaged one that `latest` names."""
    save, damaged = wanted.folder.parent, [f"{wanted.folder.name}: {why}"]
    log(f"warning: {wanted.folder} is damaged and not used: {why}")
    newest = folders.iteration_of(wanted.folder)
    there = on_all_ranks(lambda: folders.iterations_in(save))
    for iteration in reversed([step for step in there if step < newest]):
        folder = save / folders.step_name(iteration)
        found = find_whole(folder, cfg, backend, log)
        if isinstance(found, CheckpointRecord):
            log(
                f"warning: going on from {folder}, the newest good checkpoint; the iterations after it are "
                "trained again"
            )
            return Start(folder, found, wanted.is_own)
        log(f"warning: {folder} is damaged and not used: {found}")
        damaged.append(f"{folder.name}: {found}")
    raise UserError(
        f"save={save}: none of its checkpoints can be used ({'; '.join(damaged)}); copy one from where it is "
        "whole, or start again with another save"
    )


def find_whole(
    folder: Path, cfg: RunConfig, backend: Backend, log: Callable[[str], None]
) -> CheckpointRecord | str:
    """The record of a checkpoint whose files are as they were written, or what is wrong; on every rank."""
    level, started = cfg.checkpoint.checkpoint_verify, time.perf_counter()

    def look() -> tuple[CheckpointRecord, manifest.Verified | None]:
        verified = None
        if level != "none":
            contents = level == "full"
            part, parts = backend.rank, backend.world_size
            verified = manifest.verify(folder, contents=contents, part=part, parts=parts)
        if backend.is_main and (short := damage(folder)):
            raise manifest.Damaged(short)
        return CheckpointRecord.read(folder), verified

    def look_in_words() -> Any:
        try:
            return look()
        except manifest.Damaged as error:
            raise UserError(str(error)) from None

    try:
        record, verified = on_all_ranks(look_in_words)
    except UserError as error:
        return str(error)
    if verified is not None and not verified.has_manifest:
        log(f"{folder} is from before there were manifests: its contents are taken as they are")
    elif verified is not None:
        what = "every byte" if level == "full" else "sizes"
        log(f"verified {folder}: {what} as written ({time.perf_counter() - started:.1f} s)")
    return record
