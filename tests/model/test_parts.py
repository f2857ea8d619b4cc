# SPDX-License-Identifier: Apache-2.0
"""Rotary tables, norms and attention against transformers, published figures and formulas."""

from __future__ import annotations

import math

import pytest
import torch

from megatron.model.attention import AttentionShape, choose_attention
from megatron.model.attention_kernels import Settings
from megatron.model.norms import NeoxRMSNorm, RMSNorm
from megatron.model.rotary import PeriodChange, inverse_frequencies
from megatron.neox_arguments.config import RotaryScaling
from megatron.neox_arguments.errors import UserError

SCALINGS = {
    "default": None,
    "linear": RotaryScaling(type="linear", factor=4.0),
    "llama3": RotaryScaling(
        type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
}


@pytest.mark.parametrize("rotary_base", [10_000.0, 100_000.0, 1_000_000.0])
@pytest.mark.parametrize("kind", SCALINGS)
def test_rotary_table_equals_transformers(kind: str, rotary_base: float) -> None:
    """Bit for bit: the table is computed once, so there is no reason for a tolerance."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    scaling = SCALINGS[kind]
    parameters = {"rope_type": kind, "rope_theta": rotary_base}
    if scaling is not None:
        parameters.update(scaling.model_dump(exclude={"type"}))
    config = LlamaConfig(
        hidden_size=512, num_attention_heads=4, rope_parameters=parameters, max_position_embeddings=16384
    )
    theirs = LlamaRotaryEmbedding(config).inv_freq
    ours = inverse_frequencies(128, rotary_base, scaling)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs)


def test_contraction_is_said_in_words() -> None:
    words = PeriodChange(1_000_000, 10_000).describe(128)
    assert words.startswith("rotary period contracted: base 1,000,000 in the checkpoint, 10,000 in this run")
    longest = 2 * math.pi * 10_000 ** (126 / 128)
    assert f"to {longest:,.0f} tokens" in words
    assert "extended" in PeriodChange(10_000, 500_000).describe(128)
    assert "as in the checkpoint" in PeriodChange(10_000, 10_000).describe(128)


class NormConfig:
    params_dtype = torch.float32
    sequence_parallel = True
    use_cpu_initialization = True


def test_rmsnorm_equals_transformers() -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    x_SBD = torch.randn(7, 3, 64) * 1e-3  # small, so that eps matters
    ours, theirs = RMSNorm(NormConfig(), 64, eps=1e-5), LlamaRMSNorm(64, eps=1e-5)
    ours.weight.data.uniform_(0.5, 2)
    theirs.weight.data.copy_(ours.weight.data)
    torch.testing.assert_close(ours(x_SBD), theirs(x_SBD), rtol=1e-6, atol=1e-6)
    assert getattr(ours.weight, "sequence_parallel") is True  # noqa: B009 (set on a Parameter)


def test_neox_rmsnorm_adds_eps_to_the_root() -> None:
    x_SBD = torch.randn(7, 3, 64, dtype=torch.float64).float() * 1e-3
    norm = NeoxRMSNorm(NormConfig(), 64, eps=1e-5)
    rms = x_SBD.double().pow(2).mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(norm(x_SBD).double(), x_SBD.double() / (rms + 1e-5), rtol=1e-6, atol=1e-6)
    llama = RMSNorm(NormConfig(), 64, eps=1e-5)
    assert (norm(x_SBD) - llama(x_SBD)).abs().max() > 0.1, "the two forms must differ on small inputs"


SHAPE = AttentionShape(tokens=9, sequences=2, heads=4, kv_heads=2, head_dim=16)


def test_attention_equals_the_formula() -> None:
    choice = choose_attention("auto", torch.device("cpu"), torch.float32, SHAPE)
    q_SBHD, k_TBKD, v_TBKD = torch.randn(9, 2, 4, 16), torch.randn(9, 2, 2, 16), torch.randn(9, 2, 2, 16)
    out_SBHD = choice.kernel(q_SBHD, k_TBKD, v_TBKD, Settings())
    for head in range(4):
        q_BSD, k_BTD, v_BTD = (
            x[:, :, h].transpose(0, 1) for x, h in ((q_SBHD, head), (k_TBKD, head // 2), (v_TBKD, head // 2))
        )
        scores_BST = q_BSD @ k_BTD.transpose(1, 2) / math.sqrt(16)
        scores_BST.masked_fill_(torch.ones(9, 9, dtype=torch.bool).triu(1), float("-inf"))
        expected_BSD = scores_BST.softmax(-1) @ v_BTD
        torch.testing.assert_close(out_SBHD[:, :, head].transpose(0, 1), expected_BSD, rtol=1e-5, atol=1e-6)


def test_a_kernel_that_cannot_run_is_refused_by_name() -> None:
    assert "no CUDA device" in choose_attention("auto", torch.device("cpu"), torch.float32, SHAPE).describe()
    with pytest.raises(UserError, match="attention_backend=cudnn: this run computes on the CPU"):
        choose_attention("cudnn", torch.device("cpu"), torch.float32, SHAPE)
    read_only = choose_attention("cudnn", torch.device("cpu"), torch.float32, SHAPE, is_trained=False)
    assert "only read" in read_only.describe(), "a model trained with it elsewhere can be read here"
