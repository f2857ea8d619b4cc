# SPDX-License-Identifier: Apache-2.0
"""Rules between keys, and between a run and the number of its ranks: each broken once."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron.neox_arguments import check_world

from .files import load, only_problem, problems, small

GOOD = {"num_attention_heads": "8", "num_kv_heads": "4", "num_layers": "4", "model_parallel_size": "2"}


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"hidden_size": "60"}, "hidden_size", "not divisible by num_attention_heads=8"),
        ({"head_dim": "7"}, "head_dim", "odd"),
        ({"num_kv_heads": "6"}, "num_attention_heads", "use num_kv_heads 1, 2, 4 or 8"),
        ({"num_kv_heads": "1"}, "num_kv_heads", "not divisible by model_parallel_size=2"),
        (
            {"model_parallel_size": "8"},
            "num_kv_heads",
            "not divisible by model_parallel_size=8; use model_parallel_size 1, 2 or 4",
        ),
        ({"intermediate_size": "129"}, "intermediate_size", "model_parallel_size=2"),
        ({"seq_length": "33"}, "seq_length", "sequence_parallel: false"),
        ({"sequence_parallel": "true", "model_parallel_size": "1"}, "sequence_parallel", "leave it out"),
        ({"max_position_embeddings": "16"}, "seq_length", "max_position_embeddings=16"),
        ({"pipe_parallel_size": "3"}, "num_layers", "use pipe_parallel_size 1, 2 or 4"),
        ({"attention_type": "multihead"}, "attention_type", "num_kv_heads=8"),
        (
            {"use_qkv_bias": "true", "qk_norm": "head"},
            "use_qkv_bias",
            "with qk_norm=head and norm_position=before is a network of no family",
        ),
        (
            {"qk_norm": "projection"},
            "qk_norm",
            "leave all three out, or have use_qkv_bias: true (qwen2); or qk_norm: head (qwen3); or",
        ),
        ({"norm_position": "after"}, "norm_position", "with use_qkv_bias=false and qk_norm=none"),
        ({"attention_type": "multiquery"}, "attention_type", "means num_kv_heads=1"),
        (
            {"attention_type": "groupedquery", "num_kv_heads": "8"},
            "attention_type",
            "under num_attention_heads",
        ),
        (
            {"rotary_scaling": "{type: linear, factor: 2, low_freq_factor: 1}"},
            "rotary_scaling.low_freq_factor",
            "",
        ),
        (
            {"rotary_scaling": "{type: llama3, factor: 2, low_freq_factor: 4}"},
            "rotary_scaling.low_freq_factor",
            "",
        ),
        ({"checkpoint_num_layers": "2"}, "checkpoint_num_layers", "recompute: full"),
        ({"checkpoint_num_layers": "5", "recompute": "full"}, "checkpoint_num_layers", "at most 4"),
        (
            {"overlap_param_gather": "true", "overlap_grad_reduce": "false"},
            "overlap_param_gather",
            "overlap_grad_reduce",
        ),
        ({"recompute_num_layers": "2", "recompute": "full"}, "recompute_num_layers", "set recompute_method"),
        ({"recompute_method": "block", "recompute": "full"}, "recompute_method", "to 4 at most"),
        ({"recompute_method": "block", "recompute_num_layers": "2"}, "recompute_method", "recompute: full"),
        (
            {"recompute": "full", "recompute_method": "block", "recompute_num_layers": "5"},
            "recompute_num_layers",
            "at most 4",
        ),
        ({"recompute_modules": "[layernorm]"}, "recompute_modules", "recompute: selective"),
        ({"recompute": "auto", "recompute_modules": "[mlp]"}, "recompute_modules", "recompute: selective"),
        ({"recompute": "selective", "recompute_modules": "[mlp, mlp_act]"}, "recompute_modules", "keep mlp"),
        ({"exp_avg_dtype": "bf16", "zero_stage": "0"}, "exp_avg_dtype", "zero_stage: 1"),
        ({"store_param_remainders": "true", "precision": "fp32"}, "store_param_remainders", "no copy"),
        (
            {"overlap_param_gather": "true", "overlap_grad_reduce": "true", "zero_stage": "0"},
            "overlap_param_gather",
            "zero_stage",
        ),
        ({"cpu_ranks": "2", "distributed_backend": "nccl"}, "distributed_backend", "gloo"),
        ({"precision": "fp32", "grad_accum_dtype": "bf16"}, "grad_accum_dtype", "use fp32"),
        ({"fp32_allreduce": "false"}, "fp32_allreduce", "grad_accum_dtype=fp32"),
        ({"precision": "fp32", "bf16": "{enabled: true}"}, "bf16.enabled", "contradicts precision=fp32"),
        ({"train_micro_batch_size_per_gpu": None}, "train_micro_batch_size_per_gpu", "train_batch_size"),
        ({"train_batch_size": "5"}, "train_batch_size", "train_micro_batch_size_per_gpu=2"),
        ({"warmup": "0.1", "warmup_iters": "5"}, "warmup_iters", "10 steps"),
        ({"warmup_iters": "101"}, "warmup_iters", "lr_decay_iters=100"),
        ({"lr_decay_style": "wsd", "wsd_decay_iters": "101"}, "wsd_decay_iters", "at most 100"),
        ({"wsd_decay_iters": "20"}, "wsd_decay_iters", "lr_decay_style: wsd"),
        ({"min_lr": "1e-4", "decay_lr_to": "0.5"}, "min_lr", "0.0005"),
        ({"min_lr": "0", "decay_lr_to": "0.5"}, "min_lr", "0.0005"),
        ({"min_lr": "1"}, "min_lr", "more than lr=0.001"),
        ({"data_path": "x", "train_data_paths": "[y]"}, "data_path", "train_data_paths"),
        ({"split": "90,5,5"}, "split", "data_path"),
        ({"data_path": "x", "split": "a,b"}, "split", "969,30,1"),
        ({"train_data_paths": "[x, y]", "train_data_weights": "[1]"}, "train_data_weights", "has 1 entries"),
        ({"train_data_paths": "[x, y]", "train_data_weights": "[0, 0]"}, "train_data_weights", "all 0"),
        ({"train_data_paths": "[x, y]", "data_names": "[a, a]"}, "data_names", "two sources"),
        ({"valid_data_paths": "[x]", "valid_data_names": "[a, b]"}, "valid_data_names", "has 2 entries"),
        ({"checkpoint_factor": "5"}, "checkpoint_factor", "save"),
        ({"finetune": "true"}, "finetune", "load"),
        ({"iteration": "0"}, "iteration", "load"),
        ({"s3_path": "s3://bucket/run"}, "s3_path", "save"),
        ({"s3_path": "bucket/run", "save": "out"}, "s3_path", "must be a URL, such as s3://bucket/folder"),
        ({"s3_path": "s3://me:word@bucket/run", "save": "out"}, "s3_path", "give it in the environment"),
        ({"upload_wait_minutes": "5"}, "upload_wait_minutes", "s3_path"),
        ({"load": "s3://bucket/run"}, "load", "set save to a folder"),
        ({"load": "[s3://bucket/run]"}, "load", "must be a path"),
        ({"wandb_host": "api.wandb.ai"}, "wandb_host", "https://"),
        ({"profile": "true"}, "profile", "set log_dir, or save"),
        ({"profile_step_start": "12"}, "profile_step_stop", "use 14"),
        ({"profile": "true", "save": "out", "profile_ranks": "[]"}, "profile_ranks", "[0]"),
        ({"launcher": "pdsh", "include": "n0", "exclude": "n1"}, "exclude", "include"),
        ({"launcher": "local", "include": "n0"}, "include", "launcher=local"),
        ({"launcher": "slurm", "hostfile": "h"}, "hostfile", "SLURM"),
        ({"num_nodes": "2", "cpu_ranks": "3"}, "cpu_ranks", "num_nodes=2"),
        ({"environment": "{1X: a}"}, "environment", "name of a variable"),
        ({"slurm_options": "[exclusive]"}, "slurm_options", "option of sbatch"),
        ({"slurm_container_mounts": "[/data]"}, "slurm_container_mounts", "slurm_container"),
    ],
)
def test_each_rule_broken_once(tmp_path: Path, changes: dict[str, str | None], key: str, said: str) -> None:
    assert problems(small(tmp_path, **GOOD)) == []
    problem = only_problem(small(tmp_path, **{**GOOD, **changes}))
    assert problem.key == key
    assert said in str(problem)


def test_a_wrong_value_is_not_also_a_broken_rule(tmp_path: Path) -> None:
    changes = {**GOOD, "num_attention_heads": "many", "model_parallel_size": "8"}
    assert {problem.key for problem in problems(small(tmp_path, **changes))} == {"num_attention_heads"}


@pytest.mark.parametrize(("world_size", "fits"), [(0, False), (1, False), (2, True), (3, False), (4, True)])
def test_the_cut_must_divide_the_ranks(tmp_path: Path, world_size: int, fits: bool) -> None:
    found = check_world(load(small(tmp_path, **GOOD)), world_size)
    assert [problem.key for problem in found] == ([] if fits else ["model_parallel_size"])


def test_the_batch_must_fit_the_ranks(tmp_path: Path) -> None:
    cfg = load(small(tmp_path, **GOOD, train_batch_size="8"))
    assert check_world(cfg, 8) == []
    (problem,) = check_world(cfg, 6)
    assert problem.key == "train_batch_size"
    assert "3 data parallel ranks" in problem.constraint
    assert problem.remedy == "use 6 or 12"


def test_a_trace_is_of_ranks_that_there_are(tmp_path: Path) -> None:
    keys = {**GOOD, "profile": "true", "save": "out", "profile_ranks": "[0, 3]"}
    assert check_world(load(small(tmp_path, **keys)), 4) == []
    (problem,) = check_world(load(small(tmp_path, **keys)), 2)
    assert (problem.key, problem.value, problem.remedy) == ("profile_ranks", 3, "use 0 to 1")


def test_only_the_cut_and_the_batch_concern_the_ranks(tmp_path: Path) -> None:
    cfg = load(small(tmp_path, **GOOD))
    short = cfg.model.model_copy(update={"max_position_embeddings": 1})
    assert check_world(cfg.model_copy(update={"model": short}), 2) == []


def test_a_cut_that_does_not_fit_is_found_without_files(tmp_path: Path) -> None:
    cfg = load(small(tmp_path, **GOOD))
    broken = cfg.model_copy(update={"parallel": cfg.parallel.model_copy(update={"pipe_parallel_size": 3})})
    assert "num_layers" in {problem.key for problem in check_world(broken, 6)}
