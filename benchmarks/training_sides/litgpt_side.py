# SPDX-License-Identifier: Apache-2.0
"""litgpt's GPT as a Llama, compiled, with the loss that its trainer takes."""

from __future__ import annotations

import torch

from benchmarks.training_sides import plain_step as steps
from benchmarks.training_sides.sides import Built, Order


def build(order: Order, autocast: bool = False, compile: bool = True) -> Built:
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    shape = order.shape
    config = Config(
        block_size=shape.tokens,
        n_layer=shape.layers,
        n_embd=shape.hidden,
        n_head=shape.heads,
        n_query_groups=shape.kv_heads,
        head_size=shape.head_dim,
        intermediate_size=shape.ffn,
        vocab_size=shape.vocab,
        padded_vocab_size=shape.vocab,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=1e-5,
        mlp_class_name="LLaMAMLP",
    )
    torch.manual_seed(0)
    weights = torch.bfloat16 if order.dtype == "bfloat16" and not autocast else torch.float32
    with order.device:
        model = GPT(config).to(weights)
    for parameter in model.parameters():  # its own weights are drawn by its trainer
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    model.train()
    compiled = torch.compile(model) if compile else model

    def loss_of(tokens_BS: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = chunked_cross_entropy(compiled(tokens_BS), labels_BS)
        return loss

    around = {"around": steps.autocast(order.device)} if autocast else {}
    step = steps.plain_step(model, loss_of, **around)
    return Built(step, steps.count(model), "attention torch's; loss in chunks; recompute none")
