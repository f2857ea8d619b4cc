# SPDX-License-Identifier: Apache-2.0
"""torchtitan's Llama 3 classes with another network's sizes, made parallel over one GPU as its trainer does.

Its `parallelize_llama` compiles the layers one by one and puts them under FSDP, which with one GPU only keeps
float32 weights and computes in bfloat16. Written for torchtitan 0.3.0, whose API changes between versions;
on a CPU it ends in flex attention, which has no backward pass there.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from benchmarks.training_sides import plain_step as steps
from benchmarks.training_sides.shapes import Shape
from benchmarks.training_sides.sides import Built, Order


def _model_config(shape: Shape, attention: str) -> Any:
    from torchtitan.models import llama3
    from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm

    if shape.heads * shape.head_dim != shape.hidden:
        raise NotImplementedError(
            "torchtitan's Llama has heads that fill the hidden size, and a rank's do not"
        )
    ones, normal = {"weight": torch.nn.init.ones_}, {"weight": torch.nn.init.normal_}
    small = {"weight": lambda weight: torch.nn.init.normal_(weight, std=shape.hidden**-0.5)}
    return llama3.Llama3Model.Config(
        dim=shape.hidden,
        vocab_size=shape.vocab,
        tok_embeddings=Embedding.Config(
            num_embeddings=shape.vocab, embedding_dim=shape.hidden, param_init=normal
        ),
        norm=RMSNorm.Config(normalized_shape=shape.hidden, param_init=ones),
        lm_head=Linear.Config(in_features=shape.hidden, out_features=shape.vocab, param_init=small),
        layers=llama3._build_llama3_layers(
            n_layers=shape.layers,
            dim=shape.hidden,
            n_heads=shape.heads,
            n_kv_heads=shape.kv_heads,
            hidden_dim=shape.ffn,
            rope=ComplexRoPE.Config(dim=shape.head_dim, max_seq_len=shape.tokens, theta=10000),
            attn_backend=attention,
        ),
    )


def build(order: Order, attention: str | None = None, compile: bool = True) -> Built:
    import torch.distributed as dist
    from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig
    from torchtitan.distributed import ParallelDims
    from torchtitan.models import llama3

    on_gpu = order.device.type == "cuda"
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    attention = attention or ("varlen" if on_gpu else "flex")
    shape, parallelism = order.shape, ParallelismConfig()
    with torch.device("meta"):
        model: Any = _model_config(shape, attention).build()
    dims = ParallelDims.from_config(parallelism, 1)
    dims.build_mesh()
    model = llama3.parallelize_llama(
        model,
        parallel_dims=dims,
        training=TrainingConfig(
            local_batch_size=order.micro, seq_len=shape.tokens, mixed_precision_param=order.dtype
        ),
        parallelism=parallelism,
        compile_config=CompileConfig(enable=compile),
        ac_config=None,
        dump_folder="",
    )
    model.to_empty(device=order.device)
    with torch.no_grad():
        model.init_weights(buffer_device=None)
    model.train()
    positions_BS = torch.arange(shape.tokens, device=order.device).expand(order.micro, -1)
    masks = model.get_attention_masks(positions_BS)

    def loss_of(tokens_BS: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
        logits_BSV = model(tokens_BS, positions_BS, masks)
        return cross_entropy(logits_BSV, labels_BS)

    def plain_cross_entropy(logits_BSV: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
        # As torchtitan.components.loss.cross_entropy_loss, as a mean.
        return torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1).float(), labels_BS.flatten())

    cross_entropy = torch.compile(plain_cross_entropy) if compile else plain_cross_entropy
    parameters = sum(math.prod(parameter.shape) for parameter in model.parameters())
    return Built(steps.plain_step(model, loss_of), parameters, f"attention {attention}; recompute none")
