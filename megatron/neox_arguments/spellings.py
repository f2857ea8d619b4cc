# SPDX-License-Identifier: Apache-2.0
"""How GPT-NeoX and DeepSpeed say it: spellings, blocks, and keys that change nothing here, with the reason.

Every key that a file may hold is in one of three tables: the fields themselves with their aliases, those
whose value has another shape there (`TRANSLATIONS`), and those that only tuned the engine they were written
for (`NO_EFFECT`). Such a key is accepted only with values that ask for what is done here anyway, or that
cannot change a result; any other value is refused by name. A key in none of the tables is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from .config import fields


@dataclass(frozen=True)
class Refusal:
    """A value that asks for something that is not done here; judged only if no later file replaces it."""

    value: object
    constraint: str
    remedy: str


@dataclass(frozen=True)
class Translation:
    """A key whose value becomes others, by `read`; `to` names them.

    They are fields, or facts that only checks read: attention_layers and fp16_enabled.
    """

    to: tuple[str, ...]
    sentence: str
    read: Callable[[Any], Mapping[str, Any] | Refusal]
    values: Mapping[str, Any] = field(default_factory=dict)  # JSON schema


@dataclass(frozen=True)
class NoEffect:
    """A key that changes nothing here; `accepts` lists the values that may stand, empty for every value."""

    accepts: tuple[Any, ...]
    reason: str
    remedy: str = "remove the key"


def _bool_refusal(value: Any) -> Refusal | None:
    if isinstance(value, bool):
        return None
    return Refusal(value, "must be true or false", "write true or false without quotes")


def _recompute(value: Any) -> Mapping[str, Any] | Refusal:
    if isinstance(value, bool):
        return {"recompute": "full" if value else "none"}
    if value in ("none", "selective", "full", "auto"):
        return {"recompute": value}
    return Refusal(
        value,
        "must be true, false, none, selective, full or auto",
        "write checkpoint_activations: true for full",
    )


def _betas(value: Any) -> Mapping[str, Any] | Refusal:
    if isinstance(value, list) and len(value) == 2:
        return {"adam_beta1": value[0], "adam_beta2": value[1]}
    return Refusal(value, "must be a list of two numbers", "write for instance betas: [0.9, 0.95]")


def _overlap(value: Any) -> Mapping[str, Any] | Refusal:
    return _bool_refusal(value) or {"overlap_grad_reduce": value, "overlap_param_gather": value}


def _zero_stage(value: Any) -> Mapping[str, Any] | Refusal:
    if value in (2, 3) and not isinstance(value, bool):
        shards = "gradients" if value == 2 else "gradients and weights"
        return Refusal(
            value,
            f"ZeRO stage {value} shards {shards} over data parallel ranks, which is not done here",
            "use stage 1, and raise model_parallel_size or recompute where memory is short",
        )
    return {"zero_stage": value}


def _bf16(value: Any) -> Mapping[str, Any] | Refusal:
    return _bool_refusal(value) or {"precision": "bfloat16" if value else "fp32"}


def _fp16(value: Any) -> Mapping[str, Any] | Refusal:
    refusal = _bool_refusal(value)
    if refusal is None and value:
        return Refusal(
            value,
            "fp16 needs a scaled loss, which is not built here",
            "use precision: bfloat16, which has the range of fp32 and needs none",
        )
    return refusal or {"fp16_enabled": False}


def _precision(value: Any) -> Mapping[str, Any] | Refusal:
    if value in ("fp16", "float16", "half"):
        return _fp16_precision(value)
    names = {"bf16": "bfloat16", "float32": "fp32"}
    return {"precision": names.get(value, value) if isinstance(value, str) else value}


def _fp16_precision(value: Any) -> Refusal:
    refusal = _fp16(True)
    assert isinstance(refusal, Refusal)
    return Refusal(value, refusal.constraint, refusal.remedy)


def _slurm(value: Any) -> Mapping[str, Any] | Refusal:
    return _bool_refusal(value) or ({"launcher": "slurm"} if value else {})


def _te_linear(value: Any) -> Mapping[str, Any] | Refusal:
    return _bool_refusal(value) or {"transformer_impl": "transformer_engine" if value else "local"}


# Kinds of GPT-NeoX's attention that compute what every kernel here computes: full causal attention.
_DENSE = ("flash", "global")


def _attention(value: Any) -> Mapping[str, Any] | Refusal:
    remedy = 'write attention_config: [[["flash"], 32]], with the number of layers'
    if not isinstance(value, list) or not value:
        return Refusal(value, "must be a list of [kinds, layers]", remedy)
    layers: int | None = 0
    for group in value:
        if not (isinstance(group, list) and len(group) == 2 and isinstance(group[0], list) and group[0]):
            return Refusal(value, "must be a list of [kinds, layers]", remedy)
        kinds, repeat = group
        other = [kind for kind in kinds if kind not in _DENSE]
        if other:
            constraint = f"attention of kind {other[0]} is not built; only {' and '.join(_DENSE)} are"
            return Refusal(value, constraint, remedy)
        if repeat == "all":
            layers = None
        elif isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 1:
            return Refusal(value, "must name a number of layers, or all, for each list of kinds", remedy)
        elif layers is not None:
            layers += repeat * len(kinds)
    found: dict[str, Any] = {"attention_backend": "auto"}
    return found if layers is None else {**found, "attention_layers": layers}


_BOOL = {"type": "boolean"}

TRANSLATIONS: dict[str, Translation] = {
    "attention_config": Translation(
        ("attention_backend", "attention_layers"),
        '`[[["flash"], 32]]`: attention_backend auto, which needs no more; the layers must add up.',
        _attention,
        {"type": "array"},
    ),
    "checkpoint_activations": Translation(
        ("recompute",),
        "true is full, false is none; the names of recompute too.",
        _recompute,
        {"type": ["boolean", "string"]},
    ),
    "optimizer.params.betas": Translation(
        ("adam_beta1", "adam_beta2"),
        "The two in a list.",
        _betas,
        {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
    ),
    "zero_optimization.stage": Translation(
        ("zero_stage",), "0 or 1; 2 and 3 are refused.", _zero_stage, {"enum": [0, 1]}
    ),
    "zero_optimization.overlap_comm": Translation(
        ("overlap_grad_reduce", "overlap_param_gather"), "Sets both.", _overlap, _BOOL
    ),
    "bf16.enabled": Translation(("precision",), "true is bfloat16, false is fp32.", _bf16, _BOOL),
    "fp16.enabled": Translation(("fp16_enabled",), "Only false.", _fp16, {"const": False}),
    "precision": Translation(
        ("precision",), "fp16 is refused.", _precision, {"enum": ["bfloat16", "bf16", "fp32", "float32"]}
    ),
    "te_columnparallel": Translation(
        ("transformer_impl",), "true is transformer_engine, false local.", _te_linear, _BOOL
    ),
    "te_rowparallel": Translation(
        ("transformer_impl",), "The same; one kind alone is not built.", _te_linear, _BOOL
    ),
    "deepspeed_slurm": Translation(("launcher",), "true is slurm.", _slurm, _BOOL),
}

ALIASES = {"zero_optimization.reduce_bucket_size": "reduce_bucket_size"}

_FLASH = "attention runs in one kernel, which has no separate softmax to fuse"
_FUSED = "fused_kernels chooses the kernels of norm, rotary embedding and SwiGLU, by measurement"
_UNFUSED = "a norm keeps its own weight, so that checkpoints have one form"
_TE_LINEAR = "set it to false, and te_columnparallel and te_rowparallel to true for TransformerEngine's MLP"
_OWN_ATTENTION = "attention is computed by the kernel of attention_backend, in bfloat16"
_SHARDED = "ZeRO-1 here always reduces by scattering and gathers what was updated"
_OFFLOAD = "set it to false: nothing is kept in the host's memory here; recompute: full saves GPU memory"
_NO_LOSS_SCALE = "bfloat16 has the range of fp32, so the loss is not scaled"

NO_EFFECT: dict[str, NoEffect] = {
    "partition_activations": NoEffect(
        (True, False), "sequence_parallel already divides kept activations over tensor parallel ranks"
    ),
    "synchronize_each_layer": NoEffect(
        (True, False), "it only made timings of the old engine exact, and cost speed; results are the same"
    ),
    "contiguous_checkpointing": NoEffect((False,), "kept activations stay where they are made"),
    "checkpoint_in_cpu": NoEffect((False,), "kept activations stay on the GPU", _OFFLOAD),
    "zero_optimization.allgather_partitions": NoEffect((True,), _SHARDED),
    "zero_optimization.allgather_bucket_size": NoEffect(
        (), "parameters are gathered in the buckets of gradient reduction, see reduce_bucket_size"
    ),
    "zero_optimization.reduce_scatter": NoEffect((True,), _SHARDED),
    "zero_optimization.contiguous_gradients": NoEffect((True,), "gradients always lie in contiguous buffers"),
    "zero_optimization.cpu_offload": NoEffect((False,), "the optimizer's state stays on the GPU", _OFFLOAD),
    "te_layernorm_mlp": NoEffect((False,), _UNFUSED, _TE_LINEAR),
    "te_mha": NoEffect((False,), _OWN_ATTENTION, "set it to false: attention_backend chooses the kernel"),
    "te_fp8_mha": NoEffect((False,), _OWN_ATTENTION, "set it to false: attention stays in bfloat16"),
    "scaled_upper_triang_masked_softmax_fusion": NoEffect((True, False), _FLASH),
    "scaled_masked_softmax_fusion": NoEffect((True, False), _FLASH),
    "bias_gelu_fusion": NoEffect(
        (False,),
        "the MLP has no bias and no GELU: its activation is silu",
        "set it to false: the MLP has no bias and no GELU to fuse, its activation is silu",
    ),
    "rmsnorm_fusion": NoEffect((True, False), _FUSED),
    "layernorm_fusion": NoEffect((True, False), _FUSED),
    "rope_fusion": NoEffect((True, False), _FUSED),
    "bias_dropout_fusion": NoEffect((False,), "what is dropped has no bias"),
    "checkpoint_validation_with_forward_pass": NoEffect(
        (True, False),
        "a checkpoint takes its name only when all of it is written; neox-to-hf --verify compares logits",
    ),
    "s3_chunk_size": NoEffect((), "uploads are cut into parts by the library that sends them"),
    "steps_per_print": NoEffect((), "DeepSpeed's own console line is not there; log_interval sets ours"),
    "wall_clock_breakdown": NoEffect((True, False), "every log line carries its time and speed"),
    "log_grad_norm": NoEffect((True, False), "the gradient's norm is on every log line"),
    "main_params_dtype": NoEffect(
        ("fp32",),
        "main parameters are float32, in 16 bits beside the weights with store_param_remainders",
        "remove it; store_param_remainders: true takes the memory that a 16-bit format would",
    ),
    "use_precision_aware_optimizer": NoEffect(
        (True,), "it is used where exp_avg_dtype, exp_avg_sq_dtype or store_param_remainders ask for it"
    ),
    "optimizer.params.adam_w_mode": NoEffect((True,), "weight decay is decoupled"),
    "optimizer.params.bias_correction": NoEffect((True,), "Adam's means are corrected for their start"),
    "fp16.type": NoEffect((), _NO_LOSS_SCALE),
    "fp16.fp16": NoEffect((False,), _NO_LOSS_SCALE),
    "fp16.auto_cast": NoEffect((False,), _NO_LOSS_SCALE),
    "fp16.loss_scale": NoEffect((), _NO_LOSS_SCALE),
    "fp16.loss_scale_window": NoEffect((), _NO_LOSS_SCALE),
    "fp16.initial_scale_power": NoEffect((), _NO_LOSS_SCALE),
    "fp16.hysteresis": NoEffect((), _NO_LOSS_SCALE),
    "fp16.min_loss_scale": NoEffect((), _NO_LOSS_SCALE),
}

# What other tools call it, for the remedy of an unknown key: Hugging Face, Megatron-LM, DeepSpeed.
ELSEWHERE = {
    "num_hidden_layers": "num_layers",
    "n_layers": "num_layers",
    "num_key_value_heads": "num_kv_heads",
    "num_query_groups": "num_kv_heads",
    "n_kv_heads": "num_kv_heads",
    "rope_theta": "rotary_emb_base",
    "rope_scaling": "rotary_scaling",
    "rotary_embedding_base": "rotary_emb_base",
    "rms_norm_eps": "rms_norm_epsilon",
    "attention_bias": "use_qkv_bias",
    "add_qkv_bias": "use_qkv_bias",
    "qk_layernorm": "qk_norm",
    "use_qk_layernorm": "qk_norm",
    "use_qk_norm": "qk_norm",
    "norm_epsilon": "rms_norm_epsilon",
    "tie_word_embeddings": "no_weight_tying",
    "untie_embeddings_and_output_weights": "no_weight_tying",
    "learning_rate": "lr",
    "max_steps": "train_iters",
    "tensor_parallel_size": "model_parallel_size",
    "pipeline_model_parallel_size": "pipe_parallel_size",
    "global_batch_size": "train_batch_size",
    "per_device_train_batch_size": "train_micro_batch_size_per_gpu",
    "max_grad_norm": "gradient_clipping",
    "recompute_granularity": "recompute",
    "tokenizer_model": "vocab_file",
    "scheduler": "lr_decay_style",
    "fp8": "fp8_format",
    "use_transformer_engine": "transformer_impl",
    "output_dir": "save",
    "apply_rope_fusion": "fused_kernels",
    "bias_swiglu_fusion": "fused_kernels",
    "use_liger_kernel": "fused_kernels",
    "attn_implementation": "attention_backend",
}


@cache
def canonical() -> dict[str, str]:
    """Every accepted spelling of a field, its own included, to the field's name."""
    names = {name: name for _, name, _ in fields()} | ALIASES
    for _, name, info in fields():
        names |= dict.fromkeys(aliases_of(info), name)
    return names


def aliases_of(info: Any) -> list[str]:
    """The other spellings that a field was declared with."""
    extra = info.json_schema_extra
    return list(extra.get("aliases", [])) if isinstance(extra, dict) else []


@cache
def blocks() -> frozenset[str]:
    """The keys that hold further keys, such as `optimizer` and `optimizer.params`."""
    dotted = [key for table in (canonical(), TRANSLATIONS, NO_EFFECT) for key in table if "." in key]
    return frozenset(key.rsplit(".", depth)[0] for key in dotted for depth in range(1, key.count(".") + 1))


def spellings() -> list[str]:
    """Every key that a file may hold, dotted where it is in a block."""
    return sorted({*canonical(), *TRANSLATIONS, *NO_EFFECT})
