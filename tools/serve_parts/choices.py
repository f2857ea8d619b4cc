# SPDX-License-Identifier: Apache-2.0
"""From an engine's tokens to the text of each sample: stop strings cut, log-probabilities with texts."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tools.serve_parts.engine_thread import Job

if TYPE_CHECKING:
    from megatron.text_generation.requests import NewToken, Top
    from megatron.text_generation.text import TextStream
    from megatron.tokenizer import Tokenizer

# JSON has no infinity; vLLM writes the same number for a token that cannot be.
LEAST_LOGPROB = -9999.0
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BY_ID = "token_id:"


@dataclass(frozen=True)
class Spelt:
    """A token with its log-probability, None for the first of a prompt, and its likeliest rivals'."""

    token_id: int
    text: str  # what it adds to others; token_id:N where that is no text of its own
    logprob: float | None
    top: tuple[tuple[str, float], ...]
    offset: int = 0  # characters before it


@dataclass(frozen=True)
class Piece:
    """What is new of one sample."""

    index: int
    text: str
    tokens: tuple[Spelt, ...] = ()
    finish_reason: str | None = None


class TokenTexts:
    """The text that a token adds to others, by its id."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # A piece's leading space is seen only behind another token.
        self._anchor_ids = tokenizer.encode("a")[-1:] or [tokenizer.eod_id]
        self._anchor = tokenizer.decode(self._anchor_ids)
        self._known: dict[int, str] = {}

    def of(self, token_id: int) -> str:
        if token_id not in self._known:
            whole = self._tokenizer.decode([*self._anchor_ids, token_id])
            text = whole[len(self._anchor) :] if whole.startswith(self._anchor) else ""
            self._known[token_id] = _name(text, token_id)
        return self._known[token_id]

    def of_first(self, token_id: int) -> str:
        """As the first of a text."""
        return _name(self._tokenizer.decode([token_id]), token_id)

    def spell(self, token_id: int, logprob: float | None, top: Top) -> Spelt:
        """A token, and its rivals with it among them, the likeliest first and no text twice."""
        if logprob is None:
            return Spelt(token_id, self.of_first(token_id), None, ())
        found: dict[str, float] = {}
        for other_id, value in sorted({**dict(top), token_id: logprob}.items(), key=lambda entry: -entry[1]):
            text = self.of(other_id)
            found[f"{_BY_ID}{other_id}" if text in found else text] = max(value, LEAST_LOGPROB)
        return Spelt(token_id, self.of(token_id), max(logprob, LEAST_LOGPROB), tuple(found.items()))


def _name(text: str, token_id: int) -> str:
    """Bytes that are no character yet, and control tokens, must not look like each other."""
    return text if text and _REPLACEMENT not in text else f"{_BY_ID}{token_id}"


@dataclass
class Choice:
    """One sample as it grows."""

    index: int
    stream: TextStream
    texts: TokenTexts
    lengths: TextStream | None = None  # of the same tokens, the prompt's too where they are echoed; no stops
    num_logprobs: int | None = None
    echo: str = ""  # what its first piece begins with
    asked_seconds: float = field(default_factory=time.monotonic)
    first_seconds: float = 0.0  # when its first token came
    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None
    _held: list[Spelt] = field(default_factory=list)
    _length: int = 0  # characters of all tokens so far

    def take(self, token: NewToken) -> Piece | None:
        """The next token; returns what is certain now, None where nothing is."""
        before = "" if self.tokens else self._begin(token)
        if token.token_id < 0:  # no token was asked for
            return self._release(before, "length")
        self.tokens += 1
        if self.num_logprobs is not None:
            self._hold(self.texts.spell(token.token_id, token.logprob, token.top))
        new = "" if token.finish_reason == "stop" else self.stream.feed([token.token_id])
        reason: str | None = token.finish_reason
        if reason is not None and self.stream.stopped_by is None:
            new += self.stream.finish()
        if self.stream.stopped_by is not None:
            # The tokens of the stop string are no part of the answer.
            end = len(self.text) + len(before) + len(new)
            self._held = [spelt for spelt in self._held if spelt.offset < end]
            reason = "stop"
        return self._release(before + new, reason) if before or new or reason else None

    def _begin(self, token: NewToken) -> str:
        """What stands before the first token of the answer."""
        self.first_seconds = time.monotonic()
        if self.num_logprobs is not None:
            for one in token.prompt:
                self._hold(self.texts.spell(one.token_id, one.logprob, one.top))
        # A prompt's ids may read a little differently than the text that was asked with.
        self._length = len(self.echo)
        return self.echo

    def _hold(self, spelt: Spelt) -> None:
        assert self.lengths is not None
        new = len(self.lengths.feed([spelt.token_id]))
        # Behind half a character that is never made whole, a token brings out a sign for it before its text.
        has_own_text = not spelt.text.startswith(_BY_ID)
        begin = self._length + (max(0, new - len(spelt.text)) if has_own_text else 0)
        self._held.append(dataclasses.replace(spelt, offset=begin))
        self._length += new

    def _release(self, new: str, finish_reason: str | None) -> Piece:
        self.text += new
        self.finish_reason = finish_reason
        # A token whose text is not certain yet may still belong to a stop string.
        end = math.inf if finish_reason is not None else len(self.text)
        certain = tuple(spelt for spelt in self._held if spelt.offset < end)
        self._held = self._held[len(certain) :]
        return Piece(self.index, new, certain, finish_reason)


async def pieces(job: Job, choices: list[Choice]) -> AsyncIterator[Piece]:
    """What is new of every sample, as it comes; ends with the last sample.

    Raises:
        Refused: the engine gives no more.
    """
    left = len(choices)
    while left:
        for index, token in await job.next():
            choice = choices[index]
            if choice.finish_reason is not None:
                continue  # it came before the engine heard of the stop string
            piece = choice.take(token)
            if piece is not None:
                if piece.finish_reason is not None:
                    left -= 1
                    job.cancel(index)
                yield piece
