# SPDX-License-Identifier: Apache-2.0
"""AdamW with torch's fused kernel, in the shape that megatron-core's distributed optimizer expects.

megatron-core is written for Apex's FusedAdam: the step count lives in the parameter group and a
parameter's state is `exp_avg` and `exp_avg_sq`. With torch's own AdamW, whose step count is a tensor
for each parameter, resuming its distributed optimizer fails in 0.16.1. This class has Apex's shape
and torch's arithmetic, on CUDA and on the CPU, so that checkpoints have one form everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class FusedAdam(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019), or Adam with `adam_w_mode=False`; all moments in float32."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        bias_correction: bool = True,
        **_: Any,
    ) -> None:
        assert bias_correction, "torch's fused kernel always corrects the bias"
        self._kernel = torch._fused_adamw_ if adam_w_mode else torch._fused_adam_
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": True,
        }
        super().__init__(params, defaults)

    def _state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = self.state[parameter]
        if not state:
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = torch.zeros_like(parameter.data, dtype=torch.float32)
        return state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient; a group's step count rises by one."""
        assert closure is None
        for group in self.param_groups:
            group["step"] = int(group.get("step", 0)) + 1
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            states = [self._state_of(p) for p in parameters]
            step = torch.tensor(float(group["step"]), device=parameters[0].device)
            beta1, beta2 = group["betas"]
            self._kernel(
                [p.data for p in parameters],
                [p.grad for p in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [step] * len(parameters),
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )


def _scale_in_place(
    chunk_size: int, overflow: torch.Tensor, tensors: list[list[torch.Tensor]], scale: float
) -> None:
    """Apex's `multi_tensor_scale` as clipping calls it, from gradients into the same gradients.

    megatron-core's own substitute makes a scaled copy of each and copies it back.
    """
    sources, targets = tensors
    assert all(source is target for source, target in zip(sources, targets, strict=True))
    torch._foreach_mul_(targets, scale)


def give_to_megatron_core() -> str:
    """Makes megatron-core build its optimizers on Apex's Adam, or on this one. Returns which, and why."""
    import megatron.core.optimizer as core_optimizer
    from megatron.core.optimizer import clip_grads, distrib_optimizer

    if not core_optimizer.USING_PYTORCH_OPTIMIZER:
        return f"optimizer: {core_optimizer.Adam.__module__.split('.')[0]}'s FusedAdam (installed)"
    core_optimizer.Adam = distrib_optimizer.Adam = FusedAdam
    core_optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = True
    distrib_optimizer.USING_APEX_OPTIMIZER = True
    clip_grads.multi_tensor_scale_impl = _scale_in_place
    return "optimizer: torch's fused AdamW (neither Apex nor TransformerEngine is installed)"
