# SPDX-License-Identifier: Apache-2.0
"""A model that one program talks to, on however many ranks it lies.

Rank 0 runs the program (a server, the harness, a prover) and calls `step`, `score` and `search_beams`;
the other ranks call `follow`, which does the same work beside it until rank 0 closes the session.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch

from megatron.backend import Backend
from megatron.model import BuiltModel
from megatron.model.reading import ModelReader
from megatron.text_generation.beams import Beam, BeamOrder, Ends, search_beams
from megatron.text_generation.engine import Engine
from megatron.text_generation.ranks import Ranks
from megatron.text_generation.requests import NewToken, Request
from megatron.text_generation.scoring import Pair, Score, score


@dataclass(frozen=True)
class _Size:
    """How large an engine is."""

    max_batch_sequences: int
    max_cache_tokens: int


class ModelSession:
    """An engine and a scorer over one model."""

    def __init__(
        self,
        built: BuiltModel,
        backend: Backend,
        *,
        max_batch_sequences: int = 0,
        max_cache_tokens: int = 0,
    ) -> None:
        """Takes the memory of a cache if its size is given; `open_engine` does it later, or anew."""
        self._built, self._backend = built, backend
        self._ranks = Ranks(backend)
        self._reader = ModelReader(built, backend)
        # In float32 likelihoods are compared to the last digits. oneDNN adds up in another order than the
        # library that torch takes by itself: a sum over 70 tokens of SmolLM2 is then 5e-5 from transformers',
        # and otherwise 3e-6.
        is_exact = self._reader.dtype == torch.float32
        self._scorer = ModelReader(built, backend, is_kept=False) if is_exact else self._reader
        self._engine: Engine | None = None
        self._is_closed = False
        self._is_between = True
        if max_batch_sequences:
            self._open(_Size(max_batch_sequences, max_cache_tokens))

    def _open(self, size: _Size) -> None:
        self._engine = None  # its memory goes before the next is taken
        self._engine = Engine(
            self._built,
            self._backend,
            max_batch_sequences=size.max_batch_sequences,
            max_cache_tokens=size.max_cache_tokens,
            reader=self._reader,
            ranks=self._ranks,
        )

    @property
    def engine(self) -> Engine:
        """The engine, which is open."""
        assert self._engine is not None, "open_engine comes first"
        return self._engine

    @property
    def is_first(self) -> bool:
        """Whether this rank runs the program."""
        return self._ranks.is_first

    @property
    def products(self) -> str:
        """How weights are multiplied with on this rank, for a log."""
        return self._reader.products

    @property
    def idle(self) -> bool:
        """Whether the engine has nothing to do."""
        return self._engine is None or self._engine.idle

    def open_engine(self, *, max_batch_sequences: int, max_cache_tokens: int) -> None:
        """A cache of another size; nothing is under way. On rank 0 only."""
        assert self.idle, "requests are under way"
        size = _Size(max_batch_sequences, max_cache_tokens)
        if self._engine is None or size != _Size(
            self._engine.max_batch_sequences, self._engine.max_cache_tokens
        ):
            with self._together():
                self._open(self._ranks.share(size))

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Marks what all ranks do: after an error in it nobody knows where the others are."""
        self._is_between = False
        yield
        self._is_between = True

    def add(self, request: Request) -> int:
        """See `Engine.add`."""
        return self.engine.add(request)

    def cancel(self, number: int) -> None:
        """See `Engine.cancel`."""
        self.engine.cancel(number)

    def step(self) -> list[NewToken]:
        """See `Engine.step`; on rank 0 only."""
        with self._together():
            self._ranks.share("step")
            return self.engine.step()

    def score(self, pairs: Sequence[Pair]) -> list[Score]:
        """See `scoring.score`; on rank 0 only."""
        with self._together():
            return self._score(self._ranks.share(list(pairs)))

    def _score(self, pairs: Sequence[Pair]) -> list[Score]:
        return score(self._built, self._backend, pairs, reader=self._scorer)

    def search_beams(self, order: BeamOrder, ends: Ends) -> list[Beam]:
        """See `beams.search_beams`; on rank 0 only. It takes its own memory, and gives it back."""
        with self._together():
            return search_beams(self._reader, self._ranks, self._ranks.share(order), ends)

    def follow(self) -> None:
        """Works beside rank 0 until it closes the session; on the other ranks.

        Raises:
            RuntimeError: rank 0 has gone without closing it.
        """
        assert not self.is_first, "rank 0 leads"
        while True:
            word: str | _Size | BeamOrder | list[Pair] = self._ranks.share(None)
            if word == "end":
                return
            if isinstance(word, _Size):
                self._open(word)
            elif isinstance(word, BeamOrder):
                search_beams(self._reader, self._ranks, word, None)
            elif isinstance(word, str):
                self.engine.step()
            else:
                self._score(word)

    def close(self) -> None:
        """Lets the other ranks go; on rank 0. Safe to call twice."""
        if self.is_first and not self._is_closed:
            self._ranks.share("end")
        self._is_closed = True

    def __enter__(self) -> ModelSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error in a step the others may be elsewhere; that this rank ends is what they hear then.
        if self._is_between:
            self.close()
