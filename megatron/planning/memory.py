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

from dataclasses import dataclass

from megatron.neox_arguments.config import ModelConfig, RunConfig
from megatron.planning.flops import layer_parameters

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


def layer_activations(cfg: RunConfig, choice: Choice) -> int:
    """Bytes that one layer keeps for its backward pass."""
    model, size = cfg.model, element_bytes(cfg)
    heads, kv_heads, width = model.num_attention_heads, model.num_kv_heads, model.head_dim
    tokens = choice.micro * model.seq_length
    local = tokens // (choice.tensor if choice.sequence_parallel else 1)
    # rmsnorm keeps its input and a number a row; rmsnorm_neox, made of parts, x in float32 and x / rms.
    norm = size * model.hidden_size + 4 if model.norm == "rmsnorm" else (4 + size) * model.hidden_size + 4
    norms = 2 * local * (norm + size * model.hidden_size)  # and what comes out is kept by the matrix after it
    qkv = size * tokens * (heads + 2 * kv_heads) * width
    turned = size * tokens * (heads + kv_heads) * width
    attended = size * tokens * heads * width + 4 * tokens * heads
    mlp = size * tokens * 3 * model.intermediate_size
    tables = 4 * size * model.seq_length * width  # sines and cosines, for queries and for keys
    return norms + (qkv + turned + attended + mlp) // choice.tensor + tables


def stage_activations(
    cfg: RunConfig, choice: Choice, padded_vocab: int, under_way: int, is_last: bool
) -> int:
    """The most bytes of activations at once on a rank of a pipeline stage.

    `under_way` is the number of micro-batches whose forward pass is done and whose backward pass is not.
    """
    model, size = cfg.model, element_bytes(cfg)
    tokens = choice.micro * model.seq_length
    local = tokens // (choice.tensor if choice.sequence_parallel else 1)
    layers = model.num_layers // choice.pipeline
    hidden = size * local * model.hidden_size
    of_layer = layer_activations(cfg, choice)
    if choice.recompute == "full":
        kept = hidden * -(-layers // choice.checkpoint_num_layers)
        again = of_layer * min(choice.checkpoint_num_layers, layers)
    else:
        kept, again = of_layer * layers, 0
    kept *= under_way
    at_mlp = again + _MLP_TEMPORARIES * size * tokens * model.intermediate_size // choice.tensor + hidden
    logits = tokens * padded_vocab // choice.tensor
    at_loss = 2 * hidden + size * logits + min(_LOSS_PIECE_BYTES, 4 * logits) if is_last else 0
    return kept + max(at_mlp, at_loss)


def stage_memory(
    cfg: RunConfig, choice: Choice, padded_vocab: int, ranks: int, accumulation: int, stage: int
) -> Memory:
    """Memory of a rank of a pipeline stage, without what is reserved."""
    count = stage_parameters(cfg.model, padded_vocab, choice.tensor, choice.pipeline, stage)
    data = ranks // (choice.tensor * choice.pipeline)
    size, shards = element_bytes(cfg), data if cfg.parallel.zero_stage == 1 else 1
    # Adam's two moments in float32, and the parameter itself where it is not in float32 anyway.
    state = 8 if size == 4 else 12
    under_way = min(accumulation, choice.pipeline - stage)
    tokens = choice.micro * cfg.model.seq_length
    return Memory(
        weights=size * count,
        gradients=(4 if cfg.precision.grad_accum_dtype == "fp32" else 2) * count,
        optimizer=state * count // shards,
        activations=stage_activations(cfg, choice, padded_vocab, under_way, stage == choice.pipeline - 1),
        buffers=size * tokens * cfg.model.hidden_size if choice.sequence_parallel else 0,
    )


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
