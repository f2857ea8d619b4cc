# SPDX-License-Identifier: Apache-2.0
"""Model FLOPs per token, and the share of a GPU's peak they make up (MFU)."""

from __future__ import annotations

from megatron.neox_arguments.config import ModelConfig

# Dense bfloat16 peak of one GPU in TFLOP/s, without sparsity: NVIDIA's data sheets. Longer names first.
PEAK_BF16_TFLOPS: dict[str, float] = {
    "A100": 312.0,
    "A800": 312.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H800": 989.0,
    "H200": 989.0,
    "GH200": 989.0,
    "B200": 2250.0,
    "L40S": 362.0,
    "A40": 149.7,
    "A10": 125.0,
}


def parameter_counts(model: ModelConfig, vocab_size: int) -> tuple[int, int]:
    """Returns (parameters of the input embedding, all other parameters) of the whole model.

    A tied embedding is also the output layer, so its matrix counts among the others as well.
    """
    h, d, heads, kv_heads = model.hidden_size, model.head_dim, model.num_attention_heads, model.num_kv_heads
    attention = h * d * (2 * heads + 2 * kv_heads)
    if model.use_qkv_bias:
        attention += d * (heads + 2 * kv_heads)
    attention += {"none": 0, "head": 2 * d, "projection": d * (heads + kv_heads)}[model.qk_norm]
    layer = attention + 3 * h * model.intermediate_size + 2 * h
    embedding = vocab_size * h
    return embedding, model.num_layers * layer + h + embedding


def flops_per_token(model: ModelConfig, vocab_size: int) -> tuple[float, float]:
    """Returns forward and backward FLOPs per token, counted two ways.

    The first is 6 N + 12 L d s (Chowdhery et al. 2022, PaLM, appendix B), N without the input embedding,
    d = heads * head_dim, s = seq_length; the second counts causal attention at half.
    """
    _, others = parameter_counts(model, vocab_size)
    attention = 12 * model.num_layers * model.num_attention_heads * model.head_dim * model.seq_length
    return 6.0 * others + attention, 6.0 * others + attention / 2


def peak_flops(gpu_name: str) -> float | None:
    """Peak bfloat16 FLOP/s of a GPU by its CUDA name; None where the table has none."""
    for name in sorted(PEAK_BF16_TFLOPS, key=len, reverse=True):
        if all(word in gpu_name for word in name.split()):
            return PEAK_BF16_TFLOPS[name] * 1e12
    return None
