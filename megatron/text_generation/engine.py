# SPDX-License-Identifier: Apache-2.0
"""Continuous batching: requests come and go at any step, and each step is one pass through the model.

A step either reads prompts (as many tokens as `max_step_tokens`, so that long ones take several steps) or
gives each sequence one more token. A sequence is a row of the cache; rows in use lie next to each other, and
what the first tokens of a new prompt have in common with a row that is there is copied from it, not computed:
examples before a question are read once, and so are the prompts of many samples.

Legend: N tokens of a step, B rows, V ids.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

import torch

from megatron.backend import Backend
from megatron.model import BuiltModel
from megatron.model.reading import ModelReader
from megatron.text_generation.cache import KVCache, attend_to_row, attend_with_one_token
from megatron.text_generation.ranks import Ranks
from megatron.text_generation.requests import FinishReason, NewToken, PromptToken, Request
from megatron.text_generation.sampling import Choice, choose, likeliest

# Tokens of prompts in one step. Activations are a few kilobytes a token, so this bounds them.
MAX_STEP_TOKENS = {"cpu": 1024, "cuda": 8192}
# Rows get places in multiples of this, so that the next request often finds them long enough.
ROW_MULTIPLE_TOKENS = 32
# Fewer tokens in common are computed again: copying has its price too.
LEAST_SHARED_TOKENS = 16
# Rows of logits that are looked at together for the log-probabilities of a prompt.
LOGITS_ROWS = 128


@dataclass
class _Sequence:
    """A request under way: the prompt and what followed, of which the cache has the first `cached`."""

    number: int
    request: Request
    ids: list[int]
    draws: Random
    cached: int = 0
    prompt: list[PromptToken] = field(default_factory=list)

    @property
    def is_read(self) -> bool:
        """Whether all but the last token are in the cache, so that the next step gives one more."""
        return self.cached >= len(self.ids) - 1 and len(self.ids) > len(self.request.prompt_ids)


@dataclass(frozen=True)
class _Span:
    """The tokens first … end - 1 of a row, to be read in this step."""

    row: int
    first: int
    end: int


@dataclass(frozen=True)
class _News:
    """What rank 0 tells the others before a step."""

    arrivals: list[tuple[int, Request]]
    cancelled: list[int]


class Engine:
    """Generates for many requests at a time.

    Under tensor parallelism every rank makes one; `add` and `cancel` are for rank 0, `step` is called on
    every rank, and gives all of them the same tokens.
    """

    def __init__(
        self,
        built: BuiltModel,
        backend: Backend,
        *,
        max_batch_sequences: int,
        max_cache_tokens: int,
        max_step_tokens: int | None = None,
        reader: ModelReader | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Takes the memory of the cache: 2 x layers x local KV heads x head dimension x `max_cache_tokens`
        numbers of the model's dtype, and never more. The places of a sequence are those of the longest that
        it is batched with."""
        assert max_batch_sequences > 0
        assert max_cache_tokens > 0
        self.max_batch_sequences, self.max_cache_tokens = max_batch_sequences, max_cache_tokens
        self.max_step_tokens = max_step_tokens or MAX_STEP_TOKENS.get(backend.device.type, 1024)
        self._reader = reader or ModelReader(built, backend)
        self._ranks = ranks or Ranks(backend)
        self._cache = KVCache(self._reader, max_cache_tokens)
        self._tables = self._reader.rotary_tables(max_cache_tokens)
        self._next_number = 0
        self._arrivals: list[tuple[int, Request]] = []
        self._cancelled: list[int] = []
        self._waiting: deque[_Sequence] = deque()
        self._rows: list[_Sequence] = []

    @property
    def cache_bytes(self) -> int:
        """What the cache takes of this rank's memory."""
        return self._cache.bytes

    @property
    def idle(self) -> bool:
        """Whether nothing is under way or waits. The same on every rank after a step."""
        return not (self._arrivals or self._waiting or self._rows)

    def add(self, request: Request) -> int:
        """Takes a request; returns its number. It waits until there is room.

        Raises:
            ConfigError: it cannot be answered, for the reasons given.
        """
        assert self._ranks.is_first, "requests are for rank 0"
        request.check(self._reader.vocab_size, self.max_cache_tokens)
        number = self._next_number
        self._next_number += 1
        seed = secrets.randbits(63) if request.seed is None else request.seed
        self._arrivals.append((number, replace(request, seed=seed)))
        return number

    def cancel(self, number: int) -> None:
        """Forgets a request, whether it waits or is under way; one that has ended is forgotten already."""
        assert self._ranks.is_first, "requests are for rank 0"
        self._cancelled.append(number)

    @torch.inference_mode()
    def step(self) -> list[NewToken]:
        """One pass through the model; returns the tokens that it gave, at most one a request.

        Raises:
            RuntimeError: another rank has gone.
        """
        self._hear_news()
        self._admit()
        spans = self._spans_to_read()
        if spans:
            return self._read(spans)
        return self._extend() if self._rows else []

    def _hear_news(self) -> None:
        news = self._ranks.share(_News(self._arrivals, self._cancelled) if self._ranks.is_first else None)
        self._arrivals, self._cancelled = [], []
        for number, request in news.arrivals:
            self._waiting.append(_Sequence(number, request, list(request.prompt_ids), Random(request.seed)))
        if news.cancelled:
            gone = set(news.cancelled)
            self._waiting = deque(sequence for sequence in self._waiting if sequence.number not in gone)
            for row in reversed(range(len(self._rows))):
                if self._rows[row].number in gone:
                    self._free(row)

    def _free(self, row: int) -> None:
        """Takes a sequence out; the last row moves into its place."""
        last = self._rows.pop()
        if row < len(self._rows):
            self._cache.copy_row(len(self._rows), row, last.cached)
            self._rows[row] = last

    def _admit(self) -> None:
        """Gives rows to those who wait, in their order, as far as there is room."""
        while self._waiting and len(self._rows) < self.max_batch_sequences:
            rows = [*self._rows, self._waiting[0]]
            needed = max(sequence.request.most_tokens for sequence in rows)
            if len(rows) * needed > self.max_cache_tokens:
                return
            if needed > self._cache.row_tokens or len(rows) * self._cache.row_tokens > self.max_cache_tokens:
                rounded = -(-needed // ROW_MULTIPLE_TOKENS) * ROW_MULTIPLE_TOKENS
                row_tokens = rounded if len(rows) * rounded <= self.max_cache_tokens else needed
                self._cache.lay_out(row_tokens, [sequence.cached for sequence in self._rows])
            self._rows.append(self._waiting.popleft())

    def _spans_to_read(self) -> list[_Span]:
        """The next tokens of prompts, at most `max_step_tokens`."""
        spans: list[_Span] = []
        left = self.max_step_tokens
        for row, sequence in enumerate(self._rows):
            if sequence.is_read or left == 0:
                continue
            if sequence.cached == 0 and not self._share(row, spans):
                continue
            end = min(len(sequence.ids), sequence.cached + left)
            spans.append(_Span(row, sequence.cached, end))
            left -= end - sequence.cached
        return spans

    def _share(self, row: int, spans: Sequence[_Span]) -> bool:
        """Copies what a new sequence has in common with another. False if it is better to wait a step, for
        what another is about to read."""
        sequence = self._rows[row]
        if sequence.request.prompt_logprobs:  # each token of it is to be looked at
            return True
        about = {span.row: span.end for span in spans}
        shared, source = 0, row
        for other, candidate in enumerate(self._rows):
            there = about.get(other, candidate.cached)
            if other != row and there > shared:
                common = min(_common(sequence.ids, candidate.ids), there, len(sequence.ids) - 1)
                if common > shared:
                    shared, source = common, other
        if shared < LEAST_SHARED_TOKENS:
            return True
        if self._rows[source].cached < shared:
            return False
        self._cache.copy_row(source, row, shared)
        sequence.cached = shared
        return True

    def _read(self, spans: Sequence[_Span]) -> list[NewToken]:
        """Reads prompts; the ones that are read to their end get their first token."""
        device = self._reader.device
        ids = [i for span in spans for i in self._rows[span.row].ids[span.first : span.end]]
        positions_N = torch.tensor([p for span in spans for p in range(span.first, span.end)], device=device)
        places_N = torch.tensor(
            [p for span in spans for p in self._cache.places(span.row, span.first, span.end)], device=device
        )

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self._cache.write(layer, places_N, k, v)
            parts, first = [], 0
            for span in spans:
                last = first + span.end - span.first
                keys, values = self._cache.row(layer, span.row, span.end)
                parts.append(attend_to_row(q[first:last], keys, values))
                first = last
            return torch.cat(parts) if len(parts) > 1 else parts[0]

        cosines, sines = (table[positions_N] for table in self._tables)
        hidden_NC = self._reader.hidden(torch.tensor(ids, device=device), cosines, sines, attend)
        ends, last = [], -1
        for span in spans:
            sequence = self._rows[span.row]
            first, last = last + 1, last + span.end - span.first
            sequence.cached = span.end
            if sequence.request.prompt_logprobs:
                self._look_at_prompt(sequence, span, hidden_NC[first : last + 1])
            if span.end == len(sequence.ids):
                ends.append((span.row, last))
        if not ends:
            return []
        return self._add_tokens([row for row, _ in ends], hidden_NC[[place for _, place in ends]])

    def _look_at_prompt(self, sequence: _Sequence, span: _Span, hidden_NC: torch.Tensor) -> None:
        """Notes the log-probabilities of the tokens that follow each of a span, on rank 0."""
        if span.first == 0:
            sequence.prompt.append(PromptToken(sequence.ids[0], None, ()))
        following = sequence.ids[span.first + 1 : span.end + 1]
        for first in range(0, len(following), LOGITS_ROWS):
            targets = following[first : first + LOGITS_ROWS]
            logits_NV = self._reader.gathered_logits(hidden_NC[first : first + len(targets)])
            if logits_NV is None:
                continue
            logprobs_NV = logits_NV.log_softmax(-1)
            sequence.prompt += [
                PromptToken(target, float(row[target]), likeliest(row, sequence.request.num_logprobs))
                for target, row in zip(targets, logprobs_NV, strict=True)
            ]

    def _extend(self) -> list[NewToken]:
        """Gives each row one more token."""
        rows, device = self._rows, self._reader.device
        tokens_B = torch.tensor([sequence.ids[-1] for sequence in rows], device=device)
        lengths = [sequence.cached + 1 for sequence in rows]
        positions_B = torch.tensor(lengths, device=device) - 1
        places_B = positions_B + torch.arange(len(rows), device=device) * self._cache.row_tokens
        longest = max(lengths)
        mask_B11T = None
        if min(lengths) < longest:
            hidden_BT = torch.arange(longest, device=device) > positions_B[:, None]
            mask_B11T = torch.zeros(len(rows), longest, dtype=self._reader.dtype, device=device)
            mask_B11T = mask_B11T.masked_fill_(hidden_BT, -torch.inf)[:, None, None]

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self._cache.write(layer, places_B, k, v)
            keys, values = self._cache.rows(layer, len(rows), longest)
            return attend_with_one_token(q, keys, values, mask_B11T)

        cosines, sines = (table[positions_B] for table in self._tables)
        hidden_BC = self._reader.hidden(tokens_B, cosines, sines, attend)
        for sequence in rows:
            sequence.cached += 1
        return self._add_tokens(list(range(len(rows))), hidden_BC)

    def _add_tokens(self, rows: list[int], hidden_BC: torch.Tensor) -> list[NewToken]:
        """Chooses the next token of rows and takes out those that end."""
        logits_BV = self._reader.gathered_logits(hidden_BC)
        sequences = [self._rows[row] for row in rows]
        news = None
        if logits_BV is not None:
            choices = choose(logits_BV, [s.request for s in sequences], [s.draws for s in sequences])
            news = [_told(*pair) for pair in zip(sequences, choices, strict=True)]
        news = self._ranks.share(news)
        ended = []
        for row, sequence, token in zip(rows, sequences, news, strict=True):
            sequence.ids.append(token.token_id)
            if token.finish_reason is not None:
                ended.append(row)
        for row in sorted(ended, reverse=True):
            self._free(row)
        return news


def _told(sequence: _Sequence, choice: Choice) -> NewToken:
    """What is told of a choice."""
    request, prompt = sequence.request, tuple(sequence.prompt)
    sequence.prompt = []
    if request.max_new_tokens == 0:
        return NewToken(sequence.number, -1, 0.0, (), "length", prompt)
    reason: FinishReason | None = None
    if choice.token_id in request.stop_ids:
        reason = "stop"
    elif len(sequence.ids) + 1 - len(request.prompt_ids) >= request.max_new_tokens:
        reason = "length"
    return NewToken(sequence.number, choice.token_id, choice.logprob, choice.top, reason, prompt)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first ids are the same."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # equality of lists is quicker than a loop over them
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
