# SPDX-License-Identifier: Apache-2.0
"""RMSNorm in two forms: Llama's, and the one GPT-NeoX had when Llemma was trained; and where OLMo 2 has it.

    rmsnorm       x * w / sqrt(mean(x^2) + eps)       Zhang & Sennrich 2019; Llama
    rmsnorm_neox  x * w / (sqrt(mean(x^2)) + eps)     GPT-NeoX; what Llemma trained with

Shapes: x is [S, B, D] (tokens, sequences, hidden); w is [D]. A norm of queries or keys reads [S, B, H, D],
where H are this rank's heads and D is the head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.tensor_parallel.layers import RowParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

# (x [..., D], weight_D, eps) -> [..., D], in the dtype of x
NormKernel = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


class _FusedOnPaper(torch.autograd.Function):
    """What a fused CUDA kernel keeps and makes, on the meta device, where torch has only its parts."""

    @staticmethod
    def forward(ctx: Any, x_SBD: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x_SBD, weight_D, x_SBD.new_empty(*x_SBD.shape[:-1], 1, dtype=torch.float32))
        return torch.empty_like(x_SBD)

    @staticmethod
    def backward(ctx: Any, grad_SBD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x_SBD, weight_D, _ = ctx.saved_tensors
        return torch.empty_like(x_SBD), torch.empty_like(weight_D)


def fused_norm_on_paper(x_SBD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    on_paper: torch.Tensor = _FusedOnPaper.apply(x_SBD, weight_D)
    return on_paper


def _gathered(x_SBD: torch.Tensor) -> torch.Tensor:
    """The same x, whose gradients are added to each other before they meet that of the residual stream.

    A norm made of parts, as torch's is on a CPU, uses x more than once. Without this the order of the sum,
    and the last bit of a gradient, would depend on whether the norm is computed again (model/recompute.py).
    """
    return x_SBD.view_as(x_SBD)


class RMSNorm(torch.nn.Module):
    """Llama's RMSNorm, with the constructor that megatron-core's layer specification calls.

    megatron-core's own torch norm refuses sequence parallelism; here the weight says that its
    gradient is to be summed over the tensor parallel ranks, which is all that is needed.
    `kernel` computes the norm; `plain` does where none is given.
    """

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float = 1e-5,
        *,
        kernel: NormKernel | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.kernel = self.plain if kernel is None else kernel
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x_SBD: torch.Tensor) -> torch.Tensor:
        return self.kernel(x_SBD, self.weight, self.eps)

    @staticmethod
    def plain(x_SBD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
        """torch's own, one kernel on CUDA."""
        if x_SBD.is_meta:
            return fused_norm_on_paper(x_SBD, weight_D, eps)
        return torch.nn.functional.rms_norm(_gathered(x_SBD), weight_D.shape, weight_D, eps)

    @classmethod
    def formula(cls, x_SBD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
        """As it is written above, in the dtype of `x_SBD`: what kernels are compared with."""
        return x_SBD / cls.root(x_SBD.pow(2).mean(-1, keepdim=True), eps) * weight_D

    @staticmethod
    def root(mean_square: torch.Tensor, eps: float) -> torch.Tensor:
        """What x is divided by."""
        return (mean_square + eps).sqrt()


class NeoxRMSNorm(RMSNorm):
    """GPT-NeoX's RMSNorm: eps is added to the root, not under it."""

    @staticmethod
    def plain(x_SBD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
        """In torch's operations: no library has this form as one kernel."""
        x_float = _gathered(x_SBD).float()
        root = NeoxRMSNorm.root(x_float.pow(2).mean(-1, keepdim=True), eps)
        return (x_float / root).to(x_SBD.dtype) * weight_D

    @staticmethod
    def root(mean_square: torch.Tensor, eps: float) -> torch.Tensor:
        """What x is divided by."""
        return mean_square.sqrt() + eps


NORMS: dict[str, type[RMSNorm]] = {"rmsnorm": RMSNorm, "rmsnorm_neox": NeoxRMSNorm}


class ProjectionNorm(torch.nn.Module):
    """OLMo 2's norm of queries or keys: over all heads of the model, which lie on several ranks.

    Each rank has the weights of its own heads. The sum of squares is all that ranks tell each other, and,
    as every rank divides by it, its gradient is summed over them too.
    """

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float = 1e-5,
        *,
        norm: type[RMSNorm],
        heads: int,
    ) -> None:
        """`hidden_size` is the head dimension (megatron-core's name for it), `heads` those of the model."""
        super().__init__()
        ranks = parallel_state.get_tensor_model_parallel_world_size()
        assert heads % ranks == 0, "a head on two ranks would be counted twice"
        self.eps, self.root, self.width = eps, norm.root, heads * hidden_size
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        weight_D = torch.ones(self.width // ranks, dtype=config.params_dtype, device=device)
        self.weight = torch.nn.Parameter(weight_D)

    def forward(self, x_SBHD: torch.Tensor) -> torch.Tensor:
        x_SBD = x_SBHD.flatten(2).float()
        squares_SB1 = reduce_from_tensor_model_parallel_region(x_SBD.pow(2).sum(-1, keepdim=True))
        squares_SB1 = copy_to_tensor_model_parallel_region(squares_SB1)
        normed_SBD = x_SBD / self.root(squares_SB1 / self.width, self.eps) * self.weight
        return normed_SBD.to(x_SBHD.dtype).view_as(x_SBHD)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Tells megatron-core's checkpoints that the weight is cut over tensor parallel ranks."""
        state: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True), prefix, {"weight": 0}, sharded_offsets
        )
        return state


class NormedOutput(torch.nn.Module):
    """Before a row-parallel class, a norm of what it adds to the residual stream: OLMo 2's."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        config: TransformerConfig,
        norm: Callable[..., RMSNorm],
        **kwargs: Any,
    ) -> None:
        super().__init__(input_size, output_size, config=config, **kwargs)
        self.post_norm = norm(config, output_size, eps=config.layernorm_epsilon)

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        output_SBD, bias = super().forward(input_)
        assert bias is None
        return self.post_norm(output_SBD), None


class NormedRowParallelLinear(NormedOutput, RowParallelLinear):
    """The last matrix of attention or MLP, with that norm."""
