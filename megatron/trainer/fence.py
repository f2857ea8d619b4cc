# SPDX-License-Identifier: Apache-2.0
"""One attempt at a run writes to its folders: the newest. A number in `save/attempt` says which that is.

A scheduler may start a run again while processes of the attempt before are still there, on a machine that it
could not reach for instance. The new attempt takes the next number when it is about to train. Rank 0 of every
attempt compares before it puts a checkpoint in place and before each line of the record; and what an attempt
has not finished writing lies under names with its number.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron.backend import Backend
from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.whole_files import write_whole
from megatron.trainer.telling import on_all_ranks

ATTEMPT = "attempt"
_LOOK_SECONDS = 1.0  # between two looks at the file from the loop


class Superseded(UserError):
    """Another attempt at this run has begun."""


class Fence:
    """This attempt's claim on `save`; a run without `save` has nothing to claim."""

    def __init__(self, save: Path | None, number: int, mark: str, is_main: bool) -> None:
        self._path = save / ATTEMPT if save is not None else None
        self.number, self._mark, self._is_main = number, mark, is_main
        self._looked_seconds, self._is_passed = time.monotonic(), False

    @staticmethod
    def claim(save: Path | None, backend: Backend) -> Fence:
        """Called on every rank; from here on, attempts before this one may not write.

        Raises:
            UserError: the file cannot be written.
        """

        def claim_here() -> tuple[int, str]:
            return _claim(save) if backend.is_main and save is not None else (0, "")

        claimed: list[Any] = [on_all_ranks(claim_here)]
        dist.broadcast_object_list(claimed, src=0)
        number, mark = claimed[0]
        return Fence(save, number, mark, backend.is_main)

    def check(self) -> None:
        """Compares, on rank 0; the others have nothing to compare.

        Raises:
            Superseded: a newer attempt has begun.
        """
        if self._path is None or not self._is_main:
            return
        newest = _read(self._path)
        self._is_passed = bool(newest) and newest["mark"] != self._mark
        if self._is_passed:
            raise Superseded(
                f"save={self._path.parent}: attempt {newest['attempt']} at this run has begun (process "
                f"{newest['process']} on {newest['host']}), so this one, attempt {self.number}, stops and "
                "writes nothing more; let that one go on, or end it and run the same command again"
            )

    def may_write(self) -> bool:
        """The same as an answer, for what can simply be left out until all ranks know."""
        try:
            self.check()
        except Superseded:
            return False
        return True

    def is_passed(self) -> bool:
        """Whether a newer attempt has begun; looks now and then, so that it may be asked every step."""
        now = time.monotonic()
        if not self._is_passed and now - self._looked_seconds >= _LOOK_SECONDS:
            self._looked_seconds = now
            self.may_write()
        return self._is_passed


def _claim(save: Path) -> tuple[int, str]:
    path = save / ATTEMPT
    number, mark = int(_read(path).get("attempt", 0)) + 1, uuid.uuid4().hex
    content = {"attempt": number, "host": socket.gethostname(), "process": os.getpid(), "mark": mark}
    try:
        save.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content) + "\n")
    except OSError as error:
        raise UserError(
            f"save={save}: {error.strerror} ({path}); choose another folder, or free space"
        ) from error
    return number, mark


def _read(path: Path) -> dict[str, Any]:
    """Empty where there is none, or where it cannot be read now: that stops nobody."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    is_ours = isinstance(content, dict) and {"attempt", "host", "process", "mark"} <= content.keys()
    return content if is_ours else {}
