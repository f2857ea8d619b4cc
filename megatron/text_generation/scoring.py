# SPDX-License-Identifier: Apache-2.0
"""How likely given text is: the log-likelihood of continuations after their contexts.

Pairs of like length are read together, those that differ in their last token only as one. Logits are made for
the tokens that are scored, a few rows at a time; ranks that share the vocabulary tell each other four numbers
a token, never the logits.

Legend: B sequences, S tokens, N = B * S or the scored ones of them, C hidden, V this rank's ids, G local KV
heads, R query heads of each, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn.functional import scaled_dot_product_attention

from megatron.backend import Backend
from megatron.model import BuiltModel
from megatron.model.reading import ModelReader
from megatron.neox_arguments.errors import UserError

# Tokens that go through the model together, with padding.
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
# Bytes of float32 logits that are looked at together.
LOGITS_BYTES = {"cpu": 2**24, "cuda": 2**29}

Pair = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Score:
    """Of one continuation.

    Attributes:
        loglikelihood: the sum of the natural logarithms of its tokens' probabilities.
        is_greedy: whether each token is the likeliest.
        token_logprobs: one number a token.
    """

    loglikelihood: float
    is_greedy: bool
    token_logprobs: tuple[float, ...]


@dataclass(frozen=True)
class _Text:
    """What goes through the model for some pairs: context and continuation without its last token."""

    ids: tuple[int, ...]
    pairs: tuple[int, ...]  # of which it is the text


def score(
    built: BuiltModel,
    backend: Backend,
    pairs: Sequence[Pair],
    *,
    batch_tokens: int | None = None,
    reader: ModelReader | None = None,
) -> list[Score]:
    """Scores each (context ids, continuation ids). Called on every rank with the same pairs.

    Raises:
        UserError: a context or a continuation is empty.
    """
    for number, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            raise UserError(
                f"pairs[{number}]: needs at least one token of context and one of continuation; "
                "give the end of document as the context of a text that has none"
            )
    reader = reader or ModelReader(built, backend, is_kept=False)
    scores: dict[int, Score] = {}
    for batch in _batches(_texts(pairs), batch_tokens or BATCH_TOKENS.get(backend.device.type, 2048)):
        scores.update(_score_batch(reader, batch, pairs))
    return [scores[number] for number in range(len(pairs))]


def _texts(pairs: Sequence[Pair]) -> list[_Text]:
    """The texts to read, longest first; pairs that differ in their last token only are one."""
    same: dict[tuple[int, ...], list[int]] = {}
    for number, (context, continuation) in enumerate(pairs):
        same.setdefault((*context, *continuation[:-1]), []).append(number)
    texts = [_Text(ids, tuple(numbers)) for ids, numbers in same.items()]
    return sorted(texts, key=lambda text: -len(text.ids))


def _batches(texts: Sequence[_Text], batch_tokens: int) -> Iterator[list[_Text]]:
    """Texts of like length together, each batch of one or at most `batch_tokens` after padding."""
    batch: list[_Text] = []
    for text in texts:
        if batch and (len(batch) + 1) * len(batch[0].ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


@torch.inference_mode()
def _score_batch(reader: ModelReader, batch: Sequence[_Text], pairs: Sequence[Pair]) -> dict[int, Score]:
    hidden_BSC = read(reader, [text.ids for text in batch])
    # One row for each scored token: the place that predicts it, and its id.
    places: list[tuple[int, int]] = []
    targets: list[int] = []
    owners: list[tuple[int, int]] = []
    for row, text in enumerate(batch):
        for number in text.pairs:
            continuation = pairs[number][1]
            first = len(text.ids) - len(continuation)
            places += [(row, first + offset) for offset in range(len(continuation))]
            targets += continuation
            owners.append((number, len(continuation)))
    rows, columns = torch.tensor(places, device=reader.device).T
    hidden_NC = hidden_BSC[rows, columns]
    targets_N = torch.tensor(targets, device=reader.device)
    logprobs_N, is_likeliest_N = token_logprobs(reader, hidden_NC, targets_N)
    logprobs, is_likeliest = logprobs_N.tolist(), is_likeliest_N.tolist()
    found: dict[int, Score] = {}
    first = 0
    for number, length in owners:
        own = slice(first, first + length)
        found[number] = Score(sum(logprobs[own]), all(is_likeliest[own]), tuple(logprobs[own]))
        first += length
    return found


def read(reader: ModelReader, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """What the last layer makes of texts, padded at the end to the longest; [B, S, C].

    Attention is causal, so padding changes nothing before it.
    """
    longest = max(len(text) for text in texts)
    tokens_BS = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=reader.device)
    cosines, sines = (table.repeat(len(texts), 1) for table in reader.rotary_tables(longest))

    def attend(_: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return _causal(len(texts), q, k, v)

    hidden_NC = reader.hidden(tokens_BS.flatten(), cosines, sines, attend)
    return hidden_NC.view(len(texts), longest, -1)


def _causal(sequences: int, q_NGRD: torch.Tensor, k_NGD: torch.Tensor, v_NGD: torch.Tensor) -> torch.Tensor:
    """Each token of a sequence sees those before it; [N, G * R * D]."""
    _, heads, queries, head_dim = q_NGRD.shape
    q_BHSD = q_NGRD.reshape(sequences, -1, heads * queries, head_dim).transpose(1, 2)
    k_BHSD, v_BHSD = (x.reshape(sequences, -1, heads, head_dim).transpose(1, 2) for x in (k_NGD, v_NGD))
    out_BHSD = scaled_dot_product_attention(q_BHSD, k_BHSD, v_BHSD, is_causal=True, enable_gqa=queries > 1)
    return out_BHSD.transpose(1, 2).reshape(len(q_NGRD), -1)


def token_logprobs(
    reader: ModelReader, hidden_NC: torch.Tensor, targets_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of each target after its token, and whether it is the likeliest; [N] each."""
    largest_N, sums_N, chosen_N = (
        torch.full((len(hidden_NC),), fill, dtype=torch.float32, device=hidden_NC.device)
        for fill in (-torch.inf, 0.0, 0.0)
    )
    likeliest_N = torch.zeros_like(targets_N)
    step = max(1, LOGITS_BYTES.get(hidden_NC.device.type, 2**24) // (4 * max(1, reader.ids_here)))
    for first in range(0, len(hidden_NC) if reader.ids_here else 0, step):
        piece = slice(first, first + step)
        logits_NV = reader.logits(hidden_NC[piece]).float()
        largest_N[piece], ids_N = logits_NV.max(-1)
        likeliest_N[piece] = ids_N + reader.first_id
        local_N = targets_N[piece] - reader.first_id
        is_here_N = (local_N >= 0) & (local_N < reader.ids_here)
        chosen_N[piece] = logits_NV.gather(1, local_N.clamp(0, reader.ids_here - 1)[:, None])[:, 0]
        chosen_N[piece] *= is_here_N
        sums_N[piece] = logits_NV.sub_(largest_N[piece, None]).exp_().sum(-1)
    if reader.ranks > 1:
        mine_4N = torch.stack([largest_N, sums_N, chosen_N, likeliest_N.float()])
        parts = [torch.empty_like(mine_4N) for _ in range(reader.ranks)]
        dist.all_gather(parts, mine_4N, group=reader.group)
        all_R4N = torch.stack(parts)
        largest_N, best_N = all_R4N[:, 0].max(0)  # the first rank among equals has the lower id
        sums_N = (all_R4N[:, 1] * (all_R4N[:, 0] - largest_N).exp()).sum(0)
        chosen_N = all_R4N[:, 2].sum(0)
        likeliest_N = all_R4N[:, 3].gather(0, best_N[None])[0].long()
    return chosen_N - largest_N - sums_N.log(), likeliest_N == targets_N
