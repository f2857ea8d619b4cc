# SPDX-License-Identifier: Apache-2.0
"""Parameters of the whole model, and model FLOPs per token."""

from __future__ import annotations

from megatron.neox_arguments.config import ModelConfig


def layer_parameters(model: ModelConfig, tensor: int = 1) -> int:
    """Parameters of one layer, on one of `tensor` tensor parallel ranks."""
    h, d, heads, kv_heads = model.hidden_size, model.head_dim, model.num_attention_heads, model.num_kv_heads
    cut = h * d * (2 * heads + 2 * kv_heads) + 3 * h * model.intermediate_size
    if model.use_qkv_bias:
        cut += d * (heads + 2 * kv_heads)
    whole = 2 * h
    if model.qk_norm == "projection":
        cut += d * (heads + kv_heads)
    elif model.qk_norm == "head":
        whole += 2 * d
    return cut // tensor + whole


def parameter_counts(model: ModelConfig, vocab_size: int) -> tuple[int, int]:
    """Returns (parameters of the input embedding, all other parameters) of the whole model.

    A tied embedding is also the output layer, so its matrix counts among the others as well.
    """
    embedding = vocab_size * model.hidden_size
    return embedding, model.num_layers * layer_parameters(model) + model.hidden_size + embedding


def flops_per_token(model: ModelConfig, vocab_size: int) -> tuple[float, float]:
    """Returns forward and backward FLOPs per token, counted two ways.

    The first is 6 N + 12 L d s (Chowdhery et al. 2022, PaLM, appendix B), N without the input embedding,
    d = heads * head_dim, s = seq_length; the second counts causal attention at half.
    """
    _, others = parameter_counts(model, vocab_size)
    attention = 12 * model.num_layers * model.num_attention_heads * model.head_dim * model.seq_length
    return 6.0 * others + attention, 6.0 * others + attention / 2
