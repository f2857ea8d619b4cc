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
    steps: int
    tokens_per_step: int
    gpu_hours: float
    gpu: str
    source: str

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    @property
    def tokens_per_second_per_gpu(self) -> float:
        return self.tokens / self.gpu_hours / 3600

    def implied_mfu(self, model: ModelConfig, vocab: int) -> float:
        flops, _ = flops_per_token(model, vocab)
        peak = peak_flops(self.gpu)
        assert peak is not None
        return self.tokens_per_second_per_gpu * flops / peak


# Azerbayev et al. 2023 (arXiv 2310.10631), section 2.2: steps, hours, and 4 million tokens a step, which in
# the published configurations are 1,024 sequences of 4,096. Llemma 7B ended at step 42,000 of a schedule of
# 48,000: the hours are for 176 B tokens, not for the 200 B that the paper also names (of the whole schedule).
_LLEMMA, _STEP = "Azerbayev et al. 2023, section 2.2", 1024 * 4096
PUBLISHED = (
    PublishedRun("Llemma 7B", (32, 4096, 32, 32, 11008, 4096), 42_000, _STEP, 23_000, "A100", _LLEMMA),
    PublishedRun("Llemma 34B", (48, 8192, 64, 8, 22016, 4096), 12_000, _STEP, 47_000, "A100", _LLEMMA),
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
