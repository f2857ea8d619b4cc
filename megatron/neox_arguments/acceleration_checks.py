# SPDX-License-Identifier: Apache-2.0
"""What must hold for fp8, TransformerEngine's layers, fusions and compilation, as far as the keys can tell.

What the GPU and the installed packages can do is asked where the model is built (megatron/model).
"""

from __future__ import annotations

from collections.abc import Iterator

from .config import RunConfig
from .errors import Problem, shown
from .rules import Facts, rule

# Matrices of an fp8 product are whole vectors of the tensor cores, 16 numbers (TransformerEngine's
# assert_dim_for_fp8_exec), and whole blocks of their scales: 32 numbers (OCP Microscaling Formats 1.0,
# section 5.2), or 128 (DeepSeek-V3 technical report, section 3.3.2).
FP8_MULTIPLES = {"tensorwise": 16, "delayed": 16, "mxfp8": 32, "blockwise": 128}
_OF_FP8 = ("fp8_recipe", "first_last_layers_bf16")
_OF_DELAYED = ("fp8_amax_history_len", "fp8_amax_compute_algo", "fp8_margin", "fp8_wgrad")
_OF_BF16_LAYERS = ("num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16")


def _changed(cfg: RunConfig, names: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    """Those of the keys that are not at their default."""
    fields = type(cfg.acceleration).model_fields
    for name in names:
        value = getattr(cfg.acceleration, name)
        if value != fields[name].default:
            yield name, value


@rule("fp8_format", *_OF_FP8, *_OF_DELAYED, *_OF_BF16_LAYERS)
def _belong_to_fp8(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    asked = cfg.acceleration
    if asked.fp8_format is None:
        for name, value in _changed(cfg, (*_OF_FP8, *_OF_DELAYED, *_OF_BF16_LAYERS)):
            yield Problem(name, value, "has no meaning without fp8_format", "set fp8_format, or remove it")
        return
    if asked.fp8_recipe != "delayed":
        for name, value in _changed(cfg, _OF_DELAYED):
            constraint = f"has no meaning with fp8_recipe={asked.fp8_recipe}"
            yield Problem(name, value, constraint, "remove it, or use fp8_recipe: delayed")
    elif asked.first_last_layers_bf16:
        constraint = "cannot be with fp8_recipe=delayed, whose history is that of one pass through all layers"
        yield Problem("first_last_layers_bf16", True, constraint, "use fp8_recipe: tensorwise")
    if not asked.first_last_layers_bf16:
        for name, value in _changed(cfg, _OF_BF16_LAYERS):
            constraint = "has no meaning without first_last_layers_bf16"
            yield Problem(name, value, constraint, "set first_last_layers_bf16: true, or remove it")


@rule(
    "fp8_format", "first_last_layers_bf16", *_OF_BF16_LAYERS, "num_layers", "pipe_parallel_size", layout=True
)
def _bf16_layers(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    asked, layers = cfg.acceleration, cfg.model.num_layers // cfg.parallel.pipeline_size
    if asked.fp8_format is None or not asked.first_last_layers_bf16:
        return
    for name in _OF_BF16_LAYERS:
        if getattr(asked, name) > layers:
            constraint = f"is more than the {layers} layers of a pipeline stage"
            yield Problem(name, getattr(asked, name), constraint, f"use at most {layers}")


@rule("fp8_format", "precision")
def _fp8_beside_bfloat16(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    wanted = cfg.acceleration.fp8_format
    if wanted is not None and cfg.precision.precision != "bfloat16":
        constraint = f"computes products beside bfloat16, and precision={cfg.precision.precision}"
        yield Problem("fp8_format", wanted, constraint, "use precision: bfloat16")


@rule(
    "fp8_format", "fp8_recipe", "model_parallel_size", "sequence_parallel", "hidden_size",
    "intermediate_size", "num_attention_heads", "num_kv_heads", "head_dim", "attention_type", "seq_length",
    "train_micro_batch_size_per_gpu", layout=True,
)  # fmt: skip
def _fp8_shapes(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    """Every matrix of a layer's products, as a rank holds it."""
    if cfg.acceleration.fp8_format is None:
        return
    recipe, model, size = cfg.acceleration.fp8_recipe, cfg.model, cfg.parallel.model_parallel_size
    multiple = FP8_MULTIPLES[recipe]
    heads, kv_heads = model.num_attention_heads, model.num_kv_heads
    micro = cfg.batch.train_micro_batch_size_per_gpu or 1
    tokens = model.seq_length * micro
    widths = [
        ("hidden_size", model.hidden_size, model.hidden_size),
        ("intermediate_size", model.intermediate_size, model.intermediate_size / size),
        ("head_dim", model.head_dim, heads * model.head_dim / size),
        ("head_dim", model.head_dim, (heads + 2 * kv_heads) * model.head_dim / size),
        ("seq_length", model.seq_length, tokens / (size if cfg.parallel.sequence_parallel else 1)),
    ]
    wrong = {
        key: (value, width)
        for key, value, width in reversed(widths)
        if width % 1 == 0 and width % multiple  # what cannot be cut at all is said elsewhere
    }
    for key, (value, width) in wrong.items():
        constraint = (
            f"makes matrices of {width:g} on a rank, and fp8_recipe={recipe} needs multiples of {multiple}"
        )
        remedy = "leave fp8_format out" if multiple == 16 else "use fp8_recipe: tensorwise, which needs 16"
        yield Problem(key, value, constraint, remedy)


@rule("transformer_impl", "fp8_format", "tp_comm_overlap")
def _needs_the_engine(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    asked = cfg.acceleration
    if asked.transformer_impl == "transformer_engine":
        return
    for name in ("fp8_format", "tp_comm_overlap"):
        value = getattr(asked, name)
        if value:
            constraint = "is done by TransformerEngine's layers, and transformer_impl=local"
            yield Problem(name, value, constraint, "leave transformer_impl out: it follows")


@rule("tp_comm_overlap", "sequence_parallel", "model_parallel_size", layout=True)
def _tensor_parallel_overlap(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    if cfg.acceleration.tp_comm_overlap and not cfg.parallel.sequence_parallel:
        constraint = (
            f"overlaps what sequence_parallel sends, and sequence_parallel={shown(False)}"
            f" with model_parallel_size={cfg.parallel.model_parallel_size}"
        )
        yield Problem(
            "tp_comm_overlap", True, constraint, "use it with model_parallel_size over 1, or remove it"
        )


@rule("torch_compile", "transformer_impl", "gradient_accumulation_fusion")
def _compiled(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    asked = cfg.acceleration
    if asked.torch_compile == "none":
        return
    if asked.transformer_impl == "transformer_engine":
        constraint = "compiles megatron-core's layers, and transformer_impl=transformer_engine"
        yield Problem("torch_compile", asked.torch_compile, constraint, "keep one of the two")
    if asked.gradient_accumulation_fusion:
        constraint = f"writes into a buffer that torch_compile={asked.torch_compile} does not see"
        yield Problem("gradient_accumulation_fusion", True, constraint, "keep one of the two")
