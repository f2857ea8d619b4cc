# SPDX-License-Identifier: Apache-2.0
"""What a run says when it cannot go on: in one voice for all its ranks, with the command to go on with."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TypeVar

import torch.distributed as dist

from megatron.checkpointing import folders
from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import UserError

T = TypeVar("T")

# How long a rank waits for rank 0 to say the same; less than the launcher's patience with the others.
_PATIENCE = datetime.timedelta(seconds=3)
# As gloo (transport/tcp/pair.cc), NCCL (its error codes) and the store that ranks meet at have it.
_OF_A_LOST_CONNECTION = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection was likely closed",
    "ncclRemoteError",
)


def speaks(error: UserError) -> bool:
    """Whether this rank is the one to print `error`. Called by each rank that has one, in its own time.

    Rank 0 always is; another rank is unless rank 0 has the same error, so that what every rank finds is said
    once and what one rank finds is said all the same. No collective: the others may not be here.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return True
    store = dist.distributed_c10d._get_default_store()  # the ranks' meeting point, served by rank 0
    rank, others = dist.get_rank(), range(1, dist.get_world_size())
    with suppress(dist.DistError):  # nobody came in time, or rank 0 is gone
        if rank == 0:
            store.set("error of rank 0", str(error))
            store.wait([f"rank {other} has read it" for other in others], _PATIENCE)
            return True
        store.wait(["error of rank 0"], _PATIENCE)
        is_same = store.get("error of rank 0").decode() == str(error)
        store.set(f"rank {rank} has read it", "")
        return not is_same
    return True


def end_once(error: UserError) -> NoReturn:
    """Ends this rank with `error` where it is the one to print it, else with its exit status alone.

    To be called while the ranks' meeting point is there, before they shut down.
    """
    if speaks(error):
        raise error
    raise SystemExit(error.exit_code) from None


def lost_connection(error: Exception) -> str | None:
    """What a collective said that failed because a rank's process is gone; None where it is another error.

    gloo has no class of its own for it, NCCL has `DistBackendError` for this and its other troubles.
    """
    said = str(error)
    for words in _OF_A_LOST_CONNECTION:
        if isinstance(error, RuntimeError) and words in said:
            return words
    return None


def on_all_ranks(action: Callable[[], T]) -> T:
    """Does on every rank what may fail on some; `action` does not communicate.

    Raises:
        UserError: on every rank alike, where any rank had one.
    """
    result, problem = None, None
    try:
        result = action()
    except UserError as error:
        problem = str(error)
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for found in problems:
        if found is not None:
            raise UserError(found)
    return result  # type: ignore[return-value]


def on_main_rank(action: Callable[[], T]) -> T:
    """Does on rank 0 what one rank is to find out, and tells every rank; `action` does not communicate.

    Raises:
        UserError: on every rank alike, where rank 0 had one.
    """
    box: list[tuple[T | None, str | None]] = [(None, None)]
    if dist.get_rank() == 0:
        try:
            box = [(action(), None)]
        except UserError as error:
            box = [(None, str(error))]
    dist.broadcast_object_list(box, src=0)
    result, problem = box[0]
    if problem is not None:
        raise UserError(problem)
    return result  # type: ignore[return-value]


def way_back(cfg: RunConfig, iteration: int, command: str) -> str:
    """The last checkpoint from which a lower learning rate helps, and the command for it, in words.

    `iteration` counts the updates in the weights that gave a number that is not finite: a checkpoint of just
    these weights would give it again, so only older ones are good.
    """
    if iteration == 0:
        return (
            f"no step was taken yet: the weights loaded (load={cfg.checkpoint.load}) or the data are at fault"
        )
    lower = f"--set lr={cfg.optimizer.lr / 2:g}"
    save = cfg.checkpoint.save
    there = folders.iterations_in(save) if save is not None else []
    good = [older for older in there if older < iteration]
    if save is None or not good:
        fresh = f" --set save={save}-2" if there else ""
        return f"there is no checkpoint from before; start again with: {command} {lower}{fresh}"
    chosen = f" --set load={save} --set iteration={good[-1]}"
    is_latest = folders.find(save) == save / folders.step_name(good[-1])
    return (
        f"the last good checkpoint is {save / folders.step_name(good[-1])}; "
        f"go on from it with: {command} {lower}{'' if is_latest else chosen}"
    )
