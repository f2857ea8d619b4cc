# SPDX-License-Identifier: Apache-2.0
"""A stand-in for TransformerEngine on a CPU: what megatron-core 0.16.1's wrappers of it call, and no more.

With it megatron-core's own classes (TEColumnParallelLinear, TERowParallelLinear) are built and trained where
there is no GPU: names, shapes, what a checkpoint holds, which layers compute in fp8. Its fp8 rounds weights
and activations to e4m3 with one scale a tensor, and computes with what is left. It says nothing about
TransformerEngine's own arithmetic or speed.
"""

from __future__ import annotations

import contextlib
import enum
import importlib.machinery
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

VERSION = "2.8.0"
_ROUTER = ("fused_compute_score_for_moe_aux_loss", "fused_moe_aux_loss", "fused_topk_with_score_function")
# What was seen, in order: ("fp8", recipe's class), ("buffers", keywords).
seen: list[tuple[str, Any]] = []
_recipe: list[Any] = []  # of the fp8_autocast around, innermost last


class Format(enum.Enum):
    E4M3 = "e4m3"
    HYBRID = "hybrid"


@dataclass
class Recipe:
    fp8_format: Format
    fp8_dpa: bool = False


class Float8CurrentScaling(Recipe): ...


class Float8BlockScaling(Recipe): ...


class MXFP8BlockScaling(Recipe): ...


class DelayedScaling:
    def __init__(self, *, margin: int, amax_history_len: int, amax_compute_algo: str, **others: Any) -> None:
        self.margin, self.amax_history_len, self.amax_compute_algo = (
            margin,
            amax_history_len,
            amax_compute_algo,
        )


class UserBufferQuantizationMode(enum.Enum):
    NONE = "none"
    FP8 = "fp8"


@contextlib.contextmanager
def fp8_autocast(*, enabled: bool, fp8_recipe: Any, fp8_group: Any) -> Iterator[None]:
    assert enabled
    assert fp8_group is not None
    _recipe.append(fp8_recipe)
    try:
        yield
    finally:
        _recipe.pop()


class _Rounded(torch.autograd.Function):
    """e4m3 with the largest magnitude at 448; its gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        scale = 448.0 / x.abs().max().float().clamp(min=1e-12)
        return ((x.float() * scale).to(torch.float8_e4m3fn).float() / scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class Linear(torch.nn.Module):
    """transformer_engine.pytorch.Linear with the keywords of 2.8 that megatron-core gives."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        sequence_parallel: bool,
        fuse_wgrad_accumulation: bool,
        tp_group: Any,
        tp_size: int,
        get_rng_state_tracker: Callable[[], Any] | None,
        init_method: Callable[[torch.Tensor], Any],
        bias: bool,
        return_bias: bool,
        parallel_mode: str | None,
        params_dtype: torch.dtype,
        device: Any,
        rng_tracker_name: str | None,
        ub_overlap_ag: bool = False,
        ub_overlap_rs: bool = False,
        ub_name: str | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.use_bias = in_features, out_features, bias
        self.tp_size, self.parallel_mode, self.sequence_parallel = tp_size, parallel_mode, sequence_parallel
        self.fuse_wgrad_accumulation, self.tp_group = fuse_wgrad_accumulation, tp_group
        self.ub_name, self.save_original_input = ub_name if ub_overlap_ag else None, False
        out = out_features // tp_size if parallel_mode == "column" else out_features
        into = in_features // tp_size if parallel_mode == "row" else in_features
        self.weight = torch.nn.Parameter(torch.empty(out, into, dtype=params_dtype, device=device))
        init_method(self.weight)
        if bias:
            self.bias: Any = torch.nn.Parameter(torch.empty(out, dtype=params_dtype, device=device))
        else:
            self.bias = torch.Tensor().to(dtype=params_dtype, device=device)
        # As TransformerEngine marks them, before megatron-core or anybody else does.
        self.weight.tensor_model_parallel = True  # type: ignore[attr-defined]
        self.weight.partition_dim = 0 if parallel_mode == "column" else 1  # type: ignore[attr-defined]
        self.weight.partition_stride = 1  # type: ignore[attr-defined]

    def get_extra_state(self) -> torch.Tensor:
        return torch.frombuffer(bytearray(pickle.dumps({"history": [1.0]})), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        raise AssertionError("a pickle of a checkpoint was read")

    def forward(self, x_SBK: torch.Tensor, is_first_microbatch: bool | None = None) -> torch.Tensor:
        from megatron.core.tensor_parallel import mappings

        weight_NK = self.weight
        if _recipe:
            seen.append(("fp8", type(_recipe[-1]).__name__))
            x_SBK, weight_NK = _Rounded.apply(x_SBK), _Rounded.apply(weight_NK)
        if self.parallel_mode == "column":
            if self.sequence_parallel:
                x_SBK = mappings.gather_from_sequence_parallel_region(x_SBK)
            else:
                x_SBK = mappings.copy_to_tensor_model_parallel_region(x_SBK)
            return torch.nn.functional.linear(x_SBK, weight_NK, self.bias if self.use_bias else None)
        y_SBN = torch.nn.functional.linear(x_SBK, weight_NK)
        if self.sequence_parallel:
            return mappings.reduce_scatter_to_sequence_parallel_region(y_SBN)
        return mappings.reduce_from_tensor_model_parallel_region(y_SBN)


def _module(name: str, **content: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    for key, value in content.items():
        setattr(module, key, value)
    sys.modules[name] = module
    parent, _, own = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], own, module)
    return module


def _checkpoint(function: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
    from torch.utils.checkpoint import checkpoint

    return checkpoint(function, *arguments, use_reentrant=False)


def become(version: str, can: tuple[bool, str]) -> None:
    """The package of another version, on another GPU: `can` is what it says of every kind of fp8."""
    if "transformer_engine" not in sys.modules:
        install()
    sys.modules["transformer_engine"].__version__ = version  # type: ignore[attr-defined]
    for name in ("fp8", "fp8_block_scaling", "mxfp8"):
        setattr(sys.modules["transformer_engine.pytorch.fp8"], f"check_{name}_support", lambda: can)
    if "megatron.core.utils" in sys.modules:
        sys.modules["megatron.core.utils"]._te_version = None  # type: ignore[attr-defined]


def install() -> None:
    """Puts the package into this process, on a GPU that can do all."""
    assert "megatron.core" not in sys.modules
    pre, can = "transformer_engine", (True, "")
    unused = {name: type(name, (torch.nn.Module,), {}) for name in (
        "LayerNorm", "RMSNorm", "LayerNormLinear", "DotProductAttention", "GroupedLinear",
    )}  # fmt: skip
    _module(pre, __version__=VERSION)
    _module(f"{pre}.common")
    _module(
        f"{pre}.common.recipe",
        Format=Format,
        DelayedScaling=DelayedScaling,
        Float8CurrentScaling=Float8CurrentScaling,
        Float8BlockScaling=Float8BlockScaling,
        MXFP8BlockScaling=MXFP8BlockScaling,
    )
    manager = type("FP8GlobalStateManager", (), {"is_fp8_enabled": staticmethod(lambda: bool(_recipe))})
    _module(f"{pre}.pytorch", Linear=Linear, fp8_autocast=fp8_autocast, **unused)
    _module(
        f"{pre}.pytorch.fp8",
        FP8GlobalStateManager=manager,
        fp8_autocast=fp8_autocast,
        check_fp8_support=lambda: can,
        check_fp8_block_scaling_support=lambda: can,
        check_mxfp8_support=lambda: can,
    )
    _module(
        f"{pre}.pytorch.distributed",
        CudaRNGStatesTracker=type("CudaRNGStatesTracker", (), {}),
        activation_recompute_forward=contextlib.nullcontext,
        checkpoint=_checkpoint,
    )
    _module(f"{pre}.pytorch.tensor", QuantizedTensor=type("QuantizedTensor", (), {}))
    _module(f"{pre}.pytorch.float8_tensor", Float8Tensor=type("Float8Tensor", (), {}))
    _module(f"{pre}.pytorch.ops", Sequential=torch.nn.Sequential, FusibleOperation=torch.nn.Module)
    _module(f"{pre}.pytorch.router", **dict.fromkeys(_ROUTER))
    _module(f"{pre}.pytorch.module")
    _module(
        f"{pre}.pytorch.module.base",
        UserBufferQuantizationMode=UserBufferQuantizationMode,
        initialize_ub=lambda **keywords: seen.append(("buffers", keywords)),
    )


def allow_cpu() -> None:
    """Lets the CPU pass for a CUDA device where TransformerEngine is asked for."""
    from megatron.model import transformer_engine

    load = transformer_engine._load
    transformer_engine._load = lambda key, device: load(key, torch.device("cuda"))
