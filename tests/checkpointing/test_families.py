# SPDX-License-Identifier: Apache-2.0
"""config.json of every family: read as transformers reads it, refused with all that differs, written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron.checkpointing.huggingface import FAMILY_CONFIGS, config_of, model_keys
from megatron.checkpointing.record import CheckpointRecord
from megatron.neox_arguments.config import ModelConfig
from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.model import FAMILIES

SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "intermediate_size": 4096,
    "vocab_size": 1000,
}


def test_every_family_says_how_its_config_is_written() -> None:
    assert FAMILY_CONFIGS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_file_is_silent_about_is_what_transformers_takes(family: str) -> None:
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(family, **SIZES)
    window = {"sliding_window": None} if family == "mistral" else {}  # silent means a window: see below
    keys = model_keys({"model_type": family, **SIZES, **window})
    assert keys["num_kv_heads"] == theirs.num_key_value_heads
    assert keys["head_dim"] == (getattr(theirs, "head_dim", None) or 2048 // 32)
    assert keys["max_position_embeddings"] == theirs.max_position_embeddings
    assert keys["rms_norm_epsilon"] == theirs.rms_norm_eps
    assert keys["no_weight_tying"] is not theirs.tie_word_embeddings
    assert keys["rotary_emb_base"] == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("mistral", {}, "sliding_window=4096: is under max_position_embeddings=131072"),
        (
            "mistral",
            {"sliding_window": 1024, "max_position_embeddings": 1025},
            "sliding_window=1024: is under",
        ),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window=true: false is"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window=true: false is"),
        ("qwen3", {"attention_bias": True}, "attention_bias=true: false is"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types=sliding_attention"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act=gelu: silu is"),
        ("olmo2", {"attention_bias": True}, "attention_bias=true: false is"),
        ("llama", {"mlp_bias": True}, "mlp_bias=true: false is"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config="),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type=yarn"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope_parameters.factor: is missing"),
        ("llama", {"hidden_size": None}, "hidden_size: is missing"),
        ("phi3", {}, "model_type=phi3: only llama, mistral, qwen2, qwen3, olmo2 are converted"),
    ],
)
def test_what_is_not_carried_is_refused_by_name(family: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        model_keys({"model_type": family, **SIZES, **changes})


def test_all_differences_are_told_at_once() -> None:
    config = {
        **SIZES,
        "model_type": "gemma3_text",
        "hidden_act": "gelu_pytorch_tanh",
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 512,
        "rope_scaling": {"rope_type": "yarn"},
    }
    with pytest.raises(UserError) as raised:
        model_keys(config)
    lines = str(raised.value).splitlines()
    starts = [
        "model_type=",
        "hidden_act=",
        "layer_types=",
        "sliding_window=",
        "rope_type=",
    ]
    assert [
        line.removeprefix("config.json: ")[: len(start)] for line, start in zip(lines, starts, strict=True)
    ] == starts


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {"sliding_window": 131072}),
        ("mistral", {"sliding_window": 4096, "max_position_embeddings": 4096}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 1024}),
        ("qwen3", {"sliding_window": 1024}),
    ],
)
def test_a_window_that_hides_nothing_is_accepted(family: str, changes: dict[str, Any]) -> None:
    assert model_keys({"model_type": family, **SIZES, **changes})["num_layers"] == 2


def record_of(model: ModelConfig) -> CheckpointRecord:
    return CheckpointRecord(
        iteration=1,
        sequences_seen=1,
        tokens_seen=1,
        model=model.model_dump(mode="json"),
        vocab_size=1000,
        padded_vocab_size=1024,
        tokenizer_fingerprint="",
        dtype="bfloat16",
        layout={},
        has_optimizer=False,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_from_scratch_is_written_as_its_family(family: str) -> None:
    """Without a base model's file, or beside that of another family, whose keys must not stay."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model = ModelConfig(
        num_layers=2, hidden_size=64, num_attention_heads=4, seq_length=32, **FAMILIES[family]
    )
    expected = "llama" if family == "mistral" else family
    others = {
        "model_type": "mistral" if expected != "llama" else "qwen2",
        "eos_token_id": 7,
        "use_magic": True,
    }
    for base in ({}, others):
        config = config_of(record_of(model), base)
        assert config["model_type"] == expected
        assert config["architectures"] == [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[expected]]
        assert config.get("eos_token_id") == base.get("eos_token_id")
        assert "use_magic" not in config
        assert AutoConfig.for_model(**config).num_hidden_layers == 2


def test_the_base_model_says_which_of_two_equal_families_it_is() -> None:
    model = ModelConfig(num_layers=2, hidden_size=64, num_attention_heads=4, seq_length=8192)
    base = {"model_type": "mistral", "sliding_window": 4096, "architectures": ["Other"], "use_magic": True}
    config = config_of(record_of(model), base)
    assert config["model_type"] == "mistral"
    assert config["architectures"] == ["MistralForCausalLM"]
    assert config["sliding_window"] is None, (
        "every token sees all before it, whatever the base model's window"
    )
    assert config["use_magic"] is True


def test_a_checkpoint_from_before_the_families_is_a_llama() -> None:
    model = ModelConfig(num_layers=2, hidden_size=64, num_attention_heads=4, seq_length=32)
    record = record_of(model)
    for features in FAMILIES.values():
        for key in features:
            record.model.pop(key, None)
    assert config_of(record, {})["model_type"] == "llama"
    qwen = model.model_copy(update={"use_qkv_bias": True})
    with pytest.raises(UserError, match="use_qkv_bias=true: the checkpoint .* has false"):
        record.refuse_other_shape(Path("save"), qwen, 1000)
    record.refuse_other_shape(Path("save"), model, 1000)
