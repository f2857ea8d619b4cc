# SPDX-License-Identifier: Apache-2.0
"""The sides of the comparison by name: what each needs installed, and what is particular about it.

A side is a function from an `Order` to a `Step`. The optimizer is AdamW in one fused kernel over all
parameters, with the same constants, and the gradient is clipped to the same norm, on every side.

Legend: A micro-batches of a step, B sequences of a micro-batch, S tokens of a sequence.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.training_sides.shapes import Shape

# Of the optimizer, on every side.
LR, BETAS, WEIGHT_DECAY, CLIP = 1e-4, (0.9, 0.95), 0.1, 1.0

# Takes one step on tokens [A, B, S + 1]; returns the loss, [], on the device.
Step = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Order:
    """What is to be built. `keys` are further configuration keys of this engine."""

    shape: Shape
    device: torch.device
    micro: int
    accumulation: int
    dtype: str = "bfloat16"
    keys: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """A side ready to train. `parameters` counts each once; `notes` says what was chosen.

    `configs` have a place for timers, for the named ranges of a trace. `recompute` and `is_fused` are for
    plans that are calibrated with the step.
    """

    step: Step
    parameters: int
    notes: str
    configs: tuple[Any, ...] = ()
    recompute: str = "none"
    is_fused: bool = False


@dataclass(frozen=True)
class Side:
    """`packages` must be importable, the first gives the version."""

    name: str
    module: str
    packages: tuple[str, ...]
    precision: str
    what: str
    options: dict[str, Any] = field(default_factory=dict)
    distribution: str = ""  # of the first package, where it has another name

    def missing(self) -> str | None:
        """The package that is not installed, if any."""
        for package in self.packages:
            try:
                found = importlib.util.find_spec(package) is not None
            except ModuleNotFoundError:  # of the package that it is in
                found = False
            if not found:
                return package
        return None

    def version(self) -> str:
        return importlib.metadata.version(self.distribution or self.packages[0])

    def build(self, order: Order) -> Built:
        module = importlib.import_module(f"benchmarks.training_sides.{self.module}")
        built: Built = module.build(order, **self.options)
        return built


_MASTER = "bf16 weights, fp32 copies, moments and gradients"
_AUTOCAST = "fp32 weights, gradients and moments, bf16 products (autocast)"
_FSDP = _AUTOCAST.replace("autocast", "FSDP's policy")
_ALL = "weights, gradients and moments in the dtype of the run"

SIDES: dict[str, Side] = {
    side.name: side
    for side in (
        Side(
            "engine", "engine_side", ("megatron.core",), _MASTER, "this repository, on megatron-core",
            distribution="megatron-core",
        ),
        Side(
            "engine-compiled", "engine_side", ("megatron.core",), _MASTER, "its layers compiled",
            {"torch_compile": "layer"}, distribution="megatron-core",
        ),
        Side(
            "engine-te", "engine_side", ("megatron.core", "transformer_engine"), _MASTER,
            "TransformerEngine's linear layers", {"transformer_impl": "transformer_engine"},
            distribution="megatron-core",
        ),
        Side(
            "engine-fp8", "engine_side", ("megatron.core", "transformer_engine"), _MASTER,
            "these, with products in fp8", {"fp8_format": "hybrid"}, distribution="megatron-core",
        ),
        Side(
            "engine-fp8-delayed", "engine_side", ("megatron.core", "transformer_engine"), _MASTER,
            "the same, scaled by a history",
            {"fp8_format": "hybrid", "fp8_recipe": "delayed", "fp8_amax_history_len": 1024},
            distribution="megatron-core",
        ),
        Side(
            "transformers-autocast", "transformers_side", ("transformers",), _AUTOCAST,
            "torch.compile, torch's attention", {"autocast": True},
        ),
        Side(
            "transformers-autocast-eager", "transformers_side", ("transformers",), _AUTOCAST,
            "not compiled", {"autocast": True, "compile": False},
        ),
        Side(
            "transformers", "transformers_side", ("transformers",), _ALL,
            "torch.compile, torch's attention", {},
        ),
        Side(
            "transformers-cudnn", "transformers_side", ("transformers",), _ALL,
            "torch.compile, cuDNN's attention by name", {"attention": "cudnn"},
        ),
        Side(
            "transformers-flash-attn", "transformers_side", ("transformers", "flash_attn"), _ALL,
            "torch.compile, flash-attn 2", {"attention": "flash_attention_2"},
        ),
        Side(
            "transformers-flash-attn-3", "transformers_side", ("transformers", "flash_attn_interface"),
            _ALL, "torch.compile, FlashAttention 3", {"attention": "flash_attention_3"},
        ),
        Side(
            "transformers-liger", "transformers_side", ("transformers", "liger_kernel"), _ALL,
            "Liger-Kernel's norms, rotary, SwiGLU and fused loss; not compiled",
            {"liger": True, "compile": False},
        ),
        Side(
            "transformers-eager", "transformers_side", ("transformers",), _ALL, "not compiled",
            {"compile": False},
        ),
        Side(
            "torchtitan", "torchtitan_side", ("torchtitan",), _FSDP,
            "its layers compiled one by one, its attention over documents (varlen)",
        ),
        Side(
            "torchtitan-flex", "torchtitan_side", ("torchtitan",),
            _FSDP,
            "its layers compiled one by one, flex attention, its default", {"attention": "flex"},
        ),
        Side("litgpt", "litgpt_side", ("litgpt",), _ALL, "torch.compile, its chunked loss"),
        Side(
            "litgpt-autocast", "litgpt_side", ("litgpt",), _AUTOCAST, "torch.compile, its chunked loss",
            {"autocast": True},
        ),
        Side(
            "megatron-core", "megatron_core_side", ("megatron.core",), _MASTER,
            "GPTModel with its local specification, attention recomputed, this engine's AdamW",
            distribution="megatron-core",
        ),
        Side(
            "megatron-core-te", "megatron_core_side", ("megatron.core", "transformer_engine"), _MASTER,
            "GPTModel with its TransformerEngine specification and AdamW", {"specification": "te"},
            distribution="megatron-core",
        ),
    )
}  # fmt: skip
