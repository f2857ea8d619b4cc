# SPDX-License-Identifier: Apache-2.0
"""Llemma's runs: the shipped files hold the published values, and files as published load unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron.neox_arguments import RunConfig, check_world, load_config
from megatron.neox_arguments.spellings import NO_EFFECT

from .files import CONFIGS, PUBLISHED_7B, PUBLISHED_34B, PUBLISHED_DATA, load, written

# Azerbayev et al. 2023 and the Llemma branch's configurations: concern, key, 7B, 34B.
TABLE = [
    ("parallel", "model_parallel_size", 2, 8),
    ("parallel", "pipeline_size", 1, 1),
    ("model", "num_layers", 32, 48),
    ("model", "hidden_size", 4096, 8192),
    ("model", "num_attention_heads", 32, 64),
    ("model", "num_kv_heads", 32, 8),
    ("model", "intermediate_size", 11008, 22016),
    ("model", "make_vocab_size_divisible_by", 1, 1),
    ("model", "rotary_emb_base", 10000.0, 1000000.0),
    ("model", "seq_length", 4096, 4096),
    ("model", "max_position_embeddings", 4096, 4096),
    ("model", "norm", "rmsnorm", "rmsnorm"),
    ("model", "rms_norm_epsilon", 1e-5, 1e-5),
    ("model", "mlp_type", "llama", "llama"),
    ("model", "activation", "silu", "silu"),
    ("model", "no_weight_tying", True, True),
    ("model", "use_bias_in_norms", False, False),
    ("model", "use_bias_in_attn_linear", False, False),
    ("model", "hidden_dropout", 0.0, 0.0),
    ("model", "attention_dropout", 0.0, 0.0),
    ("model", "attention_backend", "auto", "auto"),
    ("optimizer", "optimizer_type", "adam", "adam"),
    ("optimizer", "lr", 1e-4, 5e-5),
    ("optimizer", "adam_beta1", 0.9, 0.9),
    ("optimizer", "adam_beta2", 0.95, 0.95),
    ("optimizer", "adam_eps", 1e-8, 1e-8),
    ("optimizer", "weight_decay", 0.1, 0.1),
    ("optimizer", "gradient_clipping", 1.0, 1.0),
    ("batch", "train_micro_batch_size_per_gpu", 4, 2),
    ("batch", "gradient_accumulation_steps", 2, 16),
    ("schedule", "train_iters", 48000, 12000),
    ("schedule", "lr_decay_iters", 48000, 12000),
    ("schedule", "warmup_iters", 500, 500),
    ("schedule", "lr_decay_style", "cosine", "cosine"),
    ("schedule", "decay_lr_to", 0.033, 0.033),
    ("checkpoint", "checkpoint_factor", 500, 250),
    ("checkpoint", "finetune", True, True),
    ("validation", "eval_interval", 250, None),
    ("validation", "eval_iters", 50, 25),
    ("precision", "precision", "bfloat16", "bfloat16"),
    ("precision", "grad_accum_dtype", "fp32", "fp32"),
    ("precision", "fp32_allreduce", True, True),
    ("parallel", "zero_stage", 1, 1),
    ("parallel", "recompute", "full", "full"),
    ("parallel", "checkpoint_num_layers", 1, 1),
    ("parallel", "overlap_grad_reduce", True, True),
    ("parallel", "overlap_param_gather", True, True),
    ("parallel", "sequence_parallel", True, True),
    ("parallel", "distributed_backend", "nccl", "nccl"),
    ("tokenizer", "tokenizer_type", "SPMTokenizer", "SPMTokenizer"),
    ("launch", "launcher", "slurm", "slurm"),
]


def _assert_table(cfg: RunConfig, column: int) -> None:
    for concern, name, *values in TABLE:
        expected = values[column] if values[column] is not None else 250  # eval_interval is 250 in both
        actual = getattr(getattr(cfg, concern), name)
        assert actual == expected, f"{name} is {actual}"
        assert type(actual) is type(expected), f"{name} is {actual!r}"


@pytest.mark.parametrize(
    ("name", "column", "vocabulary"), [("llemma_7b.yml", 0, 32016), ("llemma_34b.yml", 1, 32000)]
)
def test_shipped_files_hold_the_published_values(name: str, column: int, vocabulary: int) -> None:
    cfg, notices = load_config([CONFIGS / name, CONFIGS / "proof_pile_2.yml"], check_files=False)
    _assert_table(cfg, column)
    assert cfg.model.vocab_size == vocabulary
    assert notices == []  # nothing in them is set twice or without effect
    # The published one leaves a third of the 7B's gradients for after the backward pass.
    assert cfg.parallel.reduce_bucket_size is None


@pytest.mark.parametrize(("text", "column"), [(PUBLISHED_7B, 0), (PUBLISHED_34B, 1)])
def test_files_as_published_load_unchanged(tmp_path: Path, text: str, column: int) -> None:
    run, data = written(tmp_path, "run.yml", text), written(tmp_path, "data.yml", PUBLISHED_DATA)
    cfg, notices = load_config([run, data], check_files=False)
    _assert_table(cfg, column)
    assert cfg.parallel.reduce_bucket_size == 1_260_000_000
    assert cfg.tokenizer.vocab_file == Path("codellama/tokenizer.model")
    assert cfg.logging.use_wandb
    assert cfg.logging.wandb_host == "https://api.wandb.ai"
    without_effect = {key for key in NO_EFFECT if f'"{key.rpartition(".")[2]}":' in text} - {"fp16.type"}
    assert {notice.partition("=")[0] for notice in notices} == without_effect
    assert all("has no effect here: " in notice for notice in notices)


@pytest.mark.parametrize("name", ["llemma_7b.yml", "llemma_34b.yml"])
def test_a_step_on_256_gpus_is_four_million_tokens(name: str) -> None:
    cfg = load(CONFIGS / name)
    assert check_world(cfg, 256) == []
    shape = cfg.batch.batch_shape(256 // cfg.parallel.model_ranks)
    assert shape.global_ == 1024
    assert shape.global_ * cfg.model.seq_length == 4_194_304


def test_published_mixture(tmp_path: Path) -> None:
    data = load(CONFIGS / "llemma_7b.yml", written(tmp_path, "data.yml", PUBLISHED_DATA)).data
    assert list(data.train_data_weights) == [2, 4, 1, 0.147368, 0.221053]
    names = ["arxiv-rp", "open-web-math", "code-with-proofsteps", "pile-sample", "code-rp"]
    assert list(data.data_names) == names
    assert list(data.valid_data_names) == list(data.test_data_names) == names[:3]
    assert data.valid_data_paths[0] == Path("/v/arxiv-rp_text_document")


def test_shipped_mixture() -> None:
    data = load(CONFIGS / "llemma_7b.yml", CONFIGS / "proof_pile_2.yml").data
    weights = dict(zip(data.data_names, data.train_data_weights, strict=True))
    assert weights == {
        "arxiv": 2,
        "open-web-math": 4,
        "algebraic-stack": 1,
        "pile-sample": 0.147368,
        "redpajama-code": 0.221053,
    }
    total = sum(weights.values())
    assert weights["pile-sample"] / total == pytest.approx(0.02, abs=1e-5)
    assert weights["redpajama-code"] / total == pytest.approx(0.03, abs=1e-5)
    assert data.valid_data_names == data.test_data_names == data.data_names[:3]
    assert all("validation" in str(path) for path in data.valid_data_paths)
    assert all("/test/" in str(path) for path in data.test_data_paths)


@pytest.mark.parametrize("name", ["llemma_7b.yml", "llemma_34b.yml"])
def test_local_cpu_shrinks_both_runs(name: str) -> None:
    cfg = load(CONFIGS / name, CONFIGS / "proof_pile_2.yml", CONFIGS / "local_cpu.yml")
    assert check_world(cfg, 2) == []
    assert (cfg.launch.launcher, cfg.launch.cpu_ranks, cfg.checkpoint.load) == ("local", 2, None)
    assert cfg.precision.dtype_name == "float32"
