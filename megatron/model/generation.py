# SPDX-License-Identifier: Apache-2.0
"""Text token by token: the prompt goes through the model once, then one token a step, with a KV cache.

Legend: B sequences, S tokens, V ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from megatron.backend import Backend
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.model.llama import BuiltModel


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Temperature 0 takes the likeliest."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def choose_next(logits_V: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draws one id. top-p keeps the fewest ids whose probabilities reach p (Holtzman et al. 2020)."""
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    probabilities_V = torch.softmax(logits_V.double().cpu() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        sorted_V, ids_V = probabilities_V.sort(descending=True)
        beyond_V = sorted_V.cumsum(0) - sorted_V >= sampling.top_p
        probabilities_V[ids_V[beyond_V]] = 0
    return int(torch.multinomial(probabilities_V, 1, generator=generator))


@torch.no_grad()
def generate(
    built: BuiltModel,
    backend: Backend,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling,
    is_end: Callable[[int], bool],
) -> Iterator[int]:
    """Yields new ids until one that ends the text (not yielded) or `max_new_tokens`.

    Every tensor parallel rank draws the same id from the same logits and the same generator.

    Raises:
        ValueError: the prompt has no token.
    """
    if not prompt:
        raise ValueError("the prompt has no token to start from")
    cache = StaticInferenceContext(max_batch_size=1, max_sequence_length=len(prompt) + max_new_tokens)
    generator = torch.Generator().manual_seed(sampling.seed)
    tokens_BS = torch.tensor([list(prompt)], device=backend.device)
    for _ in range(max_new_tokens):
        first, length = cache.sequence_len_offset, tokens_BS.size(1)
        positions_BS = torch.arange(first, first + length, device=backend.device)[None]
        logits_BSV = built.module(
            tokens_BS, positions_BS, None, inference_context=cache, runtime_gather_output=True
        )
        cache.sequence_len_offset += length
        cache.enable_decode_mode()
        token = choose_next(logits_BSV[0, -1, : built.vocab_size].float(), sampling, generator)
        if is_end(token):
            return
        yield token
        tokens_BS = torch.tensor([[token]], device=backend.device)
