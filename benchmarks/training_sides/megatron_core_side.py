# SPDX-License-Identifier: Apache-2.0
"""Plain megatron-core: its GPTModel, its local (or TransformerEngine's) specification, loss and schedule.

Its own attention keeps a matrix of tokens times tokens for each head, so attention is recomputed with the
local specification, as its users have to. On a CPU the engine's patches for megatron-core stand below it.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.training_sides.sides import BETAS, CLIP, LR, WEIGHT_DECAY, Built, Order


def _transformer_config(order: Order, specification: str) -> Any:
    from megatron.core.transformer.transformer_config import TransformerConfig

    shape, on_gpu = order.shape, order.device.type == "cuda"
    dtype = torch.bfloat16 if order.dtype == "bfloat16" else torch.float32
    is_local = specification == "local"
    recompute: dict[str, Any] = (
        {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]} if is_local else {}
    )
    return TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_query_groups=shape.kv_heads,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        use_cpu_initialization=not on_gpu,
        bias_activation_fusion=on_gpu,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=not is_local,
        **recompute,
    )


def _optimizer(model: Any, dtype: torch.dtype) -> Any:
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    return get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=LR,
            weight_decay=WEIGHT_DECAY,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            clip_grad=CLIP,
            bf16=dtype == torch.bfloat16,
            params_dtype=dtype,
            use_distributed_optimizer=True,
        ),
        [model],
    )


def build(order: Order, specification: str = "local") -> Built:
    from megatron.backend import initialize  # before megatron.core, which it patches where there is no GPU
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.models.gpt import gpt_layer_specs
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.module import Float16Module
    from megatron.neox_arguments.config import ParallelConfig
    from megatron.trainer.adam import give_to_megatron_core

    initialize(ParallelConfig(), seed=0)
    # The same for both sides; plain megatron-core would take torch's unfused one.
    adam = give_to_megatron_core()
    config = _transformer_config(order, specification)
    specifications = {
        "local": lambda: gpt_layer_specs.get_gpt_layer_local_spec(normalization="RMSNorm"),
        "te": gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec,
    }
    shape = order.shape
    module: Any = GPTModel(
        config,
        specifications[specification](),
        vocab_size=shape.vocab,
        max_sequence_length=shape.tokens,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
    ).to(order.device)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    module = Float16Module(config, module) if config.bf16 else module
    buffers = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True)
    model = DistributedDataParallel(config, buffers, module)
    optimizer = _optimizer(model, config.params_dtype)
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    step = _step(order, model, optimizer)
    return Built(step, parameters, f"specification {specification}; {adam}", (config, optimizer.config))


def _step(order: Order, model: Any, optimizer: Any) -> Any:
    from megatron.core.pipeline_parallel import get_forward_backward_func

    tokens = order.shape.tokens
    positions_BS = torch.arange(tokens, device=order.device).expand(order.micro, tokens)
    above_diagonal = torch.ones(tokens, tokens, dtype=torch.bool, device=order.device).triu(1)

    def forward(batches: Any, model: Any) -> Any:
        sequences_BS = next(batches)
        loss_BS = model(
            sequences_BS[:, :-1].contiguous(), positions_BS, above_diagonal[None, None],
            labels=sequences_BS[:, 1:].contiguous(),
        )  # fmt: skip

        def mean(loss_BS: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            loss = loss_BS.float().mean()
            return loss, {"loss": loss.detach().clone()}

        return loss_BS, mean

    def step(sequences_ABS: torch.Tensor) -> torch.Tensor:
        model.train()
        model.zero_grad_buffer()
        optimizer.zero_grad()
        reports = get_forward_backward_func()(
            forward_step_func=forward, data_iterator=iter(sequences_ABS), model=model,
            num_microbatches=len(sequences_ABS), seq_length=tokens, micro_batch_size=order.micro,
            forward_only=False,
        )  # fmt: skip
        with torch.profiler.record_function("optimizer"):
            optimizer.step()
        return torch.stack([report["loss"] for report in reports]).mean()

    return step
