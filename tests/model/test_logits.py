# SPDX-License-Identifier: Apache-2.0
"""The function a model computes here is the one transformers computes, for every family and TP size.

The loss is compared too: padding of the vocabulary must not have any probability. Measured on random Llamas
in float32: at most 1.2e-6 at TP 1 and 1.5e-6 above.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.llamas import run_config, save_hf_llama
from tests.ranks import run_ranks

# Wide enough that an error of layout is of the size of the logits, small enough for a second a case.
CASES: dict[str, dict[str, Any]] = {
    "mha": {"num_key_value_heads": 4},
    "gqa": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "odd heads": {
        "hidden_size": 72,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 192,
    },
    "linear scaling": {
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    },
    "llama 3 scaling": {
        "num_key_value_heads": 4,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "padded vocabulary": {"num_key_value_heads": 4, "vocab_size": 250},
    "mistral": {"family": "mistral", "num_key_value_heads": 4, "head_dim": 32},
    "qwen 2.5": {"family": "qwen2", "num_attention_heads": 8, "num_key_value_heads": 4},
    "qwen 2.5, tied, one KV head": {
        "family": "qwen2",
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
    "qwen 3": {"family": "qwen3", "num_attention_heads": 8, "num_key_value_heads": 4},
    "qwen 3, tied, one KV head": {"family": "qwen3", "num_key_value_heads": 1, "tie_word_embeddings": True},
    "olmo 2": {"family": "olmo2", "num_attention_heads": 8, "num_key_value_heads": 4},
    "olmo 2, mha": {"family": "olmo2", "num_key_value_heads": 4},
}
CASES["llama 3.2"] = {**CASES["llama 3 scaling"], "tie_word_embeddings": True}
AT_TP = {1: set(CASES), 2: set(CASES) - {"odd heads"}, 3: {"odd heads"}, 4: set(CASES) - {"odd heads"}}
TOLERANCE = {1: 1e-5, 2: 5e-5, 3: 5e-5, 4: 5e-5}
TOKENS = np.random.default_rng(0).integers(0, 250, (2, 48))


def native_outputs(
    folders: list[Path], tensor_parallel_size: int
) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Called on every rank: each checkpoint's logits [B, S, V] and losses [B, S] for TOKENS, on rank 0."""
    import torch

    from megatron.backend import initialize
    from megatron.checkpointing.record import CheckpointRecord
    from megatron.checkpointing.state import load_weights
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
    from megatron.model import build
    from megatron.neox_arguments.config import ParallelConfig
    from megatron.tokenizer import pad_vocab
    from megatron.trainer.setup import wrap

    backend = initialize(ParallelConfig(model_parallel_size=tensor_parallel_size), seed=1)
    results = []
    for folder in folders:
        record = CheckpointRecord.read(folder)
        cfg = run_config(
            **{**record.model, "seq_length": 48}, parallel={"model_parallel_size": tensor_parallel_size}
        )
        padded = pad_vocab(record.vocab_size, 4, tensor_parallel_size)
        trainable = wrap(cfg, build(cfg, backend, record.vocab_size, padded, initialize=False))
        load_weights(folder, trainable.model.module)
        tokens_BS = torch.tensor(TOKENS)
        positions_BS = torch.arange(tokens_BS.size(1)).expand_as(tokens_BS)
        with torch.no_grad():
            loss_BS = trainable.model(tokens_BS, positions_BS, None, labels=tokens_BS.roll(-1, 1))
            logits_BSV = trainable.model(tokens_BS, positions_BS, None)
            logits_BSV = gather_from_tensor_model_parallel_region(logits_BSV)
        results.append((logits_BSV[..., : record.vocab_size].float().numpy(), loss_BS.float().numpy()))
    return results if backend.is_main else None


def transformers_logits(folder: Path) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor(TOKENS)).logits.numpy()
    return logits


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Each case as a Hugging Face folder and as a checkpoint here."""
    from megatron.checkpointing.convert import hf_to_neox

    folder = tmp_path_factory.mktemp("llamas")
    pairs = {}
    for seed, (name, changes) in enumerate(CASES.items()):
        hf = save_hf_llama(folder / f"{name} hf", seed=seed, **changes)
        hf_to_neox(hf, folder / name, 1)
        pairs[name] = (hf, folder / name / "global_step0")
    return pairs


@pytest.mark.parametrize("tensor_parallel_size", AT_TP)
def test_logits_equal_transformers(
    converted: dict[str, tuple[Path, Path]], tensor_parallel_size: int
) -> None:
    names = sorted(AT_TP[tensor_parallel_size])
    folders = [converted[name][1] for name in names]
    ours = run_ranks(native_outputs, tensor_parallel_size, folders, tensor_parallel_size)[0]
    differences = {}
    for name, (logits, losses) in zip(names, ours, strict=True):
        theirs = transformers_logits(converted[name][0])
        assert np.abs(theirs).max() > 0.5, "logits too small to tell layouts apart"
        log_normaliser = np.log(np.exp(theirs.astype(np.float64)).sum(-1))
        chosen = np.take_along_axis(theirs, np.roll(TOKENS, -1, 1)[..., None], -1)[..., 0]
        gaps = (np.abs(logits - theirs).max(), np.abs(losses - (log_normaliser - chosen)).max())
        differences[name] = float(max(gaps))
    print(f"TP {tensor_parallel_size}: {differences}")
    assert max(differences.values()) <= TOLERANCE[tensor_parallel_size], differences


def test_another_rotary_base_is_another_function(converted: dict[str, tuple[Path, Path]]) -> None:
    """Guards the test above: contracting the period must show in the logits, far above its tolerance."""
    import json

    hf, _ = converted["mha"]
    before = transformers_logits(hf)
    contracted = hf.with_name("contracted")
    contracted.mkdir()
    for file in hf.iterdir():
        (contracted / file.name).write_bytes(file.read_bytes())
    config = json.loads((contracted / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 10000.0
    (contracted / "config.json").write_text(json.dumps(config))
    assert np.abs(transformers_logits(contracted) - before).max() > 1e-3
