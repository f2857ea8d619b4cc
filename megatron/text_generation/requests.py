# SPDX-License-Identifier: Apache-2.0
"""What is asked of the engine, and what it answers, token by token; ids in, ids out. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megatron.neox_arguments.errors import ConfigError, Problem

FinishReason = Literal["stop", "length"]
Top = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Request:
    """A prompt to go on from, and how.

    Attributes:
        prompt_ids: at least one id.
        max_new_tokens: 0 or more; 0 only reads the prompt.
        temperature: 0 takes the likeliest id.
        top_p: draw among the fewest ids whose probabilities reach this (Holtzman et al. 2020, section 3.1).
        top_k: draw among this many likeliest ids; 0 is all.
        seed: of this request's own draws, which depend on nothing else; None takes a new one.
        stop_ids: ids that end the text.
        num_logprobs: how many likeliest ids are told with each token.
        prompt_logprobs: tell the log-probability of each token of the prompt, too.
    """

    prompt_ids: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    num_logprobs: int = 0
    prompt_logprobs: bool = False

    @property
    def most_tokens(self) -> int:
        """Places in the cache that it may need: the last new token is never read."""
        return len(self.prompt_ids) + max(0, self.max_new_tokens - 1)

    def problems(self, vocab_size: int, max_cache_tokens: int) -> list[Problem]:
        """What is wrong with it for a model of `vocab_size` ids and a cache of `max_cache_tokens`."""
        outside = [i for i in self.prompt_ids if not 0 <= i < vocab_size]
        rules: list[tuple[str, object, bool, str, str]] = [
            ("prompt_ids", None, len(self.prompt_ids) > 0, "is empty", "give at least one id"),
            ("prompt_ids", outside[:1], not outside, f"is not below {vocab_size:,}",
             "give ids of the model's own tokenizer"),
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 0, "is negative",
             "give 0 or more"),
            ("temperature", self.temperature, 0 <= self.temperature < math.inf, "is no temperature",
             "give 0 or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "is no probability", "give above 0 and at most 1"),
            ("top_k", self.top_k, self.top_k >= 0, "is negative", "give 0 for all ids, or more"),
            ("num_logprobs", self.num_logprobs, 0 <= self.num_logprobs <= vocab_size, "is out of range",
             f"give 0 to {vocab_size:,}"),
            ("prompt_ids", None, self.most_tokens <= max_cache_tokens,
             f"{len(self.prompt_ids):,} tokens and max_new_tokens={self.max_new_tokens:,} do not fit into "
             f"max_cache_tokens={max_cache_tokens:,}",
             "shorten the prompt, ask for fewer tokens, or raise max_cache_tokens"),
        ]  # fmt: skip
        return [
            Problem(key, value, constraint, remedy)
            for key, value, is_right, constraint, remedy in rules
            if not is_right
        ]

    def check(self, vocab_size: int, max_cache_tokens: int) -> None:
        """Raises ConfigError with all that is wrong."""
        if problems := self.problems(vocab_size, max_cache_tokens):
            raise ConfigError(problems)


@dataclass(frozen=True)
class PromptToken:
    """A token of the prompt: its log-probability after those before it, None for the first."""

    token_id: int
    logprob: float | None
    top: Top


@dataclass(frozen=True)
class NewToken:
    """One more token of a request.

    Attributes:
        request: the number that `Engine.add` gave.
        token_id: its id; with `finish_reason` "stop" one of `stop_ids`, which is no part of the text; -1
            where no token was asked for.
        logprob: natural logarithm of its probability at temperature 1 among all ids.
        top: the likeliest ids with theirs, the likeliest first.
        finish_reason: why it is the last, or None.
        prompt: with the first token, and if asked for: the tokens of the prompt.
    """

    request: int
    token_id: int
    logprob: float
    top: Top
    finish_reason: FinishReason | None
    prompt: tuple[PromptToken, ...] = ()
