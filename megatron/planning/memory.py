# SPDX-License-Identifier: Apache-2.0
"""Memory of a rank by kind, by arithmetic: what `--plan` has without torch, and compares layouts with.

Activations are counted as Korthikanti et al. 2022 (arXiv 2205.05198, section 4) count them, for this
repository's layer: no dropout masks, no attention scores (a flash kernel keeps a row's log sum instead), a
gated MLP, and queries and keys twice, because the values that attention keeps are a view of all three
before the rotary embedding.

Legend: T tokens of a micro-batch, L those of them on this rank between layers (T over tensor parallel ranks
with sequence parallelism), C hidden size, F width of the MLP, H and K heads of queries and of keys, D head
dimension.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from megatron.neox_arguments.config import ModelConfig, RunConfig
from megatron.planning.flops import layer_parameters

_FORMAT_BYTES = {"fp32": 4, "bf16": 2}
# Float32 rows that the loss converts at once: `_PIECE_BYTES` of model/cross_entropy.py.
_LOSS_PIECE_BYTES = 2**28
# Temporaries of the MLP's backward pass, in multiples of its width: the gradient of the gated activation.
_MLP_TEMPORARIES = 5


@dataclass(frozen=True)
class Choice:
    """What a plan may change about a run: how it is cut, and what it computes again."""

    tensor: int
    pipeline: int
    micro: int
    recompute: str
    sequence_parallel: bool
    checkpoint_num_layers: int = 1
    recompute_modules: tuple[str, ...] = ()
    recompute_num_layers: int | None = None  # with recompute full: of a stage, None for all of its layers

    def whole_layers(self, stage_layers: int) -> int:
        """Layers of a stage that are computed again as a whole."""
        if self.recompute != "full":
            return 0
        return stage_layers if self.recompute_num_layers is None else self.recompute_num_layers


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank by kind; `reserved` is what torch's allocator does not see."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    reserved: int = 0

    @property
    def total(self) -> int:
        return (
            self.weights + self.gradients + self.optimizer + self.activations + self.buffers + self.reserved
        )


def choice_of(cfg: RunConfig, ranks: int) -> Choice:
    """The run as it is configured."""
    parallel = cfg.parallel
    return Choice(
        tensor=parallel.model_parallel_size,
        pipeline=parallel.pipeline_size,
        micro=cfg.batch.batch_shape(ranks // parallel.model_ranks).micro,
        recompute=parallel.recompute,
        sequence_parallel=parallel.sequence_parallel,
        checkpoint_num_layers=parallel.checkpoint_num_layers,
        recompute_modules=parallel.recompute_modules,
        recompute_num_layers=parallel.recomputed_layers or None,
    )


def stage_parameters(model: ModelConfig, padded_vocab: int, tensor: int, pipeline: int, stage: int) -> int:
    """Parameters of one rank of a pipeline stage."""
    count = layer_parameters(model, tensor) * (model.num_layers // pipeline)
    table = padded_vocab // tensor * model.hidden_size
    is_first, is_last = stage == 0, stage == pipeline - 1
    if is_first:
        count += table
    if is_last:
        count += model.hidden_size  # the last norm
        if model.no_weight_tying or not is_first:
            count += table
    return count


def _layer_parts(cfg: RunConfig, choice: Choice) -> dict[str, int]:
    """Bytes of what one layer keeps for its backward pass, by what it is."""
    model, size = cfg.model, element_bytes(cfg)
    heads, kv_heads, width = model.num_attention_heads, model.num_kv_heads, model.head_dim
    tokens, local = _tokens(cfg, choice)
    turned = size * tokens * (heads + kv_heads) * width
    hidden = size * local * model.hidden_size
    # Fused kernels keep less (docs/kernels.md). What auto will choose is not known here: it may be plain.
    is_fused = model.fused_kernels not in ("auto", "plain")
    # A norm keeps its input and a number a row; rmsnorm_neox made of parts x in float32 and x / rms.
    inside = 4 if is_fused or model.norm == "rmsnorm" else 4 * model.hidden_size + 4
    # Attention keeps its values, which, where they are a part of the product, keep all of it.
    is_product_kept = not is_fused or model.qk_norm != "none"
    kept_heads = heads + 2 * kv_heads if is_product_kept else kv_heads
    return {
        "norm input": hidden,
        "norm inside": local * inside,
        "norm output": hidden,  # kept by the matrix after it
        "qkv": size * tokens * kept_heads * width // choice.tensor,
        "turned": turned // choice.tensor,
        "attended": size * tokens * heads * width // choice.tensor,
        "log sums": 4 * tokens * heads // choice.tensor,
        "gate and up": size * tokens * 2 * model.intermediate_size // choice.tensor,
        "gated": size * tokens * model.intermediate_size // choice.tensor,
        # Sines and cosines, for queries and for keys; the fused kernel's are shared by all layers.
        "tables": 4 * size * model.seq_length * width if is_product_kept else 0,
    }


def layer_activations(cfg: RunConfig, choice: Choice, modules: Collection[str] = ()) -> int:
    """Bytes that one layer keeps for its backward pass, if `modules` are computed again."""
    part = _layer_parts(cfg, choice)
    norm = part["norm input"]
    if "layernorm" not in modules:
        norm += part["norm inside"] + part["norm output"]
    attention = part["qkv"] + part["turned"] + part["attended"] + part["tables"]
    if "core_attn" not in modules:
        attention += part["log sums"]
    mlp = 0 if "mlp" in modules else part["gate and up"]
    if not {"mlp", "mlp_act"} & set(modules):
        mlp += part["gated"]
    return 2 * norm + attention + mlp


def _parts_again(cfg: RunConfig, choice: Choice) -> int:
    """Bytes that a layer whose parts are computed again has beside the others while its MLP runs backward.

    megatron-core computes what it dropped anew and copies it to where the layer looks for it, so that there
    are two of each until they are used.
    """
    modules, part = choice.recompute_modules, _layer_parts(cfg, choice)
    again = 0
    if "layernorm" in modules:
        again += 2 * part["norm output"] + part["norm inside"]
    if "mlp_act" in modules:
        again += 2 * part["gated"]
    if "mlp" in modules:
        again += part["gate and up"] + part["gated"]
    return again


def _tokens(cfg: RunConfig, choice: Choice) -> tuple[int, int]:
    """Tokens of a micro-batch, and those of them on a rank between layers."""
    tokens = choice.micro * cfg.model.seq_length
    return tokens, tokens // (choice.tensor if choice.sequence_parallel else 1)


def stage_activations(
    cfg: RunConfig, choice: Choice, padded_vocab: int, under_way: int, is_last: bool
) -> int:
    """The most bytes of activations at once on a rank of a pipeline stage.

    `under_way` is the number of micro-batches whose forward pass is done and whose backward pass is not. The
    layers that are computed again as a whole are the first of a stage, so that the others give back what they
    kept before the first of those needs room.
    """
    size = element_bytes(cfg)
    tokens, local = _tokens(cfg, choice)
    layers = cfg.model.num_layers // choice.pipeline
    hidden = size * local * cfg.model.hidden_size
    whole = choice.whole_layers(layers)
    at_mlp = _MLP_TEMPORARIES * size * tokens * cfg.model.intermediate_size // choice.tensor + hidden
    inputs = hidden * -(-whole // choice.checkpoint_num_layers)
    kept = inputs + layer_activations(cfg, choice, choice.recompute_modules) * (layers - whole)
    group = layer_activations(cfg, choice) * min(choice.checkpoint_num_layers, layers)
    moments = [at_loss(cfg, choice, padded_vocab)] if is_last else []
    if whole < layers:
        moments.append(_parts_again(cfg, choice) + at_mlp)
    if whole:
        moments.append(inputs - kept + group + at_mlp)
    return kept * under_way + max(moments)


def at_loss(cfg: RunConfig, choice: Choice, padded_vocab: int) -> int:
    """Bytes beside what the layers keep while the loss is computed, and its gradient."""
    size = element_bytes(cfg)
    tokens, local = _tokens(cfg, choice)
    hidden = size * local * cfg.model.hidden_size
    columns = padded_vocab // choice.tensor
    logits = tokens * columns
    if cfg.model.cross_entropy_fusion_impl == "linear":
        # Logits of a slice of ids in float32 and their gradient, rounded; that of hidden states in float32.
        return (
            2 * hidden
            + 4 * tokens * cfg.model.hidden_size
            + min(_LOSS_PIECE_BYTES * 3 // 2, (4 + size) * logits)
        )
    return 2 * hidden + size * logits + min(_LOSS_PIECE_BYTES, 4 * logits)


def stage_memory(
    cfg: RunConfig, choice: Choice, padded_vocab: int, ranks: int, accumulation: int, stage: int
) -> Memory:
    """Memory of a rank of a pipeline stage, without what is reserved."""
    count = stage_parameters(cfg.model, padded_vocab, choice.tensor, choice.pipeline, stage)
    data = ranks // (choice.tensor * choice.pipeline)
    size, shards = element_bytes(cfg), data if cfg.parallel.zero_stage == 1 else 1
    # Adam's two moments, and the parameter itself where it is not in float32 anyway.
    optimizer = cfg.optimizer
    state = _FORMAT_BYTES[optimizer.exp_avg_dtype] + _FORMAT_BYTES[optimizer.exp_avg_sq_dtype]
    if size != 4:
        state += 2 if optimizer.store_param_remainders else 4
    under_way = min(accumulation, choice.pipeline - stage)
    tokens = choice.micro * cfg.model.seq_length
    return Memory(
        weights=size * count,
        gradients=_FORMAT_BYTES[cfg.precision.grad_accum_dtype] * count,
        optimizer=state * count // shards,
        activations=max(
            stage_activations(cfg, choice, padded_vocab, under_way, stage == choice.pipeline - 1),
            copied_gradient_bytes(cfg, count),
        ),
        buffers=size * tokens * cfg.model.hidden_size if choice.sequence_parallel else 0,
    )


def copied_gradient_bytes(cfg: RunConfig, parameters: int) -> int:
    """Bytes of the float32 copy that a step makes of gradients in bfloat16 without ZeRO-1.

    It is there when activations are not. With ZeRO-1 gradients are read as they are (trainer/adam.py).
    """
    is_copied = cfg.precision.grad_accum_dtype == "bf16" and cfg.parallel.zero_stage == 0
    return 4 * parameters if is_copied else 0


def fullest_stage(
    cfg: RunConfig, choice: Choice, padded_vocab: int, ranks: int, accumulation: int
) -> tuple[int, Memory]:
    """The stage that needs the most, and its memory; middle stages hold less than the first."""
    stages = {0, choice.pipeline - 1}
    found = {stage: stage_memory(cfg, choice, padded_vocab, ranks, accumulation, stage) for stage in stages}
    fullest = max(sorted(found), key=lambda stage: found[stage].total)
    return fullest, found[fullest]


def element_bytes(cfg: RunConfig) -> int:
    """Bytes of one weight or activation."""
    return {"bfloat16": 2, "float32": 4}[cfg.precision.dtype_name]


def korthikanti_layer(
    tokens: int,
    sequences: int,
    hidden: int,
    heads: int,
    tensor: int,
    *,
    sequence_parallel: bool,
    attention: bool,
) -> float:
    """Bytes that a GPT layer in 16 bits keeps: equations 2 and 4 of the paper; without `attention` section 5.

    `tokens` is s, the length of a sequence, and `sequences` is b.
    """
    sbh = tokens * sequences * hidden
    scores = 5 * heads * tokens / hidden if attention else 0.0
    if sequence_parallel:
        return sbh / tensor * (34 + scores)
    return sbh * (10 + 24 / tensor + scores / tensor)
