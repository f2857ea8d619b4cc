# SPDX-License-Identifier: Apache-2.0
"""Published runs with their GPU-hours, and the utilisation that these imply."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.neox_arguments.config import ModelConfig
from megatron.planning.flops import flops_per_token
from megatron.planning.gpus import peak_flops


@dataclass(frozen=True)
class PublishedRun:
    """A run by the shape of its network: (layers, hidden, heads, KV heads, MLP, sequence)."""

    name: str
    shape: tuple[int, int, int, int, int, int]
    tokens: float
    gpu_hours: float
    gpu: str
    source: str

    @property
    def tokens_per_second_per_gpu(self) -> float:
        return self.tokens / self.gpu_hours / 3600

    def implied_mfu(self, model: ModelConfig, vocab: int) -> float:
        flops, _ = flops_per_token(model, vocab)
        peak = peak_flops(self.gpu)
        assert peak is not None
        return self.tokens_per_second_per_gpu * flops / peak


# Azerbayev et al. 2023 (arXiv 2310.10631): hours in section 2.2, tokens in section 2.2 and table 1.
_LLEMMA = "Azerbayev et al. 2023"
PUBLISHED = (
    PublishedRun("Llemma 7B", (32, 4096, 32, 32, 11008, 4096), 200e9, 23_000, "A100", _LLEMMA),
    PublishedRun("Llemma 34B", (48, 8192, 64, 8, 22016, 4096), 50e9, 47_000, "A100", _LLEMMA),
)


def published_run(model: ModelConfig) -> PublishedRun | None:
    """The published run of this network, where there is one."""
    shape = (
        model.num_layers,
        model.hidden_size,
        model.num_attention_heads,
        model.num_kv_heads,
        model.intermediate_size,
        model.seq_length,
    )
    return next((run for run in PUBLISHED if run.shape == shape), None)
