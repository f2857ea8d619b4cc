# SPDX-License-Identifier: Apache-2.0
"""What a tokenising command says while it works and when it is done."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from megatron.data.token_file import Sidecar


@dataclass
class Progress:
    """Lines, or one line on a terminal, with the rate and the time left, judged by the input read."""

    total_bytes: int
    interval_seconds: float = 5.0
    stream: IO[str] = field(default_factory=lambda: sys.stderr)
    _started: float = field(default_factory=time.monotonic)
    _shown: float = 0.0

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def show(self, done_bytes: int, text_bytes: int, documents: int, tokens: int) -> None:
        """Say where we are, if the interval has passed."""
        interval = min(0.5, self.interval_seconds) if self.stream.isatty() else self.interval_seconds
        if self.seconds - self._shown < interval:
            return
        self._shown = seconds = self.seconds
        left = seconds * (self.total_bytes - done_bytes) / done_bytes if done_bytes else float("inf")
        share = done_bytes / self.total_bytes if self.total_bytes else 1.0
        line = (
            f"{share:6.1%} | {documents:,} documents | {tokens:,} tokens | {text_bytes / 1e6 / seconds:.1f} "
            "MB/s | "
            f"{documents / seconds:,.0f} documents/s | {_clock(left)} left"
        )
        if self.stream.isatty():
            self.stream.write(f"\r\033[K{line}")
            self.stream.flush()
        else:
            print(line, file=self.stream, flush=True)

    @property
    def wait_seconds(self) -> float:
        """How long to wait for news before the line is shown again."""
        return max(0.1, min(1.0, self.interval_seconds))

    def say(self, line: str) -> None:
        """A line of its own."""
        print(f"\r\033[K{line}" if self.stream.isatty() else line, file=self.stream, flush=True)


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def say_made(progress: Progress, prefix: Path) -> None:
    """That a former command has done all."""
    progress.say(f"{prefix}: is there, of these inputs and this tokenizer; nothing to do")


def say_result(progress: Progress, prefix: Path, sidecar: Sidecar) -> None:
    left_out = [
        f"{count:,} {what} left out"
        for count, what in (
            (sidecar.empty_documents, "empty documents"),
            (sidecar.broken_lines, "broken lines"),
        )
        if count
    ]
    seconds = progress.seconds
    progress.say(
        f"{prefix}: {sidecar.documents:,} documents, {sidecar.tokens:,} tokens of "
        f"{sidecar.text_bytes / 1e6:,.1f} MB "
        f"of text in {seconds:.1f} s ({sidecar.text_bytes / 1e6 / seconds:.1f} MB/s)"
        + "".join(f"; {part}" for part in left_out)
    )
