# SPDX-License-Identifier: Apache-2.0
"""First weights of a model trained from scratch: drawn by parameter name, then cut for this rank.

A name's hash seeds its own generator, so that a weight does not depend on the layout, the number of
layers on a rank or the order of construction. megatron-core's own initialisation cuts gate and up in
one piece, and TP 1 and TP 2 would start as different functions.
"""

from __future__ import annotations

import hashlib
import math

import torch

from megatron.backend import Backend
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from megatron.model.norms import ProjectionNorm
from megatron.neox_arguments.config import ModelConfig

_CUT_BY_ROWS = ("linear_qkv.weight", "linear_qkv.bias", "word_embeddings.weight", "output_layer.weight")
_CUT_BY_COLUMNS = ("linear_proj.weight", "linear_fc2.weight")
_GATE_AND_UP = "linear_fc1.weight"


def global_name(name: str, layer_offset: int) -> str:
    """A parameter's name with its layer counted over the whole pipeline, wrappers removed."""
    parts = [part for part in name.split(".") if part != "module"]
    if "layers" in parts:
        position = parts.index("layers") + 1
        parts[position] = str(int(parts[position]) + layer_offset)
    return ".".join(parts)


def mark_cut_weights(llama: torch.nn.Module) -> None:
    """Tells megatron-core which weights are cut over tensor parallel ranks.

    It marks them only while initialising them itself, and counts an unmarked weight once in the norm of
    the gradient, as if every rank held the same: clipping would then depend on the layout.
    """
    cut_norms = {f"{name}.weight" for name, part in llama.named_modules() if isinstance(part, ProjectionNorm)}
    for name, weight in llama.named_parameters():
        dimension = 1 if name.endswith(_CUT_BY_COLUMNS) else 0
        if name.endswith((_GATE_AND_UP, *_CUT_BY_ROWS, *_CUT_BY_COLUMNS)) or name in cut_norms:
            for attribute in ("tensor_model_parallel", "partition_dim", "partition_stride"):
                if hasattr(weight, attribute):
                    delattr(weight, attribute)
            set_tensor_model_parallel_attributes(weight, True, dimension, 1)


def _draw(name: str, shape: list[int], std: float, seed: int) -> torch.Tensor:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(shape, generator=generator) * std


def _cut(name: str, full: torch.Tensor, ranks: int, rank: int) -> torch.Tensor:
    if name.endswith(_GATE_AND_UP):
        gate_and_up = full.view(2, -1, full.size(1))
        return gate_and_up.chunk(ranks, 1)[rank].reshape(-1, full.size(1))
    if name.endswith(_CUT_BY_ROWS):
        return full.chunk(ranks, 0)[rank]
    if name.endswith(_CUT_BY_COLUMNS):
        return full.chunk(ranks, 1)[rank]
    return full


@torch.no_grad()
def initialize_by_name(llama: torch.nn.Module, model: ModelConfig, backend: Backend, seed: int) -> None:
    """Fills this rank's weights: norms with ones, biases with zeros, matrices from a normal distribution.

    The standard deviation is `init_std`, divided by sqrt(2 * num_layers) for the two matrices
    that write into the residual stream (Radford et al. 2019, GPT-2, section 2.3).
    """
    ranks, rank = backend.tensor_parallel_size, backend.tensor_parallel_rank
    offset = get_transformer_layer_offset(llama.config)
    for local_name, weight in llama.named_parameters():
        name = global_name(local_name, offset)
        if not model.no_weight_tying and name == "output_layer.weight":
            name = "embedding.word_embeddings.weight"  # the last stage's copy of a tied embedding
        if weight.dim() == 1:
            weight.fill_(0.0 if name.endswith(".bias") else 1.0)
            continue
        std = model.init_std
        if name.endswith(_CUT_BY_COLUMNS):
            std /= math.sqrt(2 * model.num_layers)
        shape = list(weight.shape)
        if name.endswith((_GATE_AND_UP, *_CUT_BY_ROWS)):
            shape[0] *= ranks
        elif name.endswith(_CUT_BY_COLUMNS):
            shape[1] *= ranks
        weight.copy_(_cut(name, _draw(name, shape, std, seed), ranks, rank))
