# SPDX-License-Identifier: Apache-2.0
"""The output layer and the cross-entropy in one: the loss of each token, without the logits of all ids.

    loss_n = log(sum over v of exp(h_n . w_v)) - h_n . w_label      (natural logarithm)

Ids are gone through some thousand at a time: their logits go into a running log-sum-exp (Milakov &
Gimelshein 2018, section 3) and are forgotten; the backward pass computes them again. So the step's largest
tensor, [tokens, ids], never exists, for a third more products of the output layer: 0.7% of the FLOPs of a 7B
with 32,000 ids, 4% of a 3B's with 128,000. Slices of ids, not of tokens, because the gradient of a weight is
then one product over all tokens, as it is with whole logits, and is rounded once.

Where memory is not short, whole logits (cross_entropy.py) are faster.

Legend: S tokens, B sequences, N = S * B rows, C hidden, V this rank's part of the padded vocabulary, W ids
of a slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from megatron.backend.cpu_products import matmul
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.model.cross_entropy import add_up

# Bytes of float32 that the logits of one slice may take. On a GPU products of this size fill the device; a
# plan counts on the meta device what a GPU would hold.
SLICE_BYTES = {"cpu": 2**24, "cuda": 2**28, "meta": 2**28}
# Slices are of whole tiles of the products.
_TILE_IDS = 128


def slice_ids(rows: int, device_type: str) -> int:
    """How many ids are gone through at a time."""
    most = SLICE_BYTES[device_type] // (4 * max(1, rows))
    return max(_TILE_IDS, most // _TILE_IDS * _TILE_IDS)


def _slices(hidden_NC: torch.Tensor, ids_here: int) -> Iterator[slice]:
    step = slice_ids(len(hidden_NC), hidden_NC.device.type)
    for first in range(0, ids_here, step):
        yield slice(first, min(first + step, ids_here))


def _product(a_XY: torch.Tensor, b_YZ: torch.Tensor) -> torch.Tensor:
    """Their product before it is rounded to their dtype; [X, Z], float32.

    It makes the loss more exact than that of logits in bfloat16.
    """
    if a_XY.dtype == torch.float32:
        return matmul(a_XY, b_YZ)
    if a_XY.is_cuda:
        return torch.mm(a_XY, b_YZ, out_dtype=torch.float32)
    if a_XY.is_meta:
        return a_XY.new_empty(a_XY.size(0), b_YZ.size(1), dtype=torch.float32)
    return matmul(a_XY.float(), b_YZ.float())  # a CPU has no such product


class _OutputLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: torch.Tensor,
        weight_VC: torch.Tensor,
        labels_N: torch.Tensor,
        ids_here: int,
        group: dist.ProcessGroup,
    ) -> torch.Tensor:
        """`labels_N` count from this rank's first id; [N], float32, equal on every rank of `group`."""
        log_sums_N = hidden_NC.new_full((len(hidden_NC),), -torch.inf, dtype=torch.float32)
        chosen_N = torch.zeros_like(log_sums_N)
        for ids in _slices(hidden_NC, ids_here):
            logits_NW = _product(hidden_NC, weight_VC[ids].T)
            log_sums_N = torch.logaddexp(log_sums_N, logits_NW.logsumexp(1))
            columns_N, is_here_N = _columns(labels_N, ids)
            chosen_N += logits_NW.gather(1, columns_N[:, None])[:, 0].masked_fill_(~is_here_N, 0.0)
        log_sums_N, chosen_N = add_up(log_sums_N, chosen_N, group)
        ctx.save_for_backward(hidden_NC, weight_VC, labels_N, log_sums_N)
        ctx.ids_here = ids_here
        return log_sums_N - chosen_N

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:
        """(softmax - one at the label) times the loss's gradient, slice by slice, into both products."""
        hidden_NC, weight_VC, labels_N, log_sums_N = ctx.saved_tensors
        grad_weight_VC = torch.empty_like(weight_VC)
        grad_weight_VC[ctx.ids_here :] = 0
        grad_hidden_NC = torch.zeros_like(hidden_NC, dtype=torch.float32)
        for ids in _slices(hidden_NC, ctx.ids_here):
            grad_NW = _product(hidden_NC, weight_VC[ids].T).sub_(log_sums_N[:, None]).exp_()
            columns_N, is_here_N = _columns(labels_N, ids)
            grad_NW.scatter_add_(1, columns_N[:, None], -is_here_N[:, None].float())
            rounded_NW = grad_NW.mul_(grad_N[:, None]).to(hidden_NC.dtype)
            grad_hidden_NC += _product(rounded_NW, weight_VC[ids])
            if rounded_NW.device.type == "cpu":
                grad_weight_VC[ids] = matmul(rounded_NW.T, hidden_NC)
            else:
                torch.mm(rounded_NW.T, hidden_NC, out=grad_weight_VC[ids])
        return grad_hidden_NC.to(hidden_NC.dtype), grad_weight_VC, None, None, None


def _columns(labels_N: torch.Tensor, ids: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Each label's column in a slice, or any, and whether it lies there."""
    is_here_N = (labels_N >= ids.start) & (labels_N < ids.stop)
    return (labels_N - ids.start).clamp(0, ids.stop - ids.start - 1), is_here_N


def output_loss(
    hidden_SBC: torch.Tensor,
    weight_VC: torch.Tensor,
    labels_SB: torch.Tensor,
    *,
    first_id: int,
    ids_here: int,
    group: dist.ProcessGroup,
    sequence_parallel: bool,
) -> torch.Tensor:
    """The loss of each token, [S, B], float32, the same on every rank of the tensor parallel `group`.

    Args:
        hidden_SBC: what the last norm gives; with `sequence_parallel` this rank's tokens.
        weight_VC: this rank's rows of the output layer.
        labels_SB: ids of the whole vocabulary, of all tokens.
        first_id: the id of this rank's first row.
        ids_here: this rank's rows that are ids; the others pad the vocabulary and have no probability.
    """
    # The gradient of hidden states is the sum of what every rank's ids give.
    if sequence_parallel:
        hidden_SBC = gather_from_sequence_parallel_region(hidden_SBC, tensor_parallel_output_grad=True)
    else:
        hidden_SBC = copy_to_tensor_model_parallel_region(hidden_SBC)
    loss_N: torch.Tensor = _OutputLoss.apply(
        hidden_SBC.flatten(0, 1), weight_VC, labels_SB.reshape(-1) - first_id, ids_here, group
    )
    return loss_N.view(labels_SB.shape)
