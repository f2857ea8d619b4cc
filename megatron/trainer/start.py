# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint a run starts from: found, downloaded, verified, replaced by an older one if damaged.

Every rank takes part, so that all agree and none starts to train before all of a checkpoint was looked at.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron.backend import Backend
from megatron.checkpointing import download, folders, manifest
from megatron.checkpointing.index import damage
from megatron.checkpointing.record import CheckpointRecord
from megatron.checkpointing.remote import open_remote, split_url
from megatron.checkpointing.state import unreadable
from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import UserError
from megatron.trainer.telling import on_all_ranks, on_main_rank

# Folder in `save` for a checkpoint of another run's URL; removed once this run has a checkpoint of its own.
_DOWNLOADS = "downloads"
_POLL_SECONDS = 0.2


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
    url: str | None = None  # of the run's folder that it is downloaded from first

    @property
    def place(self) -> str:
        """Where this checkpoint and others of its run are, as the user knows it."""
        return self.url or str(self.folder.parent)

    def iterations(self) -> list[int]:
        """Iterations in the same place, ascending."""
        if self.url is None:
            return folders.iterations_in(self.folder.parent)
        return download.whole_iterations(open_remote(self.url))

    def unreadable(self, why: str) -> UserError:
        if self.url is None:
            return unreadable(self.folder, why)
        return download.damaged(open_remote(self.url), folders.iteration_of(self.folder), why)


def choose_start(cfg: RunConfig, backend: Backend, log: Callable[[str], None]) -> Start | None:
    """The checkpoint to start from, None to start from scratch; the same on every rank.

    Raises:
        UserError: there is none where one is named, or none that is whole.
    """
    if backend.is_main and cfg.checkpoint.save is not None:
        undone = folders.undo_half_replaced(cfg.checkpoint.save)
        if undone is not None:
            log(f"{undone} was about to be replaced when the run was killed; it is in its place again")
    wanted = on_main_rank(lambda: _wanted(cfg, log))
    if wanted is None:
        return None
    found = _good(wanted, cfg, backend, log)
    if isinstance(found, CheckpointRecord):
        return Start(wanted.folder, found, wanted.is_own)
    if not wanted.may_be_older:
        raise on_main_rank(lambda: wanted.unreadable(found))
    return _older(wanted, found, cfg, backend, log)


def _wanted(cfg: RunConfig, log: Callable[[str], None]) -> _Wanted | None:
    checkpoint = cfg.checkpoint
    save, s3_path = checkpoint.save, checkpoint.s3_path
    load, iteration = checkpoint.load, checkpoint.iteration
    is_own_place = load is not None and load in (save, s3_path)
    goes_back = is_own_place and iteration is not None
    # An `iteration` of another folder is where this run began: the same command goes on all the same.
    own = folders.find(save) if save is not None and not goes_back else None
    if own is not None:
        shutil.rmtree(own.parent / _DOWNLOADS, ignore_errors=True)  # where this run began
        if load is not None and not is_own_place:
            log(f"resuming {own}: `save` holds a checkpoint, so `load` ({load}) is not read")
        return _Wanted(own, is_own=True, may_be_older=True)
    if s3_path is not None and save is not None and not goes_back:
        uploaded = download.find_remote(open_remote(s3_path))
        if uploaded is not None:
            unread = "" if load is None or is_own_place else f", so `load` ({load}) is not read"
            folder = save / folders.step_name(uploaded)
            log(f"resuming {s3_path}/{folder.name}: {save} holds no checkpoint, `s3_path` does{unread}")
            return _Wanted(folder, is_own=True, may_be_older=True, url=s3_path)
    if load is None:
        return None
    if isinstance(load, str):
        return _wanted_at_url(cfg, load, log, goes_back=goes_back, may_be_missing=is_own_place)
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


def _wanted_at_url(
    cfg: RunConfig, load: str, log: Callable[[str], None], *, goes_back: bool, may_be_missing: bool
) -> _Wanted | None:
    save, is_own = cfg.checkpoint.save, goes_back or not cfg.checkpoint.finetune
    assert save is not None  # checks.py
    url, named = split_url(load)
    wanted = cfg.checkpoint.iteration if named is None else named
    if goes_back and wanted in folders.iterations_in(save):
        found = save / folders.step_name(wanted)
        log(f"going back to {found}; checkpoints after it are replaced as the run comes to them")
        return _Wanted(found, is_own=True, may_be_older=False)
    iteration = download.find_remote(open_remote(url), wanted)
    if iteration is None and may_be_missing:
        return None
    if iteration is None:
        raise UserError(
            f"load={load}: no checkpoint there; give a URL with `latest` in it, or remove the key to train "
            "from scratch"
        )
    # Another run's checkpoint in `save` would be taken for this run's own.
    into = save if goes_back else save / _DOWNLOADS / hashlib.sha256(url.encode()).hexdigest()[:12]
    if goes_back:
        log(f"going back to {url}/{folders.step_name(iteration)}; checkpoints after it are replaced as the "
            "run comes to them")  # fmt: skip
    return _Wanted(into / folders.step_name(iteration), is_own, may_be_older=False, url=url)


def _older(wanted: _Wanted, why: str, cfg: RunConfig, backend: Backend, log: Callable[[str], None]) -> Start:
    """The newest good checkpoint before the damaged one that `latest` names."""
    place, newest = wanted.place, folders.iteration_of(wanted.folder)
    damaged = [f"{wanted.folder.name}: {why}"]
    log(f"warning: {place}/{wanted.folder.name} is damaged and not used: {why}")
    there = on_main_rank(wanted.iterations)
    for iteration in reversed([step for step in there if step < newest]):
        older = replace(wanted, folder=wanted.folder.with_name(folders.step_name(iteration)))
        found = _good(older, cfg, backend, log)
        if isinstance(found, CheckpointRecord):
            log(
                f"warning: going on from {place}/{older.folder.name}, the newest good checkpoint; the "
                "iterations after it are trained again"
            )
            return Start(older.folder, found, wanted.is_own)
        log(f"warning: {place}/{older.folder.name} is damaged and not used: {found}")
        damaged.append(f"{older.folder.name}: {found}")
    key = "save" if wanted.url is None else "s3_path"
    raise UserError(
        f"{key}={place}: none of its checkpoints can be used ({'; '.join(damaged)}); copy one from where it "
        f"is whole, or start again with another {key}"
    )


def _good(
    wanted: _Wanted, cfg: RunConfig, backend: Backend, log: Callable[[str], None]
) -> CheckpointRecord | str:
    """The record of a checkpoint that is here and whole, downloaded if need be, or what is wrong with it."""
    if wanted.url is not None and (damage := _download(wanted.url, wanted.folder, backend, log)) is not None:
        return damage
    return find_whole(wanted.folder, cfg, backend, log)


def _download(url: str, folder: Path, backend: Backend, log: Callable[[str], None]) -> str | None:
    """Brings a checkpoint from `url` to `folder`, every rank its share of the files; returns what is wrong.

    Raises:
        UserError: on every rank, where any cannot go on.
    """
    remote, iteration, started = open_remote(url), folders.iteration_of(folder), time.perf_counter()

    def begin() -> Path | str | None:
        if download.is_same(remote, iteration, folder):
            return None
        try:
            return download.begin(remote, iteration, folder.parent)
        except manifest.Damaged as damage:
            return str(damage)

    partial = on_main_rank(begin)
    if not isinstance(partial, Path):
        return partial

    def fetch() -> str | None:
        try:
            download.fetch(remote, iteration, partial, backend.rank, backend.world_size)
        except manifest.Damaged as damage:
            return str(damage)
        return None

    # Ranks may take very different times, longer than a collective waits: they keep asking each other.
    with ThreadPoolExecutor(1) as pool:
        share = pool.submit(fetch)
        while not _all(share.done(), backend):
            wait([share], timeout=_POLL_SECONDS)
    damages: list[str | None] = [None] * backend.world_size
    dist.all_gather_object(damages, on_all_ranks(share.result))
    if (found := next((one for one in damages if one is not None), None)) is not None:
        if backend.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        return found
    on_main_rank(lambda: download.complete(partial, iteration))
    log(f"downloaded {url}/{folder.name} to {folder}, as written ({time.perf_counter() - started:.1f} s)")
    return None


def _all(is_so: bool, backend: Backend) -> bool:
    """Whether it is so on every rank."""
    here = torch.tensor(int(is_so), device=backend.device)
    dist.all_reduce(here, dist.ReduceOp.MIN)
    return bool(here)


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
