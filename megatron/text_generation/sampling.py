# SPDX-License-Identifier: Apache-2.0
"""The next token of each sequence, drawn from logits.

A request's draws are numbers of its own generator (`random.Random(seed)`, the same on every machine); each is
turned into an id by the inverse of the distribution function. So what else is in the batch has no part in it.

Legend: B sequences, V ids, K likeliest of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch

from megatron.text_generation.requests import Request, Top

# The likeliest ids are looked among first when top-p or top-k restricts a draw. Sorting all takes far longer,
# and is done where these do not reach top-p.
FIRST_LOOK_IDS = 512


@dataclass(frozen=True)
class Choice:
    """An id, the logarithm of its probability at temperature 1, and the likeliest ids with theirs."""

    token_id: int
    logprob: float
    top: Top


def likeliest(logprobs_V: torch.Tensor, count: int) -> Top:
    """The `count` likeliest ids, and the logarithms of their probabilities."""
    if count == 0:
        return ()
    values, ids = logprobs_V.topk(count)
    return tuple(zip(ids.tolist(), values.tolist(), strict=True))


def choose(logits_BV: torch.Tensor, requests: Sequence[Request], draws: Sequence[Random]) -> list[Choice]:
    """The next id of each sequence. `logits_BV` is float32, `draws` the generators of the requests."""
    chosen_B = logits_BV.argmax(-1)
    drawn = [row for row, request in enumerate(requests) if request.temperature > 0]
    for restricted in (False, True):
        rows = [row for row in drawn if (requests[row].top_p < 1 or requests[row].top_k > 0) == restricted]
        if rows:
            draw = _draw_among_likeliest if restricted else _draw
            numbers = [draws[row].random() for row in rows]
            chosen_B[rows] = draw(logits_BV[rows], [requests[row] for row in rows], numbers)
    sums_B = logits_BV.logsumexp(-1)
    logprobs = (logits_BV.gather(1, chosen_B[:, None])[:, 0] - sums_B).tolist()
    return [
        Choice(
            token,
            logprob,
            likeliest(logits_BV[row] - sums_B[row], request.num_logprobs) if request.num_logprobs else (),
        )
        for row, (token, logprob, request) in enumerate(
            zip(chosen_B.tolist(), logprobs, requests, strict=True)
        )
    ]


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]


def _scaled(logits_BV: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    """Logits over temperature, the largest 0: at the smallest temperatures others go to minus infinity."""
    # A temperature that is not normal (below 2e-308) may count as 0, and 0 / 0 is no number.
    temperatures = [max(request.temperature, sys.float_info.min) for request in requests]
    logits_BV = logits_BV.double()
    return (logits_BV - logits_BV.amax(-1, keepdim=True)) / _column(temperatures, logits_BV)


def _draw(logits_BV: torch.Tensor, requests: Sequence[Request], numbers: Sequence[float]) -> torch.Tensor:
    scaled_BV = _scaled(logits_BV, requests)
    return _invert(scaled_BV.softmax(-1), numbers)


def _draw_among_likeliest(
    logits_BV: torch.Tensor, requests: Sequence[Request], numbers: Sequence[float]
) -> torch.Tensor:
    """top-k first, then top-p among what is left, as everywhere."""
    scaled_BV = _scaled(logits_BV, requests)
    ids = scaled_BV.size(1)
    top_k = [min(request.top_k or ids, ids) for request in requests]
    top_p_B1 = _column([request.top_p for request in requests], logits_BV)
    look = min(ids, max(FIRST_LOOK_IDS, *(k for k in top_k if k < ids), 1))
    while True:
        values_BK, ids_BK = scaled_BV.topk(look)
        beyond_k_BK = torch.arange(look, device=logits_BV.device) >= _column(top_k, logits_BV)
        values_BK = values_BK.masked_fill(beyond_k_BK, -torch.inf)
        # Where top-k restricts, the sum is over what it leaves; else over all ids, also those not looked at.
        sums_B1 = torch.where(
            _column(top_k, logits_BV) < ids,
            values_BK.logsumexp(-1, keepdim=True),
            scaled_BV.logsumexp(-1, keepdim=True),
        )
        probabilities_BK = (values_BK - sums_B1).exp()
        before_BK = probabilities_BK.cumsum(-1) - probabilities_BK
        reached_B = (before_BK[:, -1:] + probabilities_BK[:, -1:])[:, 0] >= top_p_B1[:, 0]
        restricted_B = torch.tensor([k < ids for k in top_k], device=logits_BV.device)
        if look == ids or bool((reached_B | restricted_B).all()):
            break
        look = ids
    probabilities_BK = probabilities_BK.masked_fill(before_BK >= top_p_B1, 0)
    places_B = _invert(probabilities_BK, numbers)
    return ids_BK.gather(1, places_B[:, None])[:, 0]


def _invert(weights_BK: torch.Tensor, numbers: Sequence[float]) -> torch.Tensor:
    """The place at which the running sum of weights passes each number's share of their sum; [B]."""
    sums_BK = weights_BK.cumsum(-1)
    targets_B1 = _column(numbers, weights_BK) * sums_BK[:, -1:]
    places_B = torch.searchsorted(sums_BK, targets_B1, right=True)[:, 0]
    # A product that is rounded up to the whole sum passes it nowhere: then it is the last with any weight.
    last_B = (weights_BK > 0).long().mul(torch.arange(1, weights_BK.size(1) + 1, device=weights_BK.device))
    return torch.minimum(places_B, last_B.amax(-1) - 1)
