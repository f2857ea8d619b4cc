# SPDX-License-Identifier: Apache-2.0
"""What a client wants, whatever form it asked in, and what the server can give."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tools.serve_parts.refusal import Refused

if TYPE_CHECKING:
    from megatron.text_generation.requests import Request
    from megatron.tokenizer import Tokenizer

# Below this, division by the temperature overflows float32; vLLM takes the likeliest token there, too.
LEAST_TEMPERATURE = 1e-5
MOST_TEMPERATURE = 100.0
# Top log-probabilities a token, at most: OpenAI's limit for chats.
MOST_LOGPROBS = 20
MOST_STOPS = 64


@dataclass(frozen=True)
class Limits:
    """What one client may ask of the server, and all of them together."""

    body_bytes: int
    request_seconds: float
    new_tokens: int  # of one sample
    in_flight: int  # samples of all clients, running or waiting
    body_seconds: float = 60.0  # for the whole body to come, where request_seconds are not fewer


@dataclass(frozen=True)
class Served:
    """The model that is served."""

    names: tuple[str, ...]  # the first is its own, the others are also answered to
    tokenizer: Tokenizer
    context_tokens: int  # prompt and new tokens together
    stop_ids: tuple[int, ...]  # each ends a text
    vocab_size: int
    limits: Limits

    def check_name(self, name: str) -> None:
        """Refuses a model that is not served: the answer would be another model's.

        Raises:
            Refused: with 404.
        """
        # Ollama's clients add a tag to a name without one.
        if name and name.removesuffix(":latest") not in self.names:
            raise Refused(
                404,
                f"model={name[:100]}: is not served here; ask for {' or '.join(self.names)}",
                field="model",
                code="model_not_found",
            )

    def encode(self, text: str) -> tuple[int, ...]:
        """A prompt's ids. As in training, nothing is put before a text; an empty one is the end of others."""
        return tuple(self.tokenizer.encode(text)) or (self.tokenizer.eod_id,)

    def room(self, prompt_ids: tuple[int, ...], context_tokens: int | None = None) -> int:
        """How many tokens may follow a prompt, in a context that may be asked to be smaller than the model's.

        Raises:
            Refused: none.
        """
        context = min(context_tokens or self.context_tokens, self.context_tokens)
        room = context - len(prompt_ids)
        if room < 1:
            raise Refused(
                400,
                f"prompt: has {len(prompt_ids):,} tokens, which leaves no room in the context of "
                f"{context:,}; shorten it",
                field="prompt",
                code="context_length_exceeded",
            )
        return min(room, self.limits.new_tokens)


@dataclass(frozen=True)
class Wanted:
    """Samples of some prompts. `max_new_tokens` 0 asks for the prompts alone, with their likelihood."""

    prompts: tuple[tuple[int, ...], ...]
    samples: int
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stops: tuple[str, ...] = ()
    num_logprobs: int | None = None  # top ids beside the chosen one; None for no log-probabilities at all
    echoes: tuple[str, ...] = ()  # the text of each prompt where answers begin with them
    is_stream: bool = False
    has_usage: bool = False  # at the end of a stream

    @property
    def count(self) -> int:
        """Samples of all prompts."""
        return len(self.prompts) * self.samples

    def requests(self, stop_ids: tuple[int, ...]) -> list[Request]:
        """One for each sample, prompt after prompt."""
        from megatron.text_generation.requests import Request

        base = secrets.randbits(62) if self.seed is None else self.seed
        return [
            Request(
                prompt_ids=prompt,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature if self.temperature >= LEAST_TEMPERATURE else 0.0,
                top_p=self.top_p,
                top_k=self.top_k,
                seed=seed_of_sample(base, sample),
                stop_ids=stop_ids,
                num_logprobs=self.num_logprobs or 0,
                prompt_logprobs=bool(self.echoes) and self.num_logprobs is not None,
            )
            for prompt in self.prompts
            for sample in range(self.samples)
        ]


def seed_of_sample(seed: int, sample: int) -> int:
    """The seed of a prompt's sample. The first has the request's own: n = 1 and n = 8 begin alike.

    The others must not be the first of a neighbouring seed, so they are hashed.
    """
    if sample == 0:
        return seed % 2**63
    digest = hashlib.sha256(f"{seed} {sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def check_lengths(served: Served, prompts: tuple[tuple[int, ...], ...], max_new_tokens: int) -> None:
    """Refuses what cannot be generated whole.

    Raises:
        Refused: a prompt and `max_new_tokens` are more than the context, or than the server gives.
    """
    most = served.limits.new_tokens
    if max_new_tokens > most:
        raise Refused(
            400,
            f"max_tokens={max_new_tokens}: this server gives at most {most:,} a sample",
            field="max_tokens",
        )
    longest = max(len(prompt) for prompt in prompts)
    if longest + max_new_tokens > served.context_tokens:
        raise Refused(
            400,
            f"max_tokens={max_new_tokens}: with a prompt of {longest:,} tokens it is more than the context "
            f"of {served.context_tokens:,}; shorten the prompt or ask for fewer",
            field="max_tokens",
            code="context_length_exceeded",
        )
