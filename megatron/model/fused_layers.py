# SPDX-License-Identifier: Apache-2.0
"""Where fused kernels stand in megatron-core's layers: attention with a fused rotary embedding, and SwiGLU.

Legend: S tokens, B sequences, E the width of queries, keys and values together, D head dimension.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.model.fused_kernels import Rotary, Swiglu


class AngleTables:
    """Cosines and sines of the angles that all layers are given, computed once."""

    def __init__(self) -> None:
        self._angles: torch.Tensor | None = None
        self._tables: tuple[torch.Tensor, torch.Tensor] | None = None

    def of(self, angles_S11D: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[S, D] each, float32. megatron-core gives all layers one tensor, so it is known by identity."""
        if angles_S11D.is_meta:  # a plan takes two runs of layers from each other: what lasts must be in both
            return angles_S11D, angles_S11D
        if self._tables is None or self._angles is not angles_S11D:
            angles_SD = angles_S11D[:, 0, 0].float()
            self._angles, self._tables = angles_S11D, (angles_SD.cos(), angles_SD.sin())
        return self._tables


class RotaryAttention(SelfAttention):
    """megatron-core's attention, whose queries and keys come out of their product turned already."""

    def __init__(self, *arguments: Any, rotary: Rotary, tables: AngleTables, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._rotary, self._angle_tables = rotary, tables
        self._angles: torch.Tensor | None = None  # of the call that is under way

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *arguments: Any,
        rotary_pos_emb: torch.Tensor | None = None,
        inference_context: Any = None,
        **keywords: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns [S, B, hidden] and no bias. megatron-core's own turning is left out: it gets no angles."""
        assert inference_context is None, "a model is read by model/reading.py"
        assert rotary_pos_emb is not None
        self._angles = rotary_pos_emb
        try:
            found: tuple[torch.Tensor, torch.Tensor | None] = super().forward(
                hidden_states, attention_mask, *arguments, rotary_pos_emb=None, **keywords
            )
            return found
        finally:
            self._angles = None

    def get_query_key_value_tensors(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None = None,
        output_gate: bool = False,
        split_qkv: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries [S, B, heads, D] and keys turned, and values."""
        assert key_value_states is None
        assert not output_gate
        assert split_qkv
        assert self._angles is not None
        groups = self.num_query_groups_per_partition
        queries = self.num_attention_heads_per_partition // groups
        qkv_SBE, _ = self.linear_qkv(hidden_states)
        return self._rotary(qkv_SBE, *self._angle_tables.of(self._angles), groups, queries)


class SwigluModule(MegatronModule):
    """A SwiGLU in the place that megatron-core's MLP has for an activation of the layer specification.

    It is asked for its part of a checkpoint, which is nothing, as each module of that MLP.
    """

    def __init__(self, config: TransformerConfig, *, swiglu: Swiglu) -> None:
        super().__init__(config)
        self._swiglu = swiglu

    def forward(self, product: torch.Tensor) -> torch.Tensor:
        return self._swiglu(product)
