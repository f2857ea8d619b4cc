# SPDX-License-Identifier: Apache-2.0
"""Merging, spellings, blocks and refusals: what a user writes, and what the run then holds or is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron.neox_arguments import ConfigError, load_config
from megatron.neox_arguments.config import fields
from megatron.neox_arguments.spellings import NO_EFFECT, TRANSLATIONS, canonical

from .files import load, only_problem, problems, small, written


def test_every_key_has_one_home() -> None:
    names = [name for _, name, _ in fields()]
    assert len(names) == len(set(names))
    assert not set(NO_EFFECT) & (set(canonical()) | set(TRANSLATIONS))
    assert all(info.description and info.description.endswith(".") for _, _, info in fields())
    assert all(row.reason and row.remedy for row in NO_EFFECT.values())


def test_later_files_win_and_differences_are_reported(tmp_path: Path) -> None:
    first = small(tmp_path)
    second = written(tmp_path, "second.yml", "\nseq-length: 64\nhidden_size: 64\n")
    cfg, notices = load_config([first, second], ["seq_length=16"], check_files=False)
    assert cfg.model.seq_length == 16
    assert notices == [
        f"seq_length is set more than once: 32 ({first}:4), then 64 ({second}:2), then 16 (--set); 16 is used"
    ]


def test_a_key_of_another_shape_is_named_where_it_was_overridden(tmp_path: Path) -> None:
    first = small(tmp_path, deepspeed_slurm="true")
    _, notices = load_config([first], ["launcher=pdsh"], check_files=False)
    assert len(notices) == 1
    assert "launcher is set more than once: deepspeed_slurm=true (" in notices[0]
    assert notices[0].endswith("then pdsh (--set); pdsh is used")


def test_a_colon_without_slots_is_explained(tmp_path: Path) -> None:
    found = only_problem(small(tmp_path), set_=["include=n0:"])
    assert found.constraint == "has no slots after the colon"
    assert found.remedy == "write for instance n0:0,2, or n0 for all its slots"


def test_a_later_number_of_layers_needs_no_new_attention_config(tmp_path: Path) -> None:
    path = small(tmp_path, attention_config='[[["flash"], 2]]')
    assert load(path, set_=["num_layers=3"]).model.num_layers == 3


def test_order_decides(tmp_path: Path) -> None:
    first, second = small(tmp_path), written(tmp_path, "second.yml", "seq_length: 64")
    assert load(first, second).model.seq_length == 64
    assert load(second, first).model.seq_length == 32


def test_null_takes_an_earlier_value_back(tmp_path: Path) -> None:
    first = small(tmp_path, seed="5", intermediate_size="300")
    second = written(tmp_path, "second.yml", "{seed: null, intermediate_size: null}")
    cfg = load(first, second)
    assert (cfg.data.seed, cfg.model.intermediate_size) == (1234, 256)
    assert only_problem(first, written(tmp_path, "third.yml", "lr: null")).key == "lr"


def test_a_name_without_ending_is_looked_up_in_the_directory(tmp_path: Path) -> None:
    small(tmp_path)
    cfg, _ = load_config([Path("small")], directory=tmp_path, check_files=False)
    assert cfg.model.num_layers == 2


def test_a_missing_file_names_its_neighbour_and_hides_nothing_else(tmp_path: Path) -> None:
    small(tmp_path)
    other = written(tmp_path, "other.yml", "hiden_size: 3\n")
    found = problems(tmp_path / "smal.yml", other)
    assert [problem.key for problem in found] == [str(tmp_path / "smal.yml"), "hiden_size"]
    assert str(tmp_path / "small.yml") in found[0].remedy


def test_what_an_unread_file_may_hold_is_not_called_missing(tmp_path: Path) -> None:
    found = problems(tmp_path / "missing.yml", small(tmp_path, num_layers=None), check_files=True)
    assert [problem.key for problem in found] == [str(tmp_path / "missing.yml")]


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}"])
def test_an_empty_file_adds_nothing(tmp_path: Path, text: str) -> None:
    assert load(small(tmp_path), written(tmp_path, "empty.yml", text)) == load(small(tmp_path))


def test_a_repeated_key_in_one_file(tmp_path: Path) -> None:
    path = written(tmp_path, "twice.yml", small(tmp_path).read_text() + "seq-length: 32\n")
    problem = only_problem(path)
    assert (problem.key, problem.where) == ("seq_length", f"{path}:8")
    assert f"first at {path}:4" in problem.constraint


def test_a_repeated_key_in_a_block(tmp_path: Path) -> None:
    path = small(tmp_path, optimizer="{params: {eps: 1e-8, eps: 1e-6}}")
    assert only_problem(path).key == "optimizer.params.eps"


def test_two_spellings_in_one_file_must_agree(tmp_path: Path) -> None:
    assert load(small(tmp_path, optimizer="{params: {lr: 0.001}}")).optimizer.lr == 1e-3
    problem = only_problem(small(tmp_path, optimizer="{params: {lr: 0.002}}"))
    assert problem.key == "optimizer.params.lr"
    assert "lr=0.001 in the same file" in problem.constraint


@pytest.mark.parametrize(
    ("written_as", "concern", "name", "value"),
    [
        ("train-iters: 7", "schedule", "train_iters", 7),
        ("micro_batch_size: 3", "batch", "train_micro_batch_size_per_gpu", 3),
        ("save_interval: 3\nsave: x", "checkpoint", "checkpoint_factor", 3),
        ("rotary-base: 500000", "model", "rotary_emb_base", 500000.0),
        ("ffn_hidden_size: 96", "model", "intermediate_size", 96),
        ("init_method_std: 0.01", "model", "init_std", 0.01),
        ("clip_grad: 0.5", "optimizer", "gradient_clipping", 0.5),
        ("zero_optimization: {reduce_bucket_size: 5e8}", "parallel", "reduce_bucket_size", 500_000_000),
        ("zero-optimization: {stage: 0}", "parallel", "zero_stage", 0),
        ("zero_optimization: {overlap_comm: true}", "parallel", "overlap_param_gather", True),
        ("zero_optimization: {overlap_comm: true}", "parallel", "overlap_grad_reduce", True),
        ("te_columnparallel: true", "acceleration", "transformer_impl", "transformer_engine"),
        ("te_rowparallel: false", "acceleration", "transformer_impl", "local"),
        ("optimizer: {type: AdamW}", "optimizer", "optimizer_type", "adamw"),
        ("optimizer: {params: {betas: [0.8, 0.9]}}", "optimizer", "adam_beta1", 0.8),
        ("optimizer: {params: {betas: [0.8, 0.9]}}", "optimizer", "adam_beta2", 0.9),
        ("optimizer: {params: {weight-decay: 0.3}}", "optimizer", "weight_decay", 0.3),
        ("checkpoint_activations: true", "parallel", "recompute", "full"),
        ("checkpoint_activations: false", "parallel", "recompute", "none"),
        ("checkpoint_activations: selective", "parallel", "recompute", "selective"),
        ("bf16: {enabled: true}", "precision", "dtype_name", "bfloat16"),
        ("bf16: {enabled: false}", "precision", "dtype_name", "float32"),
        ("precision: bf16", "precision", "dtype_name", "bfloat16"),
        ("precision: float32", "precision", "dtype_name", "float32"),
        ("fp16: {enabled: false, loss_scale: 0}", "precision", "dtype_name", "bfloat16"),
        ("data_types: {grad_accum_dtype: bf16}", "precision", "fp32_allreduce", False),
        ("deepspeed_slurm: true", "launch", "launcher", "slurm"),
        ("deepspeed_slurm: false", "launch", "launcher", "auto"),
        ('attention_config: [[["global"], "all"]]', "model", "attention_backend", "auto"),
        ('attention_config: [[["flash", "global"], 1]]', "model", "attention_backend", "auto"),
        ("attention_type: multiquery", "model", "num_kv_heads", 1),
        ("warmup: 0.05", "schedule", "warmup_iters", 5),
        ("decay_lr_to: 0.25", "schedule", "min_lr", 0.00025),
        ("pipe_parallel_size: 1", "parallel", "pipeline_size", 1),
    ],
)
def test_spellings(tmp_path: Path, written_as: str, concern: str, name: str, value: Any) -> None:
    kept = {"train_iters": None} if "train-iters" in written_as else {}
    kept |= {"train_micro_batch_size_per_gpu": None} if "micro_batch" in written_as else {}
    cfg = load(small(tmp_path, **kept), written(tmp_path, "more.yml", written_as))
    assert getattr(getattr(cfg, concern), name) == value


@pytest.mark.parametrize(
    ("line", "key", "said"),
    [
        ("num_layer: 2", "num_layer", "did you mean num_layers?"),
        ("rope_theta: 1e6", "rope_theta", "did you mean rotary_emb_base?"),
        ("learning_rate: 1e-4", "learning_rate", "did you mean lr?"),
        ("allgather_bucket_size: 3", "allgather_bucket_size", "zero_optimization.allgather_bucket_size"),
        ("optimizer: {params: {betaz: [0.9, 0.9]}}", "optimizer.params.betaz", "optimizer.params.betas"),
        ("zzqqjj: 1", "zzqqjj", "remove it"),
        ("optimizer: Adam", "optimizer", "optimizer: {params: …}"),
        ("optimizer: {params: 3}", "optimizer.params", "must hold keys of its own"),
        ("zero_optimization: {stage: 2}", "zero_optimization.stage", "ZeRO stage 2"),
        ("zero_optimization: {stage: 3}", "zero_optimization.stage", "ZeRO stage 3"),
        ("zero_stage: 3", "zero_stage", "must be 0 or 1"),
        ("zero_optimization: {cpu_offload: true}", "zero_optimization.cpu_offload", "recompute: full"),
        ("zero_optimization: {reduce_scatter: false}", "zero_optimization.reduce_scatter", "only true"),
        ("fp16: {enabled: true}", "fp16.enabled", "use precision: bfloat16"),
        ("precision: fp16", "precision", "use precision: bfloat16"),
        ("gpt_j_residual: true", "gpt_j_residual", "must be false"),
        ("bias_gelu_fusion: true", "bias_gelu_fusion", "silu"),
        ("rotary_pct: 0.25", "rotary_pct", "at least 1"),
        ("pos_emb: alibi", "pos_emb", "'rotary'"),
        ("activation: gelu", "activation", "'silu'"),
        ("norm: layernorm", "norm", "'rmsnorm'"),
        ('attention_config: [[["local"], 2]]', "attention_config", "local is not built"),
        ('attention_config: [[["flash"], 3]]', "attention_config", "names 3 layers, and num_layers=2"),
        ("attention_config: flash", "attention_config", "must be a list"),
        ("optimizer: {type: OneBitAdam}", "optimizer.type", "'adam' or 'adamw'"),
        ("optimizer: {params: {betas: 0.9}}", "optimizer.params.betas", "list of two"),
        ("tokenizer_type: GPT2BPETokenizer", "tokenizer_type", "'SPMTokenizer'"),
        ("launcher: mvapich", "launcher", "'local'"),
        ("partition_activations: 1", "partition_activations", "only true or false"),
        ('seed: "7"', "seed", "remove the quotes"),
        ("seed: true", "seed", "whole number"),
        ("seed: 1.5", "seed", "whole number"),
        ("seed: 010", "seed", "whole number"),
        ("eval_interval: 0", "eval_interval", "more than 0"),
        ("weight_decay: .inf", "weight_decay", "finite"),
        ("finetune: 1", "finetune", "true or false"),
        ("vocab_file: 3", "vocab_file", "path"),
        ("train_data_paths: x", "train_data_paths", "list"),
        ("train_data_weights: [1, two]", "train_data_weights[1]", "number"),
        ("rotary_scaling: {type: yarn, factor: 2}", "rotary_scaling.type", "'linear' or 'llama3'"),
        ("rotary_scaling: {type: linear}", "rotary_scaling.factor", "is not set"),
        ("rotary_scaling: {type: linear, factor: 2, fcator: 3}", "rotary_scaling.fcator", "not a known"),
        ("wandb_project: [1]", "wandb_project", "text"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, line: str, key: str, said: str) -> None:
    path = written(tmp_path, "more.yml", f"# a comment\n{line}\n")
    problem = only_problem(small(tmp_path), path)
    assert problem.key == key
    assert said in str(problem)
    assert problem.remedy
    assert problem.where == f"{path}:2"


@pytest.mark.parametrize("key", ["num_layers", "hidden_size", "num_attention_heads", "seq_length", "lr"])
def test_required_keys(tmp_path: Path, key: str) -> None:
    problem = only_problem(small(tmp_path, **{key: None}))
    assert (problem.key, problem.constraint, problem.value) == (key, "is not set", None)


def test_a_misspelt_required_key_is_one_problem(tmp_path: Path) -> None:
    assert only_problem(small(tmp_path, num_layers=None, num_layer="2")).key == "num_layer"


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    changes = {"hidden_size": "65", "lr": "fast", "seq_lenght": "3", "zero_optimization": "{stage: 3}"}
    path = small(tmp_path, **changes)
    found = problems(path, set_=["vocab_file=/no/such/file", "nothing"], check_files=True)
    assert {problem.key for problem in found} == {
        "hidden_size",
        "lr",
        "seq_lenght",
        "zero_optimization.stage",
        "vocab_file",
        "--set nothing",
        "train_data_paths",
    }
    assert all(str(problem).count("; ") >= 1 for problem in found)


def test_an_overridden_mistake_is_no_mistake(tmp_path: Path) -> None:
    path = small(tmp_path, zero_optimization="{stage: 3, cpu_offload: true}", seed="no-number")
    overrides = ["zero_stage=1", "zero_optimization.cpu_offload=false", "seed=1"]
    assert load(path, set_=overrides).parallel.zero_stage == 1


@pytest.mark.parametrize(
    ("override", "concern", "name", "value"),
    [
        ("lr=1e-4", "optimizer", "lr", 1e-4),
        ("optimizer.params.lr=2E-5", "optimizer", "lr", 2e-5),
        ("train-iters=1_000", "schedule", "train_iters", 1000),
        ("split=90,5,5", "data", "split", "90,5,5"),
        ("data_names=[a, b]", "data", "data_names", ("a", "b")),
        ("sequence_parallel=false", "parallel", "sequence_parallel", False),
        ("save=", "checkpoint", "save", None),
        ("wandb_group=a: b", None, "", None),
        ("wandb_group='a: b'", "logging", "wandb_group", "a: b"),
        ("rotary_scaling={type: linear, factor: 4}", "model", "rotary_scaling", None),
    ],
)
def test_overrides(tmp_path: Path, override: str, concern: str | None, name: str, value: Any) -> None:
    data = "train_data_paths: [x, y]" if "names" in override else "data_path: x"
    paths = [small(tmp_path), written(tmp_path, "data.yml", data)]
    if concern is None:
        assert "not YAML" in only_problem(*paths, set_=[override]).constraint
        return
    found = getattr(getattr(load(*paths, set_=[override]), concern), name)
    assert found.factor == 4 if name == "rotary_scaling" else found == value


@pytest.mark.parametrize("override", ["lr", "=3", "a..b=3", ".=1", ""])
def test_malformed_overrides(tmp_path: Path, override: str) -> None:
    assert only_problem(small(tmp_path), set_=[override]).constraint == "is not key=value"


def test_the_message_has_key_value_constraint_remedy_and_place(tmp_path: Path) -> None:
    path = small(tmp_path, num_attention_heads="3")
    with pytest.raises(ConfigError) as caught:
        load_config([path], check_files=False)
    assert str(caught.value) == (
        "hidden_size=64: is not divisible by num_attention_heads=3;"
        f" use num_attention_heads 1, 2, 4, 8, 16, 32 or 64, or set head_dim ({path}:2)"
    )


def test_runs_without_validation_data_are_told(tmp_path: Path) -> None:
    path = small(tmp_path, train_data_paths="[x]")
    _, notices = load_config([path], check_files=False)
    assert notices == ["valid_data_paths is not set: no loss on held-out data is measured"]


def test_weights_of_validation_sets_are_told_to_be_idle(tmp_path: Path) -> None:
    path = small(tmp_path, valid_data_paths="[x, y]", valid_data_weights="[1, 3]", test_data_weights="[]")
    _, notices = load_config([path], check_files=False)
    (notice,) = notices
    assert notice.startswith(
        "valid_data_weights=[1.0, 3.0] has no effect here: each set is evaluated by itself"
    )
    assert load_config([path], ["valid_data_weights=[1, 0]"], check_files=False)[1][1:] == []


@pytest.mark.parametrize(
    ("written_as", "key", "says"),
    [
        # One kind of TransformerEngine's layers without the other.
        ("te_columnparallel: true\nte_rowparallel: false", "te_rowparallel", "contradicts te_columnparallel"),
        ("te_mha: true", "te_mha", "attention_backend chooses the kernel"),
        ("te_layernorm_mlp: true", "te_layernorm_mlp", "te_columnparallel and te_rowparallel to true"),
        ("te_fp8_margin: 2", "fp8_margin", "has no meaning without fp8_format"),
    ],
)
def test_transformer_engine_as_gpt_neox_asks_for_it(
    tmp_path: Path, written_as: str, key: str, says: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(small(tmp_path), written(tmp_path, "more.yml", written_as))
    assert any(f"{key}=" in line and says in line for line in str(refused.value).splitlines()), refused.value
