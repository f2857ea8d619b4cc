# SPDX-License-Identifier: Apache-2.0
"""Parameters and FLOPs against transformers and published figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron.neox_arguments.config import ModelConfig
from megatron.neox_arguments.model import FAMILIES
from megatron.planning.flops import flops_per_token, parameter_counts
from megatron.planning.gpus import peak_flops

LLEMMA_7B = ModelConfig(
    num_layers=32, hidden_size=4096, num_attention_heads=32, seq_length=4096, no_weight_tying=True
)
LLEMMA_34B = ModelConfig(
    num_layers=48,
    hidden_size=8192,
    num_attention_heads=64,
    num_kv_heads=8,
    seq_length=4096,
    no_weight_tying=True,
)


@pytest.mark.parametrize(
    ("model", "vocab_size", "parameters"),
    [
        # Counted from Code Llama's published shapes: 7B has 32,016 ids, 34B 32,000.
        (LLEMMA_7B, 32016, 6_738_546_688),
        (LLEMMA_34B, 32000, 33_743_970_304),
    ],
)
def test_parameter_counts(model: ModelConfig, vocab_size: int, parameters: int) -> None:
    embedding, others = parameter_counts(model, vocab_size)
    assert embedding + others == parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_parameter_counts_of_families_equal_transformers(family: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"num_attention_heads": 8, "hidden_size": 96, "intermediate_size": 176}
    config = AutoConfig.for_model(
        family, num_hidden_layers=3, num_key_value_heads=2, head_dim=16, vocab_size=500, **sizes
    )
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config).num_parameters()
    keys: dict[str, Any] = {**sizes, **FAMILIES[family]}
    model = ModelConfig(
        num_layers=3,
        num_kv_heads=2,
        head_dim=16,
        seq_length=64,
        no_weight_tying=True,
        **keys,
    )
    assert sum(parameter_counts(model, 500)) == theirs


def test_flops_reproduce_the_published_utilisation() -> None:
    """Llemma 7B: 2,128 tokens/s on an A100 is 31.4% by 6 N + 12 L d s."""
    flops, causal = flops_per_token(LLEMMA_7B, 32016)
    peak = peak_flops("NVIDIA A100-SXM4-40GB")
    assert peak is not None
    assert round(100 * 2128 * flops / peak, 1) == 31.4
    assert causal < flops


def test_peaks_are_found_by_name() -> None:
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989e12
    for name in (
        "A card of tomorrow",
        "NVIDIA RTX A1000",
        "NVIDIA RTX A4000",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    ):
        assert peak_flops(name) is None, name
