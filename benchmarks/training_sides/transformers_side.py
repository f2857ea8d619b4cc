# SPDX-License-Identifier: Apache-2.0
"""transformers' Llama with its loss, compiled as one function."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from benchmarks.training_sides import plain_step as steps
from benchmarks.training_sides.sides import Built, Order


def build(
    order: Order, autocast: bool = False, attention: str = "sdpa", compile: bool = True, liger: bool = False
) -> Built:
    from transformers import LlamaConfig, LlamaForCausalLM

    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    shape = order.shape
    config = LlamaConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.ffn,
        vocab_size=shape.vocab,
        max_position_embeddings=max(shape.tokens, 2048),
        tie_word_embeddings=shape.tied,
        use_cache=False,
        attn_implementation=attention if attention.startswith("flash_attention") else "sdpa",
    )
    torch.manual_seed(0)
    weights = torch.bfloat16 if order.dtype == "bfloat16" and not autocast else torch.float32
    before = torch.get_default_dtype()
    torch.set_default_dtype(weights)
    try:
        with order.device:
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.train()

    def loss_of(tokens_BS: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
        # transformers moves labels by one itself; these are moved already.
        loss: torch.Tensor = model(tokens_BS, labels=labels_BS, shift_labels=labels_BS).loss
        return loss

    contexts = [steps.autocast(order.device)] if autocast else []
    contexts += [steps.attention_by_name(attention)] if attention in ("cudnn", "flash") else []

    def around() -> ExitStack:
        stack = ExitStack()
        for context in contexts:
            stack.enter_context(context())
        return stack

    step = steps.plain_step(model, torch.compile(loss_of) if compile else loss_of, around=around)
    return Built(step, steps.count(model), f"attention {attention}; recompute none")
