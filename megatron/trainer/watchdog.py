# SPDX-License-Identifier: Apache-2.0
"""Ends a run in which nothing moves, saying which rank is at fault and where, so that it can be restarted.

Two threads on each rank. One watches the time since the main thread began something. When that is too long,
it writes the stacks of all threads to a file, tells the other ranks over their meeting point (the store)
where this one is, completes a checkpoint that was being written in the background, and ends the process. The
other thread gives signs of life to the store; rank 0 looks for those of all ranks. Nothing here uses a
collective, nor waits without a limit: the others may not be there.
"""

from __future__ import annotations

import datetime
import faulthandler
import json
import os
import pickle
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch.distributed as dist

from megatron.backend import Backend
from megatron.neox_arguments.config import RecoveryConfig
from megatron.trainer.collectives import Position, position_here, waited_for

T = TypeVar("T")
# What `rescue` is given: hands over this rank's part, gives all of them on rank 0, None elsewhere.
Exchange = Callable[[Any], "list[Any] | None"]

EXIT_STATUS = 75  # sysexits.h: EX_TEMPFAIL, try again
PATIENCE = 4.0  # for what takes longer than a step: saving, going back
_ANSWER_SECONDS = 8.0  # for the others to say where they are
_SAVE_SECONDS = 120.0  # for a save in the background to be completed
_LEAVE_SECONDS = 2.0  # between the ranks' words and their end, which brings the launcher's
_FOLDER = "hangs"  # in log_dir
_RANK_0_LOST = "rank 0, where the ranks meet, does not answer"
_COLLECTIVES = ("torch/distributed/", "p2p_communication.py")
_OTHERS = ("site-packages", "/lib/python", "<frozen")  # in the file names of code that is not ours


class Watchdog:
    """Watches from `with` to its end. `begins` is called by the main thread whenever it gets on."""

    def __init__(self, limits: RecoveryConfig, backend: Backend, log_dir: Path | None, attempt: int) -> None:
        self._hang_seconds, self._dead_seconds = limits.hang_timeout_seconds, limits.dead_rank_timeout_seconds
        self._backend, self._folder = backend, log_dir / _FOLDER if log_dir is not None else None
        self._main_thread = threading.get_ident()
        self._doing, self._patience, self._begun_seconds = "starting", PATIENCE, time.monotonic()
        self._over = threading.Event()
        self._verdict = ""  # the other thread's, that somebody is lost
        self._prefix = f"watchdog {attempt}"
        self.rescue: Callable[[Exchange], str | None] | None = None  # completes a save; says what it did

    def __enter__(self) -> Watchdog:
        watches = [self._watch] if self._hang_seconds or self._dead_seconds else []
        if self._dead_seconds and self._backend.world_size > 1:
            watches.append(self._exchange_signs_of_life)
        for watch in watches:
            threading.Thread(target=watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    def begins(self, what: str, patience: float = 1.0) -> None:
        """The main thread is alive, and begins something that may take `patience` times the limit."""
        self._doing, self._patience, self._begun_seconds = what, patience, time.monotonic()

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """`items`; the main thread gets on with each of them."""
        for item in items:
            self._begun_seconds = time.monotonic()
            yield item

    def _watch(self) -> None:
        pause = min(1.0, self._hang_seconds / 10 or 1.0)
        while not self._over.wait(pause):
            seconds = time.monotonic() - self._begun_seconds
            hangs = bool(self._hang_seconds) and seconds > self._hang_seconds * self._patience
            if not self._verdict and not hangs:
                continue
            try:
                self._report(seconds)
            except Exception:  # whatever it is, the run has to end
                traceback.print_exc()
            time.sleep(_LEAVE_SECONDS)
            if not self._over.is_set():
                os._exit(EXIT_STATUS)

    def _report(self, seconds: float) -> None:
        """Says all there is to say, and saves what can be saved."""
        stacks, verdict = self._dump_stacks(), self._verdict
        mine = {
            "doing": self._doing,
            "seconds": seconds,
            "host": socket.gethostname(),
            **where(sys._current_frames().get(self._main_thread)),
            "position": position_here().to_json(),
        }
        answers = {self._backend.rank: mine}
        if verdict:
            speaker = 1 if verdict.startswith(_RANK_0_LOST) else 0
        else:
            answers = self._in_time(lambda: self._ask_all(mine), _ANSWER_SECONDS + 2) or answers
            speaker = min(answers)
        if self._backend.rank == speaker:
            for line in [verdict] if verdict else conclude(answers, self._backend.world_size):
                self._say(line)
            self._say(f"stacks: {stacks}; the run ends with status {EXIT_STATUS}, to be started again")
        if not verdict and 0 in answers:
            self._save_what_there_is()

    def _save_what_there_is(self) -> None:
        """The ranks leave together: a launcher ends those that stay behind the first, while they write."""
        saved = self._in_time(lambda: self.rescue and self.rescue(self._exchange), _SAVE_SECONDS)
        if saved:
            self._say(saved)
        if self._backend.world_size > 1:
            self._in_time(self._wait_for_rank_0, _SAVE_SECONDS)

    def _wait_for_rank_0(self) -> None:
        store, key = self._store(), f"{self._prefix} saved"
        if self._backend.is_main:
            store.set(key, "")
        while not store.check([key]):
            time.sleep(0.1)

    def _say(self, line: str) -> None:
        print(f"watchdog: {line}", file=sys.stderr, flush=True)

    def _dump_stacks(self) -> str:
        if self._folder is None:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            return "above"
        path = self._folder / f"rank{self._backend.rank}.txt"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a") as file:
                file.write(
                    f"--- {datetime.datetime.now().isoformat()} process {os.getpid()}: {self._doing}\n"
                )
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            return f"not written ({error.strerror})"
        return str(self._folder)

    def _in_time(self, action: Callable[[], T], limit_seconds: float) -> T | None:
        """What `action` returns, or None where it takes too long or fails: the store may not answer."""
        results: list[T] = []

        def act() -> None:
            try:
                results.append(action())
            except Exception:  # whatever it is, the process ends
                self._say(traceback.format_exc().strip().splitlines()[-1])

        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        thread.join(limit_seconds)
        return results[0] if results else None

    def _store(self) -> Any:
        """A connection of its own to where the ranks meet: the main thread may be holding the other."""
        store: Any = dist.distributed_c10d._get_default_store()
        return store.clone()

    def _ask_all(self, mine: dict[str, Any]) -> dict[int, dict[str, Any]]:
        """Where every rank is that answers in time."""
        if self._backend.world_size == 1:
            return {0: mine}
        store = self._store()
        store.set(f"{self._prefix} at {self._backend.rank}", json.dumps(mine))
        answers: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + _ANSWER_SECONDS
        while len(answers) < self._backend.world_size and time.monotonic() < deadline:
            for rank in set(range(self._backend.world_size)) - set(answers):
                if store.check([f"{self._prefix} at {rank}"]):
                    answers[rank] = json.loads(store.get(f"{self._prefix} at {rank}"))
            time.sleep(0.1)
        return answers

    def _exchange(self, part: Any) -> list[Any] | None:
        """Gathers what ranks have, as `gather_object` does, over the store."""
        if self._backend.world_size == 1:
            return [part]
        store = self._store()
        store.set(f"{self._prefix} part {self._backend.rank}", pickle.dumps(part))
        if not self._backend.is_main:
            return None
        keys = [f"{self._prefix} part {rank}" for rank in range(self._backend.world_size)]
        store.wait(keys, datetime.timedelta(seconds=_SAVE_SECONDS / 2))
        return [pickle.loads(store.get(key)) for key in keys]

    def _exchange_signs_of_life(self) -> None:
        """Gives one every now and then; on rank 0 looks for everybody's."""
        pause = min(2.0, self._dead_seconds / 5)
        heard = dict.fromkeys(range(self._backend.world_size), (b"", time.monotonic()))
        try:
            store = self._store()
            count = 0
            while not self._over.wait(pause):
                count += 1
                store.set(f"{self._prefix} alive {self._backend.rank}", str(count))
                if self._backend.is_main:
                    lost = self._silent(store, heard)
                    if lost:
                        store.set(f"{self._prefix} lost", lost)
                        self._verdict = lost
                        return
                elif store.check([f"{self._prefix} lost"]):
                    self._verdict = store.get(f"{self._prefix} lost").decode()
                    return
        except dist.DistError as error:
            self._over.wait(self._dead_seconds)  # a run that ends in order, or by an error, ends meanwhile
            self._verdict = f"{_RANK_0_LOST}: {str(error).splitlines()[0]}"

    def _silent(self, store: Any, heard: dict[int, tuple[bytes, float]]) -> str:
        now = time.monotonic()
        for rank, (last, _) in heard.items():
            key = f"{self._prefix} alive {rank}"
            sign = store.get(key) if store.check([key]) else b""
            if sign != last:
                heard[rank] = (sign, now)
        silent = [rank for rank, (_, at) in heard.items() if now - at > self._dead_seconds]
        if not silent:
            return ""
        names = f"rank{'s' if len(silent) > 1 else ''} {', '.join(map(str, silent))}"
        return f"{names}: no sign of life for {self._dead_seconds:g} s: stopped, or its machine is gone"


def where(frame: FrameType | None) -> dict[str, Any]:
    """The innermost line of a stack, with the innermost of ours, and whether it is in a collective."""
    if frame is None:
        return {"at": "an unknown place", "is_in_collective": False}
    stack = traceback.extract_stack(frame)
    ours = [line for line in stack if not any(part in line.filename for part in _OTHERS)]
    named = [stack[-1], *([ours[-1]] if ours and ours[-1] is not stack[-1] else [])]
    return {
        "at": ", from ".join(f"{line.name} ({Path(line.filename).name}:{line.lineno})" for line in named),
        "is_in_collective": any(part in line.filename for line in stack for part in _COLLECTIVES),
    }


def conclude(answers: dict[int, dict[str, Any]], world_size: int) -> list[str]:
    """Who is waited for, in which collective, and what they do instead: one line for each.

    The recorder knows it, but for some collectives of gloo; then the ranks' stacks tell who is in none.
    """
    positions: dict[int, Position | None] = dict.fromkeys(range(world_size))
    positions.update({rank: Position.of_json(answer["position"]) for rank, answer in answers.items()})
    some = answers[min(answers)]
    lines = [f"nothing has moved for {some['seconds']:.0f} s in {some['doing']}"]
    blamed = waited_for(positions)
    for rank, waiting in blamed.items():
        position = positions[waiting[0]]
        assert position is not None
        assert position.waiting is not None
        at = position.waiting
        collective = f"{at.name} number {at.number} of group {at.group}"
        lines.append(_accusation(rank, collective, waiting, answers.get(rank)))
    waiting = [rank for rank, answer in sorted(answers.items()) if answer["is_in_collective"]]
    if not blamed and waiting:
        for rank in sorted(set(range(world_size)) - set(waiting)):
            lines.append(_accusation(rank, answers[waiting[0]]["at"], waiting, answers.get(rank)))
    if len(lines) == 1:
        lines += [f"rank {rank} is in {answer['at']}" for rank, answer in sorted(answers.items())[:8]]
    return lines


def _accusation(rank: int, collective: str, waiting: list[int], answer: dict[str, Any] | None) -> str:
    who = f"rank{'s' if len(waiting) > 1 else ''} {', '.join(map(str, waiting[:8]))}"
    instead = f"it is in {answer['at']} on {answer['host']}" if answer is not None else "it does not answer"
    return f"rank {rank} did not come to {collective}, where {who} waited for it; {instead}"
