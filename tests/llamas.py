# SPDX-License-Identifier: Apache-2.0
"""Small models for tests: as a run configuration, and as a Hugging Face folder with a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron.neox_arguments.config import RunConfig

SMALL: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 176,
    "vocab_size": 512,
    "make_vocab_size_divisible_by": 1,
    "seq_length": 64,
    "no_weight_tying": True,
    "rotary_emb_base": 10000.0,
}


def run_config(**changes: Any) -> RunConfig:
    """A RunConfig from flat keys over SMALL; `concern={...}` changes others, as parallel={...}."""
    concerns: dict[str, dict[str, Any]] = {
        "parallel": {},
        "precision": {"precision": "fp32"},
        "batch": {"train_micro_batch_size_per_gpu": 2, "train_batch_size": 8},
        "optimizer": {"lr": 1e-3, "adam_beta2": 0.95, "weight_decay": 0.1},
        "schedule": {"train_iters": 40, "lr_decay_style": "constant"},
    }
    for name in list(changes):
        if name in RunConfig.model_fields and name != "model":
            concerns[name] = {**concerns.get(name, {}), **changes.pop(name)}
    return RunConfig.model_validate({"model": {**SMALL, **changes}, **concerns})


# What the configuration classes of transformers would otherwise take from the large models of the family.
SMALL_HF: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": None}, "qwen3": {"head_dim": 32}}


def save_hf_llama(
    folder: Path, seed: int = 0, dtype: str = "float32", family: str = "llama", **changes: Any
) -> Path:
    """A random Hugging Face model with a word-level tokenizer of its vocabulary size, in `folder`.

    `family` is its `model_type`.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    keys: dict[str, Any] = {
        "num_hidden_layers": 3,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 176,
        "vocab_size": 256,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": False,
        "eos_token_id": 0,
        "bos_token_id": None,
        "initializer_range": 0.05,
        **SMALL_HF.get(family, {}),
        **changes,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **keys)).to(getattr(torch, dtype))
    for name, parameter in model.named_parameters():  # norms of one would hide a mixed-up row
        if name.endswith("norm.weight"):
            parameter.data.uniform_(0.5, 1.5)
        elif name.endswith(".bias"):  # and so would biases of zero
            parameter.data.uniform_(-0.5, 0.5)
    model.save_pretrained(folder)
    words = {"<eod>": 0, "<unk>": 1} | {f"w{n}": n for n in range(2, keys["vocab_size"])}
    words_only = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    words_only.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words_only, eos_token="<eod>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder
