# SPDX-License-Identifier: Apache-2.0
"""The networks that are timed: Llemma-7B, a tensor parallel rank of eight of Llemma-34B, small ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron.neox_arguments.config import ModelConfig
from megatron.planning.flops import flops_per_token


@dataclass(frozen=True)
class Shape:
    """A network as one GPU has it. `left_out` says what of a real run is not in it."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tokens: int
    tied: bool = False
    tensor_ranks: int = 1
    left_out: str = ""

    def with_layers(self, layers: int) -> Shape:
        return replace(self, layers=layers)

    def model_keys(self) -> dict[str, object]:
        """The network in this engine's configuration keys."""
        return {
            "num_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn,
            "vocab_size": self.vocab,
            "seq_length": self.tokens,
            "max_position_embeddings": max(self.tokens, 2048),
            "make_vocab_size_divisible_by": 1,
            "no_weight_tying": not self.tied,
        }

    def flops_per_token(self) -> tuple[float, float]:
        """Forward and backward: 6 N + 12 L d s, and with causal attention at half."""
        return flops_per_token(ModelConfig.model_validate(self.model_keys()), self.vocab)

    def depths(self) -> list[int]:
        """The whole depth, then shallower ones down to an eighth of it, for a GPU it does not fit in."""
        eighths = (8, 7, 6, 5, 4, 3, 2, 1)
        return list(dict.fromkeys(max(1, self.layers * eighth // 8) for eighth in eighths))


# Llemma 7B: Azerbayev et al. 2023, and Code Llama 7B's config.json (vocabulary 32,016).
LLEMMA_7B = Shape(
    name="Llemma-7B", layers=32, hidden=4096, heads=32, kv_heads=32, head_dim=128, ffn=11008, vocab=32016,
    tokens=4096,
)  # fmt: skip
# Code Llama 34B: 48 layers, 8192, 64 heads, 8 groups, 22016, vocabulary 32,000; an eighth of all that is cut.
LLEMMA_34B_TP8 = Shape(
    name="Llemma-34B, a rank of TP 8", layers=48, hidden=8192, heads=8, kv_heads=1, head_dim=128, ffn=2752,
    vocab=4000, tokens=4096, tensor_ranks=8,
    left_out=(
        "all communication: in each layer two all-gathers before and two reduce-scatters after the cut "
        "matrices (and again in the backward pass), the embedding's and the loss's sums over the vocabulary, "
        "gradients and weights over data parallel ranks. A rank of a real run has an eighth of the sequence "
        "in norms and residual sums (sequence parallelism); here it has all of it, more work than there"
    ),
)  # fmt: skip
# For tests, and to see on a CPU that all sides run.
TINY = Shape(
    name="tiny", layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=176, vocab=320, tokens=64
)
# What two CPU cores train: 8.4 M parameters, and the shape of SmolLM2-135M.
SMALL = Shape(
    name="8.4 M parameters", layers=4, hidden=256, heads=8, kv_heads=4, head_dim=32, ffn=688, vocab=10240,
    tokens=512,
)  # fmt: skip
SMOLLM2 = Shape(
    name="SmolLM2-135M's shape", layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, ffn=1536,
    vocab=49152, tokens=256, tied=True,
)  # fmt: skip
SHAPES = {"7b": LLEMMA_7B, "34b-tp8": LLEMMA_34B_TP8, "tiny": TINY, "small": SMALL, "smollm2": SMOLLM2}
