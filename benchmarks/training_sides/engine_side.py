# SPDX-License-Identifier: Apache-2.0
"""This engine, through the functions that its training loop calls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from benchmarks.training_sides.sides import BETAS, CLIP, LR, WEIGHT_DECAY, Built, Order


def configuration(order: Order) -> Any:
    """The run; `order.keys` may be of any concern and win over what stands here."""
    from megatron.neox_arguments.config import RunConfig, fields

    concern_of = {name: concern for concern, name, _ in fields()}
    concerns: dict[str, dict[str, Any]] = {
        "model": dict(order.shape.model_keys()),
        "precision": {"precision": {"float32": "fp32"}.get(order.dtype, order.dtype)},
        "batch": {
            "train_micro_batch_size_per_gpu": order.micro,
            "gradient_accumulation_steps": order.accumulation,
        },
        "optimizer": {
            "lr": LR,
            "adam_beta1": BETAS[0],
            "adam_beta2": BETAS[1],
            "weight_decay": WEIGHT_DECAY,
            "gradient_clipping": CLIP,
        },
        "schedule": {"train_iters": 1000},
    }
    for key, value in order.keys.items():
        if key not in concern_of:
            raise SystemExit(f"error: --set {key}: no such configuration key")
        concerns.setdefault(concern_of[key], {})[key] = value
    return RunConfig.model_validate(concerns)


class Training:
    """A model in training on this process alone."""

    def __init__(self, order: Order) -> None:
        from megatron.backend import initialize
        from megatron.model import build as build_model
        from megatron.trainer.adam import give_to_megatron_core
        from megatron.trainer.fitting import settle_recompute
        from megatron.trainer.setup import TrainingState, wrap

        cfg = configuration(order)
        self.backend = initialize(cfg.parallel, seed=0)
        self.cfg = settle_recompute(cfg, self.backend, order.shape.vocab, print)
        self.adam = give_to_megatron_core()
        self.built = build_model(self.cfg, self.backend, order.shape.vocab, order.shape.vocab)
        self.state = TrainingState(self.built, wrap(self.cfg, self.built))
        self._mask_BS = torch.ones(order.micro, order.shape.tokens, device=order.device)
        self._ids_B = torch.arange(order.micro)

    def step(self, sequences_ABS: torch.Tensor) -> torch.Tensor:
        """One step, as the loop takes it; the loss, []."""
        from megatron.data.loader import MicroBatch
        from megatron.trainer.step import (
            compute_gradients,
            gradient_norm,
            read_sums,
            sum_over_ranks,
            update_weights,
        )

        batch = [
            MicroBatch(
                sequences_BS[:, :-1].contiguous(),
                sequences_BS[:, 1:].contiguous(),
                self._mask_BS,
                self._ids_B,
            )
            for sequences_BS in sequences_ABS
        ]
        told = sum_over_ranks(
            compute_gradients(self.state, self.cfg, self.backend, iter(batch)), [], self.backend
        )
        with torch.profiler.record_function("optimizer"):
            grad_norm = gradient_norm(self.state)
            loss, _ = read_sums(told, self.backend)
            update_weights(self.state, self.cfg, LR, grad_norm)
        return torch.tensor(loss)


def build(order: Order, **keys: Any) -> Built:
    """`keys` are those of a side, `order.keys` those of the command, which win."""
    from megatron.trainer.trace import optimizer_configs

    training = Training(replace(order, keys={**keys, **order.keys}))
    built, recompute = training.built, training.cfg.parallel.recompute
    kernels = "; ".join([built.attention.describe(), *built.fused.describe(), *built.accelerators])
    return Built(
        training.step,
        built.parameters_on_rank,
        f"recompute {recompute}; {kernels}; {training.adam}",
        (built.config, *optimizer_configs(training.state.trainable.optimizer)),
        recompute=recompute,
        is_fused=built.fused.rotary.name != "plain",
    )
