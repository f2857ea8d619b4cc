# SPDX-License-Identifier: Apache-2.0
"""AdamW with torch's fused kernel, in the shape that megatron-core's distributed optimizer expects.

megatron-core is written for Apex's FusedAdam: the step count lives in the parameter group and a
parameter's state is `exp_avg` and `exp_avg_sq`. With torch's own AdamW, whose step count is a tensor
for each parameter, resuming its distributed optimizer fails in 0.16.1. This class has Apex's shape
and torch's arithmetic, on CUDA and on the CPU, so that checkpoints have one form everywhere.

`PrecisionAwareAdam` is the same with states in 16 bits, a few million numbers at a time: it stands where
megatron-core's precision-aware optimizer has TransformerEngine's FusedAdam, and needs no TransformerEngine.
Checkpoints still hold float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from megatron.trainer.number_formats import StateFormats, chance_of, join, round_stochastically, split

# Numbers that are in float32 at once: on a CPU what its caches hold, on a GPU enough to fill the device.
_PIECE_NUMBERS = {"cpu": 2**18, "cuda": 2**24}

# Numbers whose squares are added at once in float32.
_ROW = 4096


def _kernel_settings(group: dict[str, Any]) -> dict[str, Any]:
    """Keywords of torch's fused kernels from a parameter group."""
    beta1, beta2 = group["betas"]
    return {
        "lr": group["lr"],
        "beta1": beta1,
        "beta2": beta2,
        "weight_decay": group["weight_decay"],
        "eps": group["eps"],
        "amsgrad": False,
        "maximize": False,
    }


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

    def state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
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
            states = [self.state_of(p) for p in parameters]
            step = torch.full((), float(group["step"]), device=parameters[0].device)  # copies nothing there
            tensors: tuple[list[Any], ...] = (
                [p.data for p in parameters],
                [p.grad for p in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [step] * len(parameters),
            )
            self._kernel(*tensors, **_kernel_settings(group))


class PrecisionAwareAdam(FusedAdam):
    """`FusedAdam` whose states are in the formats it is told; it holds the main parameters too.

    Gradients are read from `decoupled_grad`, in whatever dtype they were accumulated in, so that no float32
    copy of them is made. A parameter is what megatron-core's distributed optimizer gives: this rank's shard
    of a weight, which `step` overwrites.
    """

    def __init__(self, params: Iterable[Any], formats: StateFormats, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.formats = formats

    def initialize_state(self, parameter: torch.Tensor) -> None:
        """The name megatron-core calls it by."""
        self.state_of(parameter)

    def state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = self.state[parameter]
        if not state:
            weight = parameter.data
            state["exp_avg"] = torch.zeros_like(weight, dtype=self.formats.exp_avg)
            state["exp_avg_sq"] = torch.zeros_like(weight, dtype=self.formats.exp_avg_sq)
            state["master_param"] = self._first_main(weight)
        return state

    def _first_main(self, weight: torch.Tensor) -> torch.Tensor:
        """What stands for the main parameters where the weights are all there is."""
        if weight.dtype == torch.float32:
            return weight
        return torch.zeros_like(weight, dtype=torch.int16) if self.formats.remainders else weight.float()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient; a group's step count rises by one."""
        assert closure is None
        for group in self.param_groups:
            group["step"] = int(group.get("step", 0)) + 1
            for parameter in group["params"]:
                gradient = getattr(parameter, "decoupled_grad", None)
                if gradient is not None:
                    self._update(parameter.data, gradient, self.state_of(parameter), group)

    def _update(
        self,
        weight: torch.Tensor,
        gradient: torch.Tensor,
        state: dict[str, torch.Tensor],
        group: dict[str, Any],
    ) -> None:
        size = _PIECE_NUMBERS.get(weight.device.type, 2**24)
        step = torch.full((), float(group["step"]), device=weight.device)  # copies nothing there
        tensors = (weight, gradient, state["exp_avg"], state["exp_avg_sq"], state["master_param"])
        pieces = (tensor.view(-1).split(size) for tensor in tensors)
        for its_weight, its_gradient, first, second, kept in zip(*pieces, strict=True):
            self._update_piece(its_weight, its_gradient, first, second, kept, step, group)

    def _update_piece(
        self,
        weight: torch.Tensor,
        gradient: torch.Tensor,
        exp_avg: torch.Tensor,
        exp_avg_sq: torch.Tensor,
        kept: torch.Tensor,
        step: torch.Tensor,
        group: dict[str, Any],
    ) -> None:
        """`kept` is the main parameter, or its remainder; `float()` of float32 is the tensor itself."""
        main = join(weight, kept) if kept.dtype == torch.int16 else kept
        first, second = exp_avg.float(), exp_avg_sq.float()
        tensors: tuple[list[Any], ...] = ([main], [gradient.float()], [first], [second], [], [step])
        self._kernel(*tensors, **_kernel_settings(group))
        for which, (moment, now) in enumerate(((exp_avg, first), (exp_avg_sq, second))):
            if moment is not now:
                moment.copy_(round_stochastically(now, main, chance_of(group["step"], which)))
        _keep_main(main, weight, kept)

    def get_unscaled_state(self, parameter: torch.Tensor, name: str) -> torch.Tensor:
        """A state in float32, as checkpoints have it; megatron-core calls it."""
        state = self.state_of(parameter)[name]
        if state.dtype == torch.int16:
            return join(parameter.data, state)
        return state.float()

    def set_scaled_state(self, parameter: torch.Tensor, name: str, value: torch.Tensor) -> None:
        """Takes over a state of a checkpoint, float32; megatron-core calls it."""
        state = self.state_of(parameter)[name]
        if name == "master_param":
            _keep_main(value.to(state.device), parameter.data, state)
        else:
            state.copy_(value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the tensors as they are: torch would make them of the parameters' dtype."""
        groups = state_dict["param_groups"]
        super().load_state_dict({"state": {}, "param_groups": groups})
        numbers = [number for group in groups for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            if number in state_dict["state"]:
                state = state_dict["state"][number]
                if parameter.dtype == torch.float32:
                    state["master_param"] = parameter.data
                self.state[parameter] = state


def _keep_main(main: torch.Tensor, weight: torch.Tensor, kept: torch.Tensor) -> None:
    """Puts main parameters where they are kept, and the weights that they round to."""
    if kept.dtype == torch.int16:
        rounded, remainders = split(main)
        weight.copy_(rounded)
        kept.copy_(remainders)
        return
    if kept is not main:
        kept.copy_(main)
    if weight.dtype != kept.dtype:
        weight.copy_(kept)


@contextlib.contextmanager
def precision_aware(formats: StateFormats) -> Iterator[None]:
    """While it lasts, megatron-core builds optimizers that keep their states in `formats`."""
    import megatron.core.optimizer as core_optimizer
    from megatron.core.optimizer import distrib_optimizer

    def make(params: Iterable[Any], **settings: Any) -> PrecisionAwareAdam:
        return PrecisionAwareAdam(params, formats, **settings)

    before = core_optimizer.Adam, distrib_optimizer.Adam
    core_optimizer.Adam, distrib_optimizer.Adam = make, PrecisionAwareAdam
    try:
        yield
    finally:
        core_optimizer.Adam, distrib_optimizer.Adam = before


def _norm(
    chunk_size: int, overflow: torch.Tensor, tensors: list[list[torch.Tensor]], per_tensor: bool
) -> tuple[torch.Tensor, None]:
    """Apex's `multi_tensor_l2norm` as the gradient's norm calls it, [1], float32 whatever the gradients are.

    megatron-core's own substitute has a bfloat16 norm of each bfloat16 gradient, and waits for the device
    once for each tensor.
    """
    if tensors[0][0].device.type == "cpu":
        norms = [norm for tensor in tensors[0] for norm in _norms_of_rows(tensor)]
    else:
        norms = [torch.stack(torch._foreach_norm(tensors[0], 2, dtype=torch.float32))]
    return torch.linalg.vector_norm(torch.cat(norms), dtype=torch.float64).float().reshape(1), None


def _norms_of_rows(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """float32 norms that have the norm of `tensor`: of rows, and of what is left.

    On a CPU torch adds all squares in few float32 sums: the norm of 134 million numbers is 1.4% too small.
    """
    numbers = tensor.flatten()
    whole = numbers.numel() // _ROW * _ROW
    yield torch.linalg.vector_norm(numbers[:whole].view(-1, _ROW), dim=1, dtype=torch.float32)
    yield torch.linalg.vector_norm(numbers[whole:], dtype=torch.float32).reshape(1)


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
    clip_grads.l2_norm_impl = _norm
    return "optimizer: torch's fused AdamW (neither Apex nor TransformerEngine is installed)"
