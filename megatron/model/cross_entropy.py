# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of each token when the vocabulary is cut over tensor parallel ranks, a few rows at a time.

    loss_n = log(sum over v of exp(logits_nv)) - logits_n,label      (natural logarithm)

The sum is taken in float32 whatever the logits are in. Logits are by far the largest tensor of a step
(sequences x tokens x vocabulary), so no float32 copy of all of them is ever made: rows are converted in
pieces that stay in the processor's cache. For the backward pass the logits are kept, with one number for
each row, and their gradient takes their place: nothing reads logits after a loss.

Legend: S tokens, B sequences, N = S * B rows, V this rank's part of the padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

# Bytes of float32 that one piece of rows may take: on a CPU little enough for its caches, on a GPU enough
# rows to fill the device. A plan counts on the meta device what a GPU would hold.
_PIECE_BYTES = {"cpu": 2**22, "cuda": 2**28, "meta": 2**28}


def _pieces(logits_NV: torch.Tensor, columns: int) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Rows, their first `columns` logits in float32, and a buffer of that shape, which every piece shares.

    Logits of another dtype are converted into the buffer; those in float32 are themselves.
    """
    rows = len(logits_NV)
    step = max(1, _PIECE_BYTES[logits_NV.device.type] // (4 * max(1, columns)))
    whole_buffer = logits_NV.new_empty(min(step, rows), columns, dtype=torch.float32)
    for first in range(0, rows, step):
        piece = slice(first, min(first + step, rows))
        logits, buffer = logits_NV[piece, :columns], whole_buffer[: piece.stop - first]
        yield piece, logits if logits.dtype == torch.float32 else buffer.copy_(logits), buffer


def add_up(
    log_sums_N: torch.Tensor, chosen_N: torch.Tensor, group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logarithm of the sum over all ranks' ids, and the label's logit, which is 0 on ranks without it."""
    if group.size() == 1:
        return log_sums_N, chosen_N
    largest_N = log_sums_N.clone()
    dist.all_reduce(largest_N, op=dist.ReduceOp.MAX, group=group)
    sums = torch.stack([(log_sums_N - largest_N).exp(), chosen_N])
    dist.all_reduce(sums, group=group)
    return sums[0].log() + largest_N, sums[1]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_NV: torch.Tensor, labels_N: torch.Tensor, ids_here: int, group: dist.ProcessGroup
    ) -> torch.Tensor:
        """`labels_N` count from this rank's first id; [N], float32, equal on every rank of `group`."""
        is_here_N = (labels_N >= 0) & (labels_N < ids_here)
        columns_N = labels_N.clamp(0, max(0, ids_here - 1))
        log_sums_N = torch.empty(len(labels_N), dtype=torch.float32, device=logits_NV.device)
        chosen_N = torch.empty_like(log_sums_N)
        for piece, logits, buffer in _pieces(logits_NV, ids_here):
            # Where every id of this rank is padding the sum is over nothing: -inf, which adds nothing.
            largest = logits.amax(1, keepdim=True) if ids_here else log_sums_N.new_full((1,), float("-inf"))
            sums = torch.sub(logits, largest, out=buffer).exp_().sum(1)
            log_sums_N[piece] = sums.log_().add_(largest.squeeze(-1))
            chosen_N[piece] = logits_NV[piece].gather(1, columns_N[piece, None])[:, 0]
        chosen_N.masked_fill_(~is_here_N, 0.0)
        log_sums_N, chosen_N = add_up(log_sums_N, chosen_N, group)
        ctx.save_for_backward(logits_NV, log_sums_N, columns_N, is_here_N)
        ctx.ids_here = ids_here
        return log_sums_N - chosen_N

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """softmax(logits) minus one at the label, times the loss's gradient; it overwrites the logits."""
        saved_NV, log_sums_N, columns_N, is_here_N = ctx.saved_tensors
        logits_NV = saved_NV.detach()
        logits_NV[:, ctx.ids_here :] = 0
        for piece, logits, _ in _pieces(logits_NV, ctx.ids_here):
            grad = logits.sub_(log_sums_N[piece, None]).exp_()
            if ctx.ids_here:
                grad.scatter_add_(1, columns_N[piece, None], -is_here_N[piece, None].float())
            grad.mul_(grad_N[piece, None])
            if grad.dtype != logits_NV.dtype:
                logits_NV[piece, : ctx.ids_here] = grad
        return logits_NV, None, None, None


def vocab_parallel_cross_entropy(
    logits_SBV: torch.Tensor,
    labels_SB: torch.Tensor,
    *,
    first_id: int,
    ids_here: int,
    group: dist.ProcessGroup,
) -> torch.Tensor:
    """The loss of each token, [S, B], float32, the same on every rank of the tensor parallel `group`.

    Args:
        labels_SB: ids of the whole vocabulary.
        first_id: the id of this rank's first column.
        ids_here: this rank's columns that are ids; the others pad the vocabulary and have no probability.
    """
    labels_N = labels_SB.reshape(-1) - first_id
    loss_N: torch.Tensor = _CrossEntropy.apply(logits_SBV.flatten(0, 1), labels_N, ids_here, group)
    return loss_N.view(labels_SB.shape)
