# SPDX-License-Identifier: Apache-2.0
"""The one table between a model here and its family at Hugging Face; both conversions read it.

Legend: G KV groups, R queries of a group, D head dimension, C hidden size, F feed-forward size, V ids.

Here, whole (not cut over ranks), a layer has
    linear_qkv  [G * (R + 2) * D, C]   for each KV group its R queries, then its key, then its value
    linear_fc1  [2 * F, C]             gate, then up
where Hugging Face has q_proj, k_proj, v_proj and gate_proj, up_proj. All other tensors are the same,
but for the rows of padding that the embedding and the output layer have here. Biases lie as the rows of their
matrices do. A row of the table with a condition is there only in the families that have such a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from megatron.neox_arguments.config import ModelConfig

Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Geometry:
    """The sizes that a conversion needs."""

    num_layers: int
    kv_groups: int
    queries_per_group: int
    head_dim: int
    vocab_size: int
    padded_vocab_size: int
    is_tied: bool
    has_qkv_bias: bool = False
    has_qk_norm: bool = False
    norms_come_after: bool = False

    @property
    def norms_come_before(self) -> bool:
        return not self.norms_come_after

    @staticmethod
    def of(model: ModelConfig, vocab_size: int, padded_vocab_size: int) -> Geometry:
        return Geometry(
            num_layers=model.num_layers,
            kv_groups=model.num_kv_heads,
            queries_per_group=model.num_attention_heads // model.num_kv_heads,
            head_dim=model.head_dim,
            vocab_size=vocab_size,
            padded_vocab_size=padded_vocab_size,
            is_tied=not model.no_weight_tying,
            has_qkv_bias=model.use_qkv_bias,
            has_qk_norm=model.qk_norm != "none",
            norms_come_after=model.norm_position == "after",
        )


def _join_qkv(parts: Tensors, g: Geometry) -> torch.Tensor:
    q, k, v = parts
    q_GRDC = q.view(g.kv_groups, g.queries_per_group, g.head_dim, -1)
    k_G1DC, v_G1DC = (part.view(g.kv_groups, 1, g.head_dim, -1) for part in (k, v))
    return torch.cat([q_GRDC, k_G1DC, v_G1DC], dim=1).reshape(-1, *q.shape[1:])


def _split_qkv(whole: torch.Tensor, g: Geometry) -> list[torch.Tensor]:
    qkv_GHDC = whole.view(g.kv_groups, g.queries_per_group + 2, g.head_dim, -1)
    q, k, v = qkv_GHDC.split([g.queries_per_group, 1, 1], dim=1)
    return [part.reshape(-1, *whole.shape[1:]) for part in (q, k, v)]


def _join_rows(parts: Tensors, g: Geometry) -> torch.Tensor:
    return torch.cat(list(parts), dim=0)


def _split_rows(whole: torch.Tensor, g: Geometry) -> list[torch.Tensor]:
    return list(whole.chunk(2, dim=0))


def _same(parts: Tensors, g: Geometry) -> torch.Tensor:
    return parts[0]


def _as_one(whole: torch.Tensor, g: Geometry) -> list[torch.Tensor]:
    return [whole]


def _pad_vocabulary(parts: Tensors, g: Geometry) -> torch.Tensor:
    missing = g.padded_vocab_size - parts[0].size(0)
    return torch.nn.functional.pad(parts[0], (0, 0, 0, missing)) if missing else parts[0]


def _unpad_vocabulary(whole: torch.Tensor, g: Geometry) -> list[torch.Tensor]:
    return [whole[: g.vocab_size]]


@dataclass(frozen=True)
class Row:
    """One tensor here, the tensors it is made of at Hugging Face, and the way there and back.

    `only` names the property of the geometry without which there is no such tensor.
    """

    ours: str
    theirs: tuple[str, ...]
    join: Callable[[Tensors, Geometry], torch.Tensor] = _same
    split: Callable[[torch.Tensor, Geometry], list[torch.Tensor]] = _as_one
    only: str = ""

    def is_in(self, g: Geometry) -> bool:
        return not self.only or bool(getattr(g, self.only))


_EMBEDDING = Row(
    "embedding.word_embeddings.weight", ("model.embed_tokens.weight",), _pad_vocabulary, _unpad_vocabulary
)
_OUTPUT = Row("output_layer.weight", ("lm_head.weight",), _pad_vocabulary, _unpad_vocabulary)
_FINAL_NORM = Row("decoder.final_layernorm.weight", ("model.norm.weight",))

_OURS, _THEIRS = "decoder.layers.{layer}.", "model.layers.{layer}."
_LAYER = (
    Row(_OURS + "input_layernorm.weight", (_THEIRS + "input_layernorm.weight",), only="norms_come_before"),
    Row(
        _OURS + "self_attention.linear_qkv.weight",
        tuple(_THEIRS + f"self_attn.{x}_proj.weight" for x in "qkv"),
        _join_qkv,
        _split_qkv,
    ),
    Row(
        _OURS + "self_attention.linear_qkv.bias",
        tuple(_THEIRS + f"self_attn.{x}_proj.bias" for x in "qkv"),
        _join_qkv,
        _split_qkv,
        only="has_qkv_bias",
    ),
    *(
        Row(
            _OURS + f"self_attention.{x}_layernorm.weight",
            (_THEIRS + f"self_attn.{x}_norm.weight",),
            only="has_qk_norm",
        )
        for x in "qk"
    ),
    Row(_OURS + "self_attention.linear_proj.weight", (_THEIRS + "self_attn.o_proj.weight",)),
    Row(
        _OURS + "self_attention.linear_proj.post_norm.weight",
        (_THEIRS + "post_attention_layernorm.weight",),
        only="norms_come_after",
    ),
    Row(
        _OURS + "pre_mlp_layernorm.weight",
        (_THEIRS + "post_attention_layernorm.weight",),
        only="norms_come_before",
    ),
    Row(
        _OURS + "mlp.linear_fc1.weight",
        (_THEIRS + "mlp.gate_proj.weight", _THEIRS + "mlp.up_proj.weight"),
        _join_rows,
        _split_rows,
    ),
    Row(_OURS + "mlp.linear_fc2.weight", (_THEIRS + "mlp.down_proj.weight",)),
    Row(
        _OURS + "mlp.linear_fc2.post_norm.weight",
        (_THEIRS + "post_feedforward_layernorm.weight",),
        only="norms_come_after",
    ),
)


def table(g: Geometry) -> Iterator[Row]:
    """Every row of a model, in the order of its computation."""
    yield _EMBEDDING
    for layer in range(g.num_layers):
        for row in _LAYER:
            if row.is_in(g):
                theirs = tuple(name.format(layer=layer) for name in row.theirs)
                yield Row(row.ours.format(layer=layer), theirs, row.join, row.split)
    yield _FINAL_NORM
    if not g.is_tied:
        yield _OUTPUT
