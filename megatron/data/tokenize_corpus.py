# SPDX-License-Identifier: Apache-2.0
"""A corpus to a token file: one process reads and writes in order, many tokenise in between.

The output is the same to the byte for any number of processes. Memory is bounded: a few chunks a process, and
four bytes a document for the index."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from megatron.data.readers import Broken, Chunk, Corpus
from megatron.data.token_file import Provenance, Sidecar, TokenFileWriter, TokenizerRecord, token_dtype
from megatron.neox_arguments.errors import UserError
from megatron.tokenizer import Tokenizer, build_tokenizer

_SHOWN_BROKEN_LINES = 20


@dataclass(frozen=True)
class TokenizerSpec:
    """What a process needs to build the tokenizer."""

    tokenizer_type: str
    vocab_file: Path
    eod: str | None = None


@dataclass(frozen=True)
class TokenizedChunk:
    """The documents of one chunk, laid end to end."""

    tokens_T: npt.NDArray[Any]
    lengths_D: npt.NDArray[np.int32]
    text_bytes: int
    empty_documents: int
    broken: list[Broken]


@functools.lru_cache(maxsize=1)
def _tokenizer_of_process(spec: TokenizerSpec) -> Tokenizer:
    return build_tokenizer(spec.tokenizer_type, spec.vocab_file, spec.eod)


def tokenize_chunk(chunk: Chunk, spec: TokenizerSpec, append_eod: bool) -> TokenizedChunk:
    """Tokenise one chunk. A document without a single token is left out and counted, as GPT-NeoX leaves it
    out.
    """
    tokenizer = _tokenizer_of_process(spec)
    records = list(chunk.records())
    broken = [record for record in records if isinstance(record, Broken)]
    texts = [record.text for record in records if not isinstance(record, Broken)]
    ids = [document for document in tokenizer.encode_batch(texts) if document]
    if append_eod:
        for document in ids:
            document.append(tokenizer.eod_id)
    lengths = np.fromiter(map(len, ids), dtype=np.int32, count=len(ids))
    total = int(lengths.sum(dtype=np.int64))
    flat = np.fromiter(
        itertools.chain.from_iterable(ids), dtype=token_dtype(tokenizer.vocab_size), count=total
    )
    text_bytes = sum(len(text.encode("utf-8")) for text in texts)
    return TokenizedChunk(flat, lengths, text_bytes, len(texts) - len(ids), broken)


def _start_process() -> None:
    """A process ends with the one that started it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes run beside each other, not threads
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


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

    def say(self, line: str) -> None:
        """A line of its own."""
        print(f"\r\033[K{line}" if self.stream.isatty() else line, file=self.stream, flush=True)


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _in_order(
    pool: ProcessPoolExecutor, corpus: Corpus, spec: TokenizerSpec, append_eod: bool, window: int
) -> Iterator[tuple[TokenizedChunk, int]]:
    """Each chunk tokenised, in the order of the corpus, with the bytes of input read up to it."""
    waiting: deque[tuple[Future[TokenizedChunk], int]] = deque()
    for chunk in corpus.chunks():
        # Processes are started here and inherit the blocked signal: Ctrl-C is for this one alone.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            future = pool.submit(tokenize_chunk, chunk, spec, append_eod)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        waiting.append((future, corpus.read_bytes))
        if len(waiting) >= window:
            future, done_bytes = waiting.popleft()
            yield future.result(), done_bytes
    while waiting:
        future, done_bytes = waiting.popleft()
        yield future.result(), done_bytes


@dataclass
class _BrokenLines:
    """Counts broken lines, and stops at them or shows them."""

    skip: bool
    progress: Progress
    count: int = 0

    def add(self, broken: list[Broken]) -> None:
        """Take note of the broken lines of one chunk."""
        self.count += len(broken)
        if broken and not self.skip:
            shown = "\n  ".join(f"{line.where}: {line.reason}" for line in broken[:_SHOWN_BROKEN_LINES])
            more = (
                f"\n  and {len(broken) - _SHOWN_BROKEN_LINES} more"
                if len(broken) > _SHOWN_BROKEN_LINES
                else ""
            )
            raise UserError(
                f"{len(broken)} broken line(s) up to here; nothing was written and what was there has not "
                "changed\n"
                f"  {shown}{more}\n  repair the input, or leave such lines out with --on-bad-line skip"
            )
        already = self.count - len(broken)
        for line in broken[: max(0, _SHOWN_BROKEN_LINES - already)]:
            self.progress.say(f"skipped: {line.where}: {line.reason}")
        if already <= _SHOWN_BROKEN_LINES < self.count:
            self.progress.say("skipped: more broken lines, only counted from here on")


def tokenize_corpus(
    corpus: Corpus,
    prefix: Path,
    spec: TokenizerSpec,
    *,
    append_eod: bool,
    workers: int,
    skip_broken: bool = False,
    overwrite: bool = False,
    log_interval_seconds: float = 5.0,
) -> Sidecar:
    """Tokenise `corpus` into the token file `prefix` with `workers` processes; returns what its sidecar says.

    Errors: `UserError` for a broken line (unless `skip_broken`), a corpus without a token, an existing output
    (unless `overwrite`), a disk that refuses, and a process that dies. After any of them, `prefix` is as it
    was before."""
    tokenizer = build_tokenizer(spec.tokenizer_type, spec.vocab_file, spec.eod)
    progress = Progress(corpus.total_bytes, log_interval_seconds)
    broken = _BrokenLines(skip_broken, progress)
    text_bytes = empty_documents = 0
    with TokenFileWriter(prefix, tokenizer.vocab_size, overwrite) as writer:
        # spawn: a forked copy of a process with threads (Arrow has some) may stand still for ever
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_process)
        try:
            for done, done_bytes in _in_order(pool, corpus, spec, append_eod, window=2 * workers + 2):
                broken.add(done.broken)
                writer.add_documents(done.tokens_T, done.lengths_D)
                text_bytes += done.text_bytes
                empty_documents += done.empty_documents
                progress.show(done_bytes, text_bytes, writer.documents, writer.tokens)
        except BrokenProcessPool:
            raise UserError(
                f"--workers {workers}: a process was killed, most often for want of memory; "
                "use fewer workers; nothing that was there has changed"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        sidecar = writer.finalize(
            Provenance(
                tokenizer=TokenizerRecord(
                    type=tokenizer.name,
                    fingerprint=tokenizer.fingerprint,
                    vocab_size=tokenizer.vocab_size,
                    eod_id=tokenizer.eod_id,
                    eod_appended=append_eod,
                ),
                text_bytes=text_bytes,
                empty_documents=empty_documents,
                broken_lines=broken.count,
                sources=corpus.sources(),
            )
        )
    _say_result(progress, prefix, sidecar)
    return sidecar


def _say_result(progress: Progress, prefix: Path, sidecar: Sidecar) -> None:
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
