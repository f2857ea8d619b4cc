# SPDX-License-Identifier: Apache-2.0
"""What a layer does not keep for its backward pass and computes again: whole layers, or parts of them.

Whole layers are megatron-core's: it runs the first layers of a stage without keeping anything but what goes
into them. Parts are flags of each layer, so that the layers which are not computed again as a whole may still
drop what is cheap to make anew. A result never depends on any of it.

- core_attn: attention itself, from queries, keys and values. A flash kernel keeps nothing that this saves.
- layernorm: what comes out of the two norms, which the matrices after them keep.
- mlp_act: the product of the gate and what it gates, which the MLP's second matrix keeps.
- mlp: the whole MLP, from what comes out of its norm.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch

from megatron.core import tensor_parallel
from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl
from megatron.core.tensor_parallel.random import CheckpointWithoutOutput
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.neox_arguments.config import ParallelConfig


def whole_layers(parallel: ParallelConfig) -> dict[str, Any]:
    """megatron-core's keys for layers that are computed again as a whole."""
    assert parallel.recompute != "auto", "planning/recompute.py settles it first"
    if parallel.recompute != "full":
        return {}
    if parallel.recompute_method == "block":
        count = parallel.recompute_num_layers
    else:
        count = parallel.checkpoint_num_layers
    return {
        "recompute_granularity": "full",
        "recompute_method": parallel.recompute_method,
        "recompute_num_layers": count,
    }


def mark_parts(layers: Iterable[Any], parallel: ParallelConfig) -> None:
    """Tells the layers of a stage which of their parts to compute again.

    Those that are computed again as a whole keep nothing anyway.
    """
    tensor_parallel.CheckpointWithoutOutput = WithoutOutput
    whole = parallel.recomputed_layers
    modules = set(parallel.recompute_modules)
    for place, layer in enumerate(layers):
        here = modules if whole is not None and place >= whole else set()
        layer.self_attention.checkpoint_core_attention = "core_attn" in here
        has_norms = "layernorm" in here
        layer.recompute_input_layernorm = has_norms and not isinstance(layer.input_layernorm, IdentityOp)
        layer.recompute_pre_mlp_layernorm = has_norms and not isinstance(layer.pre_mlp_layernorm, IdentityOp)
        layer.recompute_mlp = "mlp" in here
        layer.mlp.recompute_activation = "mlp_act" in here


class WithoutOutput(CheckpointWithoutOutput):
    """megatron-core's, which in 0.16.1 takes its own default for fp8, and so needs TransformerEngine."""

    def __init__(self, fp8: Any = None) -> None:
        super().__init__(fp8 or None)


class GatedMLP(MLP):
    """megatron-core's MLP without biases, which may compute its activation again."""

    recompute_activation = False

    def forward(
        self, hidden_SBC: torch.Tensor, per_token_scale: torch.Tensor | None = None, **more: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """down(silu(gate) * up), and no bias; [S, B, C] there and back."""
        assert per_token_scale is None, "for experts"
        gate_and_up_SBF, _ = self.linear_fc1(hidden_SBC)
        if not (self.recompute_activation and self.training):  # validation keeps nothing
            plain: tuple[torch.Tensor, torch.Tensor | None] = self.linear_fc2(
                self._activation(gate_and_up_SBF)
            )
            return plain
        kept = WithoutOutput()
        gated_SBF = kept.checkpoint(self._activation, gate_and_up_SBF)
        out_SBC, bias = self.linear_fc2(gated_SBF)
        kept.discard_output_and_register_recompute(out_SBC)
        return out_SBC, bias

    def _activation(self, gate_and_up_SBF: torch.Tensor) -> torch.Tensor:
        """By the kernel that was chosen, or fused on a GPU.

        In operations without what megatron-core adds to `up`, which is 0 in a Llama.
        """
        if self.config.use_te_activation_func:
            chosen: torch.Tensor = self.activation_func(gate_and_up_SBF)
            return chosen
        if self.config.bias_activation_fusion:
            fused: torch.Tensor = bias_swiglu_impl(gate_and_up_SBF, None)
            return fused
        gate_SBF, up_SBF = gate_and_up_SBF.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate_SBF) * up_SBF


def gated_mlp(submodules: MLPSubmodules) -> type[GatedMLP]:
    """The class of an MLP of `submodules`; megatron-core takes a specification for its own classes only."""
    made = functools.partialmethod(GatedMLP.__init__, submodules=submodules)
    return type("GatedMLP", (GatedMLP,), {"__init__": made})
