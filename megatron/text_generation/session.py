# SPDX-License-Identifier: Apache-2.0
"""A model that one program talks to, on however many ranks it lies.

Rank 0 runs the program (a server, the harness, a prover) and calls `step` and `score`; the other ranks call
`follow`, which does the same work beside it until rank 0 closes the session.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from megatron.backend import Backend
from megatron.model import BuiltModel
from megatron.model.reading import ModelReader
from megatron.text_generation.engine import Engine
from megatron.text_generation.ranks import Ranks
from megatron.text_generation.requests import NewToken, Request
from megatron.text_generation.scoring import Pair, Score, score


class ModelSession:
    """An engine and a scorer over one model."""

    def __init__(
        self, built: BuiltModel, backend: Backend, *, max_batch_sequences: int, max_cache_tokens: int
    ) -> None:
        self._built, self._backend = built, backend
        self._ranks = Ranks(backend)
        self._reader = ModelReader(built, backend)
        self.engine = Engine(
            built, backend, max_batch_sequences=max_batch_sequences, max_cache_tokens=max_cache_tokens
        )
        self._is_closed = False

    @property
    def is_first(self) -> bool:
        """Whether this rank runs the program."""
        return self._ranks.is_first

    @property
    def idle(self) -> bool:
        """Whether the engine has nothing to do."""
        return self.engine.idle

    def add(self, request: Request) -> int:
        """See `Engine.add`."""
        return self.engine.add(request)

    def cancel(self, number: int) -> None:
        """See `Engine.cancel`."""
        self.engine.cancel(number)

    def step(self) -> list[NewToken]:
        """See `Engine.step`; on rank 0 only."""
        self._ranks.share("step")
        return self.engine.step()

    def score(self, pairs: Sequence[Pair]) -> list[Score]:
        """See `scoring.score`; on rank 0 only."""
        return self._score(self._ranks.share(list(pairs)))

    def _score(self, pairs: Sequence[Pair]) -> list[Score]:
        return score(self._built, self._backend, pairs, reader=self._reader)

    def follow(self) -> None:
        """Works beside rank 0 until it closes the session; on the other ranks.

        Raises:
            RuntimeError: rank 0 has gone without closing it.
        """
        assert not self.is_first, "rank 0 leads"
        while True:
            word: str | list[Pair] = self._ranks.share(None)
            if word == "end":
                return
            if isinstance(word, str):
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
        # After an error the other end may wait for something else; its end is told by ours.
        if kind is None or issubclass(kind, (KeyboardInterrupt, SystemExit)):
            self.close()
