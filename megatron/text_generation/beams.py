# SPDX-License-Identifier: Apache-2.0
"""Beam search: the likeliest answers to one prompt, looked for many at a time.

Scores and end are those of transformers' `generate` with `length_penalty=1`, `early_stopping=False`: an
answer's score is the mean log-probability of its tokens, its end included, and the search is over when no
beam scores more than the worst of as many answers as there are beams.

The prompt is in memory once, and beams keep what they added to it: with 32 beams and tactics of 256 tokens a
prompt of 1,000 tokens takes 9,192 places, not 40,192.

Legend: B beams, T tokens of the prompt, E tokens that beams have added, G local KV heads, R query heads of
each, D head dimension, V ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from megatron.model.reading import ModelReader
from megatron.text_generation.cache import attend_to_row
from megatron.text_generation.ranks import Ranks

# Tokens of the prompt that are read in one pass.
_PROMPT_TOKENS = 1024
# The ids of an answer, and whether the last of them ends it.
Ends = Callable[[Sequence[int]], bool]


@dataclass(frozen=True)
class BeamOrder:
    """What is looked for: the `beams` likeliest answers of at most `max_new_tokens` to a prompt."""

    prompt_ids: tuple[int, ...]
    beams: int
    max_new_tokens: int

    @property
    def cache_tokens(self) -> int:
        """Places in memory that it needs: the last new token is never read."""
        return len(self.prompt_ids) + self.beams * (self.max_new_tokens - 1)


@dataclass(frozen=True)
class Beam:
    """An answer, or the beginning of one, and the sum of the log-probabilities of its ids."""

    ids: tuple[int, ...]
    logprob: float

    @property
    def score(self) -> float:
        return self.logprob / len(self.ids)


@dataclass(frozen=True)
class _Move:
    """Each beam's next token, and the beam that it goes on from. None are left at the end."""

    parents: list[int]
    tokens: list[int]


class _Search:
    """Which beams go on, and which answers are kept. On rank 0."""

    def __init__(self, order: BeamOrder, ends: Ends) -> None:
        self._order, self._ends = order, ends
        self._running = [Beam((), 0.0)]
        self.answers: list[Beam] = []

    def move(self, logits_BV: torch.Tensor) -> _Move:
        """Takes the likeliest continuations of all beams."""
        so_far_B1 = torch.tensor([[beam.logprob] for beam in self._running], device=logits_BV.device)
        sums_BV = logits_BV.log_softmax(-1) + so_far_B1
        # Twice as many as beams: of those at most half end here, in a vocabulary with one end.
        sums, places = sums_BV.flatten().topk(min(2 * self._order.beams, sums_BV.numel()))
        running: list[Beam] = []
        parents: list[int] = []
        for rank, (total, place) in enumerate(zip(sums.tolist(), places.tolist(), strict=True)):
            parent, token = divmod(place, sums_BV.size(1))
            beam = Beam((*self._running[parent].ids, token), total)
            if len(beam.ids) == self._order.max_new_tokens or self._ends(beam.ids):
                # An end that is less likely than all beams would not have been come to.
                if rank < self._order.beams:
                    self.answers.append(beam)
            elif len(running) < self._order.beams:
                running.append(beam)
                parents.append(parent)
        self.answers = sorted(self.answers, key=lambda beam: -beam.score)[: self._order.beams]
        self._running = running
        if not running or self._is_over():
            return _Move([], [])
        return _Move(parents, [beam.ids[-1] for beam in running])

    def _is_over(self) -> bool:
        is_full = len(self.answers) == self._order.beams
        return is_full and self._running[0].score <= self.answers[-1].score


class _Lanes:
    """Keys and values of the prompt, and of what each beam added to it, on this rank."""

    def __init__(self, reader: ModelReader, order: BeamOrder) -> None:
        self._reader, self._order = reader, order
        heads = (reader.kv_heads, reader.head_dim)
        self._prompt, self._added = (
            [
                [torch.zeros(*shape, *heads, dtype=reader.dtype, device=reader.device) for _ in range(2)]
                for _ in range(reader.layers_count)
            ]
            for shape in ((len(order.prompt_ids),), (order.beams, order.max_new_tokens - 1))
        )
        self._added_tokens = 0
        self._tables = reader.rotary_tables(len(order.prompt_ids) + order.max_new_tokens)

    def read_prompt(self) -> torch.Tensor | None:
        """The logits of what follows the prompt, [1, V], on rank 0."""
        prompt_ids = self._order.prompt_ids
        hidden_NC = torch.empty(0)
        for first in range(0, len(prompt_ids), _PROMPT_TOKENS):
            end = min(first + _PROMPT_TOKENS, len(prompt_ids))

            def attend(
                layer: int,
                q_NGRD: torch.Tensor,
                k_NGD: torch.Tensor,
                v_NGD: torch.Tensor,
                here: slice = slice(first, end),
            ) -> torch.Tensor:
                keys_TGD, values_TGD = self._prompt[layer]
                keys_TGD[here], values_TGD[here] = k_NGD, v_NGD
                return attend_to_row(q_NGRD, keys_TGD[: here.stop], values_TGD[: here.stop])

            tokens_N = torch.tensor(prompt_ids[first:end], device=self._reader.device)
            cosines, sines = (table[first:end] for table in self._tables)
            hidden_NC = self._reader.hidden(tokens_N, cosines, sines, attend)
        return self._reader.gathered_logits(hidden_NC[-1:])

    def extend(self, move: _Move) -> torch.Tensor | None:
        """The logits of what follows each beam after its next token, [B, V], on rank 0."""
        reader, place = self._reader, self._added_tokens
        parents_B = torch.tensor(move.parents, device=reader.device)
        if place and move.parents != list(range(len(move.parents))):
            for memory in (memory for pair in self._added for memory in pair):
                memory[: len(parents_B), :place] = memory[parents_B, :place]
        self._added_tokens += 1

        def attend(
            layer: int, q_BGRD: torch.Tensor, k_BGD: torch.Tensor, v_BGD: torch.Tensor
        ) -> torch.Tensor:
            for memory, new_BGD in zip(self._added[layer], (k_BGD, v_BGD), strict=True):
                memory[: len(new_BGD), place] = new_BGD
            own = [memory[: len(q_BGRD), : place + 1] for memory in self._added[layer]]
            return _attend_to_both(q_BGRD, self._prompt[layer], own)

        position = len(self._order.prompt_ids) + place
        cosines, sines = (table[position : position + 1].expand(len(parents_B), -1) for table in self._tables)
        tokens_B = torch.tensor(move.tokens, device=reader.device)
        return reader.gathered_logits(reader.hidden(tokens_B, cosines, sines, attend))


def _attend_to_both(
    q_BGRD: torch.Tensor, prompt: Sequence[torch.Tensor], added: Sequence[torch.Tensor]
) -> torch.Tensor:
    """One token of each beam sees the prompt and what its beam added; [B, G * R * D].

    `prompt` are keys and values, each [T, G, D], `added` those of beams, each [B, E, G, D]. Scores are in
    float32, as a flash kernel has them.
    """
    (k_TGD, v_TGD), (k_BEGD, v_BEGD) = prompt, added
    scores_BGRT = torch.einsum("bgrd,tgd->bgrt", q_BGRD, k_TGD).float()
    scores_BGRE = torch.einsum("bgrd,begd->bgre", q_BGRD, k_BEGD).float()
    scores = torch.cat([scores_BGRT, scores_BGRE], -1) * q_BGRD.size(-1) ** -0.5
    of_prompt, of_added = scores.softmax(-1).to(q_BGRD.dtype).split([len(k_TGD), k_BEGD.size(1)], -1)
    out_BGRD = torch.einsum("bgrt,tgd->bgrd", of_prompt, v_TGD)
    return (out_BGRD + torch.einsum("bgre,begd->bgrd", of_added, v_BEGD)).flatten(1)


@torch.inference_mode()
def search_beams(reader: ModelReader, ranks: Ranks, order: BeamOrder, ends: Ends | None) -> list[Beam]:
    """The likeliest answers, the best score first; at most `order.beams`. Empty on ranks other than 0.

    Every rank calls it; `ends` is asked on rank 0.
    """
    lanes = _Lanes(reader, order)
    search = _Search(order, ends) if ends is not None else None
    logits_BV = lanes.read_prompt()
    while True:
        chosen = None if search is None or logits_BV is None else search.move(logits_BV)
        move = ranks.share(chosen)
        if not move.tokens:
            return [] if search is None else search.answers
        logits_BV = lanes.extend(move)
