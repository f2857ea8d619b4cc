# SPDX-License-Identifier: Apache-2.0
"""What the tests of configurations share: files to load, in GPT-NeoX's syntax and in ours."""

from __future__ import annotations

from pathlib import Path

from hypothesis import settings

from megatron.neox_arguments import ConfigError, Problem, RunConfig, load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"

# For properties that touch files: a busy disk is no failure.
unhurried = settings(deadline=None)

SMALL = {
    "num_layers": "2",
    "hidden_size": "64",
    "num_attention_heads": "4",
    "seq_length": "32",
    "lr": "1e-3",
    "train_iters": "100",
    "train_micro_batch_size_per_gpu": "2",
}

# Keys and values of the Llemma branch's 7B run, written out in GPT-NeoX's syntax.
PUBLISHED_7B = """
{ # one flow mapping over many lines
  "pipe_parallel_size": 0, "model_parallel_size": 2, "make_vocab_size_divisible_by": 1,
  "num_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
  "seq_length": 4096, "max_position_embeddings": 4096,
  "pos_emb": "rotary", "rotary_pct": 1, "rotary_emb_base": 10000, # after the base
  "no_weight_tying": true, "gpt_j_residual": false, "output_layer_parallelism": "column",
  "norm": "rmsnorm", "rms_norm_epsilon": 1.0e-5,
  "attention_config": [[["flash"], 32]],
  "scaled_upper_triang_masked_softmax_fusion": true, "bias_gelu_fusion": false,
  "use_bias_in_norms": false, "use_bias_in_attn_linear": false, "mlp_type": "llama", "activation": "silu",
  "optimizer": {"type": "Adam", "params": {"lr": 0.0001, "betas": [0.9, 0.95], "eps": 1.0e-8}},
  "zero_optimization": {
    "stage": 1, "allgather_partitions": true, "allgather_bucket_size": 1260000000, "overlap_comm": true,
    "reduce_scatter": true, "reduce_bucket_size": 1260000000, "contiguous_gradients": true,
    "cpu_offload": false
  },
  "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2, "data_impl": "mmap",
  "checkpoint_activations": true, "checkpoint_num_layers": 1,
  "partition_activations": true, "synchronize_each_layer": true,
  "gradient_clipping": 1.0, "weight_decay": 0.1, "hidden_dropout": 0, "attention_dropout": 0,
  "precision": "bfloat16", "fp32_allreduce": true, "bf16": {"enabled": true},
  "data_types": {"grad_accum_dtype": "fp32"},
  "train_iters": 48000, "lr_decay_iters": 48000, "distributed_backend": "nccl",
  "lr_decay_style": "cosine", "decay_lr_to": 0.033, "warmup_iters": 500,
  "checkpoint_factor": 500, "eval_interval": 250, "eval_iters": 50,
  "log_interval": 1, "steps_per_print": 1, "wall_clock_breakdown": true,
  "tokenizer_type": "SPMTokenizer", "vocab-file": "codellama/tokenizer.model", # with a dash
  "save": "/somewhere/to/save",
   #"load": "", # a key that is commented out
  "load": "/somewhere/with/weights",
  "finetune": true, "checkpoint_validation_with_forward_pass": true,
  "use_wandb": true, "wandb_group": "a_group", "wandb_project": "math-lm", "wandb_team": "a-team",
  "wandb_host": "https://api.wandb.ai",
  "launcher": "slurm", "deepspeed_slurm": true
}
"""

PUBLISHED_34B = (
    PUBLISHED_7B.replace('"model_parallel_size": 2', '"model_parallel_size": 8')
    .replace('"num_layers": 32', '"num_layers": 48')
    .replace('"hidden_size": 4096', '"hidden_size": 8192')
    .replace('"num_attention_heads": 32', '"num_attention_heads": 64, "attention_type": "groupedquery"')
    .replace('"seq_length": 4096', '"num_kv_heads": 8, "seq_length": 4096')
    .replace('"rotary_emb_base": 10000', '"rotary_emb_base": 1000000')
    .replace('[[["flash"], 32]]', '[[["flash"], 48]]')
    .replace('"lr": 0.0001', '"lr": 0.00005')
    .replace('"train_micro_batch_size_per_gpu": 4', '"train_micro_batch_size_per_gpu": 2')
    .replace('"gradient_accumulation_steps": 2', '"gradient_accumulation_steps": 16')
    .replace("48000", "12000")
    .replace('"checkpoint_factor": 500', '"checkpoint_factor": 250')
    .replace('"eval_iters": 50', '"eval_iters": 25')
)

PUBLISHED_DATA = """
{
  "train-data-paths": ["/a/arxiv-rp_text_document", "/a/open-web-math_text_document",
    "/a/code-with-proofsteps_text_document", "/a/pile-sample_text_document", "/a/code-rp_text_document"],
  "train-data-weights": [2, 4, 1, 0.147368, 0.221053],
  "valid-data-paths": ["/v/arxiv-rp_text_document", "/v/open-web-math_text_document",
    "/v/code-with-proofsteps_text_document"],
  "test-data-paths": ["/t/arxiv-rp_text_document", "/t/open-web-math_text_document",
    "/t/code-with-proofsteps_text_document"],
}
"""


def written(folder: Path, name: str, text: str) -> Path:
    """A file with `text` in `folder`."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def small(folder: Path, **changes: str | None) -> Path:
    """A file of the smallest complete run, with changes; None leaves a key out."""
    values = {name: value for name, value in {**SMALL, **changes}.items() if value is not None}
    return written(folder, "small.yml", "".join(f"{name}: {value}\n" for name, value in values.items()))


def load(*paths: Path, set_: list[str] | None = None) -> RunConfig:
    """The run, without looking for its files."""
    return load_config(paths, set_ or [], check_files=False)[0]


def problems(*paths: Path, set_: list[str] | None = None, check_files: bool = False) -> list[Problem]:
    """Everything that is wrong with a run; empty where it loads."""
    try:
        load_config(paths, set_ or [], check_files=check_files)
    except ConfigError as error:
        return error.problems
    return []


def only_problem(*paths: Path, set_: list[str] | None = None, check_files: bool = False) -> Problem:
    """The one thing that is wrong with a run."""
    found = problems(*paths, set_=set_, check_files=check_files)
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]
