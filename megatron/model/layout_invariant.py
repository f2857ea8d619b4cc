# SPDX-License-Identifier: Apache-2.0
"""Sums over tensor parallel ranks in the order of one rank, for reading and comparing.

Tensor parallelism adds the parts of a row-parallel product after they are rounded, which one rank does not.
The difference is that of any other order of addition, but with logits of 40, as SmolLM2 has them, it is
6e-5 in float32, and a greedy text may part there. Here each rank has all columns of the input and of the
weight for a product, computes some of the outputs with all their terms, and the ranks' sum adds zeros only.
What is left is what the matrix library does with matrices of other widths: for SmolLM2 nothing.
Work and memory at rest stay cut; each product gathers one weight, so it is a check and not for speed.

Legend: S tokens, B sequences, K inputs, N outputs of a matrix; T tensor parallel ranks.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from megatron.core.tensor_parallel.layers import RowParallelLinear
from megatron.model.norms import ProjectionNorm
from megatron.neox_arguments.errors import UserError


def make_layout_invariant(module: torch.nn.Module) -> None:
    """Changes the row-parallel products of a model that is only read.

    Raises:
        UserError: the model normalises queries over all heads (OLMo 2), which is another sum over ranks.
    """
    if any(isinstance(part, ProjectionNorm) for part in module.modules()):
        raise UserError("layout invariant reading: OLMo 2's norms of queries and keys are summed over ranks; "
                        "read it with one rank")  # fmt: skip
    for part in module.modules():
        if isinstance(part, RowParallelLinear):
            part._forward_impl = _own_outputs


def _own_outputs(input: torch.Tensor, weight: torch.Tensor, **_: Any) -> torch.Tensor:
    """This rank's outputs of the whole product, and zeros for those of the others; [S, B, N]."""
    x_SBK = gather_from_tensor_model_parallel_region(input)
    weight_NK = gather_from_tensor_model_parallel_region(weight)
    ranks, rank = (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_rank(),
    )
    outputs = weight_NK.size(0)
    begin, end = outputs * rank // ranks, outputs * (rank + 1) // ranks
    y_SBN = x_SBK.new_zeros(*x_SBK.shape[:-1], outputs)
    y_SBN[..., begin:end] = torch.nn.functional.linear(x_SBK, weight_NK[begin:end])
    return y_SBN
