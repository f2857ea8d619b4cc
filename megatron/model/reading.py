# SPDX-License-Identifier: Apache-2.0
"""The model read, not trained: the weights of megatron-core's layers, walked in a straight line.

A step of generation computes one token of each sequence. megatron-core's layers are made for thousands of
tokens at a time, and spend longer on their own bookkeeping than the products of a small model take; and their
caches hold either requests of one length, or need a CUDA kernel. So the same network stands here once more as
what it computes, over tokens of any sequences one after the other; what attends to what is the caller's
affair (`Attend`). The tests hold both forms against each other and against transformers, for every family.

Legend: N tokens of any sequences, C hidden, V this rank's ids, G local KV heads, R query heads of each,
D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import embedding, silu

from megatron.backend import Backend
from megatron.core import parallel_state
from megatron.core.transformer.identity_op import IdentityOp
from megatron.model.llama import BuiltModel
from megatron.model.products import Product, choose_products, plain

Norm = Callable[[torch.Tensor], torch.Tensor]
# (layer, q_NGRD, k_NGD, v_NGD) -> what the tokens take from the values they see, [N, G * R * D]
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _norm(module: Any) -> Norm | None:
    return None if module is None or isinstance(module, IdentityOp) else module


@dataclass(frozen=True)
class _Layer:
    """One layer on this rank. A norm that the family does not have is None."""

    before_attention: Norm | None
    qkv: Product
    query_norm: Norm | None
    key_norm: Norm | None
    projection: Product
    after_attention: Norm | None
    before_mlp: Norm | None
    gate_and_up: Product
    down: Product
    after_mlp: Norm | None


class ModelReader:
    """What a model says after tokens. Every tensor parallel rank calls it with the same arguments.

    Attributes:
        products: how weights are multiplied with, in words.
    """

    def __init__(self, built: BuiltModel, backend: Backend, *, is_kept: bool = True) -> None:
        """With `is_kept` it is made to be used for long, and may take memory and a moment for that: later
        changes of the model's weights may not show. Without, it uses them where they lie."""
        assert backend.pipeline_parallel_size == 1, "a model is read without a pipeline"
        llama: Any = getattr(built.module, "module", built.module)
        config = built.config
        self.device = backend.device
        self.dtype: torch.dtype = config.params_dtype
        self.ranks, self.rank = backend.tensor_parallel_size, backend.tensor_parallel_rank
        self.group = parallel_state.get_tensor_model_parallel_group()
        self.layers_count = config.num_layers
        self.head_dim = config.kv_channels
        assert config.num_query_groups % self.ranks == 0, "a KV head lies on one rank"
        self.kv_heads = config.num_query_groups // self.ranks
        self.queries_of_head = config.num_attention_heads // self.ranks // self.kv_heads
        self.vocab_size = built.vocab_size
        self._embedding = llama.embedding.word_embeddings.weight
        self._product, self.products = plain, "weights as they lie"
        if is_kept:
            weights_bytes = sum(weight.numel() * weight.element_size() for weight in llama.parameters())
            self._product, self.products = choose_products(self.device, self.dtype, weights_bytes)
        output = self._embedding if llama.share_embeddings_and_output_weights else llama.output_layer.weight
        self._output = self._product(output)
        self.first_id = self.rank * len(output)
        self.ids_here = min(max(0, built.vocab_size - self.first_id), len(output))
        self._final_norm: Norm = llama.decoder.final_layernorm
        self._inverse_frequencies = llama.rotary_pos_emb.inv_freq.float()
        self._layers = [self._read_layer(layer) for layer in llama.decoder.layers]

    def _read_layer(self, layer: Any) -> _Layer:
        attention, mlp, product = layer.self_attention, layer.mlp, self._product
        return _Layer(
            before_attention=_norm(layer.input_layernorm),
            qkv=product(attention.linear_qkv.weight, attention.linear_qkv.bias),
            query_norm=_norm(attention.q_layernorm),
            key_norm=_norm(attention.k_layernorm),
            projection=product(attention.linear_proj.weight),
            after_attention=getattr(attention.linear_proj, "post_norm", None),
            before_mlp=_norm(layer.pre_mlp_layernorm),
            gate_and_up=product(mlp.linear_fc1.weight),
            down=product(mlp.linear_fc2.weight),
            after_mlp=getattr(mlp.linear_fc2, "post_norm", None),
        )

    def rotary_tables(self, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of positions 0 … positions - 1, each [positions, D].

        The sines of the first half are negative: what they are multiplied with is each pair's other half.
        """
        places = torch.arange(positions, device=self.device, dtype=torch.float32)
        angles = torch.outer(places, self._inverse_frequencies)
        cosines, sines = angles.cos(), angles.sin()
        return torch.cat([cosines, cosines], 1).to(self.dtype), torch.cat([-sines, sines], 1).to(self.dtype)

    def _sum(self, partial: torch.Tensor) -> torch.Tensor:
        """The sum over tensor parallel ranks, in place."""
        if self.ranks > 1:
            dist.all_reduce(partial, group=self.group)
        return partial

    def _embed(self, tokens_N: torch.Tensor) -> torch.Tensor:
        if self.ranks == 1:
            return embedding(tokens_N, self._embedding)
        local_N = tokens_N - self.first_id
        elsewhere_N = (local_N < 0) | (local_N >= len(self._embedding))
        rows_NC = embedding(local_N.masked_fill(elsewhere_N, 0), self._embedding)
        return self._sum(rows_NC.masked_fill_(elsewhere_N[:, None], 0))

    def hidden(
        self, tokens_N: torch.Tensor, cosines_ND: torch.Tensor, sines_ND: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """What the last layer makes of tokens, normalised; [N, C].

        `cosines_ND` and `sines_ND` are the rows of `rotary_tables` for each token's position.
        """
        cosines, sines = cosines_ND[:, None, None], sines_ND[:, None, None]
        x_NC = self._embed(tokens_N)
        for number, layer in enumerate(self._layers):
            y_NC = layer.before_attention(x_NC) if layer.before_attention else x_NC
            y_NC = self._attention(number, layer, y_NC, cosines, sines, attend)
            x_NC = x_NC + (layer.after_attention(y_NC) if layer.after_attention else y_NC)
            y_NC = layer.before_mlp(x_NC) if layer.before_mlp else x_NC
            gate, up = layer.gate_and_up(y_NC).chunk(2, -1)
            y_NC = self._sum(layer.down(silu(gate) * up))
            x_NC = x_NC + (layer.after_mlp(y_NC) if layer.after_mlp else y_NC)
        return self._final_norm(x_NC)

    def _attention(
        self,
        number: int,
        layer: _Layer,
        x_NC: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        attend: Attend,
    ) -> torch.Tensor:
        heads, queries, head_dim = self.kv_heads, self.queries_of_head, self.head_dim
        qkv = layer.qkv(x_NC).view(len(x_NC), heads, queries + 2, head_dim)
        if layer.query_norm is None and layer.key_norm is None:
            turned = self._rotate(qkv[:, :, :-1], cosines, sines)  # queries and keys at once
            q_NGRD, k_NGD = turned[:, :, :-1], turned[:, :, -1]
        else:
            q_NGRD = self._normed(layer.query_norm, qkv[:, :, :queries])
            k_NG1D = self._normed(layer.key_norm, qkv[:, :, queries : queries + 1])
            q_NGRD = self._rotate(q_NGRD, cosines, sines)
            k_NGD = self._rotate(k_NG1D, cosines, sines)[:, :, 0]
        out_NE = attend(number, q_NGRD, k_NGD, qkv[:, :, -1])
        return self._sum(layer.projection(out_NE))

    @staticmethod
    def _normed(norm: Norm | None, x_NGRD: torch.Tensor) -> torch.Tensor:
        """A norm of queries or keys reads [tokens, sequences, heads, D], as in the layer."""
        if norm is None:
            return x_NGRD
        return norm(x_NGRD.flatten(1, 2)[:, None]).view(x_NGRD.shape)

    def _rotate(self, x_NGRD: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(x_NGRD * cosines, x_NGRD.roll(self.head_dim // 2, -1), sines)

    def logits(self, hidden_NC: torch.Tensor) -> torch.Tensor:
        """The logits of this rank's ids, without those that pad the vocabulary; [N, ids_here]."""
        return self._output(hidden_NC)[:, : self.ids_here]

    def gathered_logits(self, hidden_NC: torch.Tensor) -> torch.Tensor | None:
        """The logits of all ids, [N, vocab_size], float32, on the first rank; None on the others."""
        if self.ranks == 1:
            return self.logits(hidden_NC).float()
        mine = self._output(hidden_NC)
        parts = [torch.empty_like(mine) for _ in range(self.ranks)] if self.rank == 0 else None
        dist.gather(mine, parts, dst=dist.get_global_rank(self.group, 0), group=self.group)
        return None if parts is None else torch.cat(parts, -1)[:, : self.vocab_size].float()
