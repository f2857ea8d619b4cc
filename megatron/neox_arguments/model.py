# SPDX-License-Identifier: Apache-2.0
"""What the network is: a Llama by its sizes, its norm and its rotary embedding, or one of its relatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .fields import REQUIRED, Concern, Positive, key

# Hugging Face's families by `model_type`, and the model keys in which each is not a Llama. A model with other
# combinations could be trained, and then loaded nowhere.
FAMILIES: dict[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"use_qkv_bias": True},
    "qwen3": {"qk_norm": "head"},
    "olmo2": {"qk_norm": "projection", "norm_position": "after"},
}


def llama_intermediate_size(hidden_size: int) -> int:
    """Width of the gated MLP where none is given: 8/3 of hidden_size, up to a multiple of 256.

    GPT-NeoX's rule for `mlp_type: llama`; 4096 gives 11008 and 8192 gives 22016, as in Llama and Code Llama.
    """
    return -(-int(2 * 4 * hidden_size / 3) // 256) * 256


def pad_vocab(vocab_size: int, divisible_by: int, tp: int) -> int:
    """Rows of the embedding: `vocab_size` rounded up to a multiple of `divisible_by` x `tp`, as GPT-NeoX
    pads.
    """
    for name, value in (("vocab_size", vocab_size), ("divisible_by", divisible_by), ("tp", tp)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    multiple = divisible_by * tp
    return -(-vocab_size // multiple) * multiple


def _kv_heads(known: dict[str, Any]) -> int:
    return 1 if known["attention_type"] == "multiquery" else int(known["num_attention_heads"])


class RotaryScaling(Concern):
    """Rotary scaling of the base model; the last three keys are llama3's, with Llama 3.1's values."""

    type: Literal["linear", "llama3"] = key(
        REQUIRED,
        "linear divides every position by factor; llama3 divides low frequencies, keeps high ones and blends"
        " between.",
    )
    factor: float = key(REQUIRED, "Positions, or low frequencies, are divided by this.", ge=1)
    low_freq_factor: float = key(1.0, "Wavelengths over the original context / this are low.", gt=0)
    high_freq_factor: float = key(4.0, "Wavelengths under the original context / this are high.", gt=0)
    original_max_position_embeddings: Positive = key(8192, "Context before the extension, in tokens.")


class ModelConfig(Concern):
    """The network."""

    num_layers: Positive = key(REQUIRED, "Transformer layers.")
    hidden_size: Positive = key(REQUIRED, "Width of the residual stream.")
    num_attention_heads: Positive = key(REQUIRED, "Query heads of each layer.")
    attention_type: Literal["multihead", "groupedquery", "multiquery"] | None = key(
        None,
        "How query heads share keys and values; checked against num_kv_heads.",
        derived="what num_kv_heads says",
    )
    num_kv_heads: Positive = key(
        _kv_heads,
        "Key and value heads of each layer; query heads share them in equal groups.",
        derived="num_attention_heads, or 1 with attention_type multiquery",
    )
    head_dim: Positive = key(
        lambda known: max(1, known["hidden_size"] // known["num_attention_heads"]),
        "Width of one head; even, because rotary embeddings turn pairs.",
        derived="hidden_size / num_attention_heads",
    )
    intermediate_size: Positive = key(
        lambda known: llama_intermediate_size(known["hidden_size"]),
        "Width of the gated MLP.",
        aliases=("ffn_hidden_size",),
        derived="8/3 of hidden_size, up to a multiple of 256",
    )
    vocab_size: Positive | None = key(
        None, "Token ids the model knows, before padding.", derived="the tokenizer's, when the run starts"
    )
    make_vocab_size_divisible_by: Positive = key(
        128, "The vocabulary is padded to a multiple of this times model_parallel_size, in token ids."
    )
    seq_length: Positive = key(REQUIRED, "Training sequence length, in tokens.")
    max_position_embeddings: Positive = key(
        lambda known: known["seq_length"],
        "Longest sequence the model may be asked for, in tokens.",
        derived="seq_length",
    )
    norm: Literal["rmsnorm", "rmsnorm_neox"] = key(
        "rmsnorm",
        "rmsnorm is Llama's x / sqrt(mean(x^2) + eps); rmsnorm_neox is x / (rms + eps), which GPT-NeoX calls"
        " rmsnorm and Llemma was trained with.",
    )
    rms_norm_epsilon: float = key(1e-5, "eps of the norm.", gt=0)
    norm_position: Literal["before", "after"] = key(
        "before",
        "Where each layer's two norms stand: before attention and MLP (Llama), or after them, before the sum"
        " with the residual stream (OLMo 2).",
    )
    qk_norm: Literal["none", "head", "projection"] = key(
        "none",
        "Norm of queries and keys before the rotary embedding: none (Llama), head is over each head with one"
        " weight for all (Qwen 3), projection is over all heads together (OLMo 2).",
    )
    mlp_type: Literal["llama"] = key("llama", "Gated MLP with three matrices; no other is built.")
    activation: Literal["silu"] = key("silu", "Activation of the MLP's gate; no other is built.")
    no_weight_tying: bool = key(False, "Give the output layer its own matrix instead of the embedding's.")
    use_qkv_bias: bool = key(
        False, "Biases in the projections of queries, keys and values, and in no other (Qwen 2 and 2.5)."
    )
    use_bias_in_attn_linear: Literal[False] = key(
        False, "Biases in all four projections of the attention; not built: use_qkv_bias is those of Qwen 2."
    )
    use_bias_in_norms: Literal[False] = key(False, "Biases in the norms; not built.")
    use_bias_in_mlp: Literal[False] = key(False, "Biases in the MLP; not built.")
    gpt_j_residual: Literal[False] = key(False, "Attention and MLP side by side; not built.")
    output_layer_parallelism: Literal["column"] = key(
        "column", "How the output layer is cut over tensor parallel ranks: by vocabulary."
    )
    pos_emb: Literal["rotary"] = key("rotary", "Position embedding; no other is built.")
    rotary_emb_base: float = key(
        10000.0,
        "Base of the rotary angles; lower than the checkpoint's contracts the rotary period.",
        aliases=("rotary_base",),
        gt=1,
    )
    rotary_pct: float = key(1.0, "Fraction of each head that is turned; only 1 is built.", ge=1, le=1)
    rotary_scaling: RotaryScaling | None = key(
        None,
        "Rotary scaling of the base model: {type: linear, factor} or {type: llama3, factor, low_freq_factor,"
        " high_freq_factor, original_max_position_embeddings}.",
    )
    hidden_dropout: float = key(
        0.0, "Probability that an activation of the residual branch is dropped.", ge=0, lt=1
    )
    attention_dropout: float = key(0.0, "Probability that an attention weight is dropped.", ge=0, lt=1)
    attention_backend: Literal[
        "auto", "flash_attn", "flash_attn_3", "flash_attn_4", "torch_flash", "cudnn", "efficient", "cpu"
    ] = key(
        "auto",
        "Attention kernel; auto times all that run on the GPU at the run's shape, takes the fastest, and logs"
        " the times (docs/kernels.md).",
    )
    fused_kernels: Literal["auto", "plain", "liger", "triton"] = key(
        "auto",
        "Kernels of norm, rotary embedding and SwiGLU: plain is torch's and megatron-core's, liger is"
        " Liger-Kernel's, triton is our own; auto times them on the GPU and takes the fastest of each"
        " (docs/kernels.md).",
    )
    cross_entropy_fusion_impl: Literal["native", "linear"] = key(
        "native",
        "How the loss is computed: `native` keeps the logits of a micro-batch and writes their gradient over "
        "them; `linear` fuses it with the output layer, a slice of the vocabulary at a time, and computes "
        "the logits again in the backward pass: less memory, a third more products of the output layer.",
    )
    init_std: float = key(0.02, "Standard deviation of fresh weights.", aliases=("init_method_std",), gt=0)

    @property
    def families(self) -> list[str]:
        """The `model_type`s of Hugging Face that describe this network; the first is what it is by itself."""
        return [name for name in FAMILIES if self.is_like(name)]

    def is_like(self, family: str) -> bool:
        """Whether this network has what tells `family` from a Llama, and nothing that tells others."""
        keys = {key for features in FAMILIES.values() for key in features}
        expected = {key: FAMILIES[family].get(key, type(self).model_fields[key].default) for key in keys}
        return all(getattr(self, key) == value for key, value in expected.items())
