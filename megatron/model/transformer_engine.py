# SPDX-License-Identifier: Apache-2.0
"""TransformerEngine's linear layers in place of megatron-core's: fp8, and communication beside products.

They are megatron-core's own wrappers (megatron.core.extensions.transformer_engine), unfused: a norm stays a
module of its own, where TransformerEngine could join it with the product after it. So weights have the names
and shapes they have without TransformerEngine, in bfloat16, and a checkpoint of either is one of both. What
TransformerEngine would add to a checkpoint, the largest magnitudes that `fp8_recipe: delayed` remembers, is
a pickle, which nothing here reads: a resumed run collects them anew.

Imported only where a run asks for it.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
from typing import Any

import torch

from megatron.core.utils import get_te_version, is_te_min_version
from megatron.model.linear import LinearLayers
from megatron.model.norms import NormedOutput
from megatron.neox_arguments.config import AccelerationConfig, RunConfig
from megatron.neox_arguments.errors import UserError

# The release in which each recipe came, and the function by which TransformerEngine says whether GPU, CUDA
# and cuBLAS can do it (megatron-core 0.16.1, fp8_utils.get_fp8_recipe; transformer_engine/pytorch/fp8.py).
_RECIPES = {
    "delayed": ("1.0.0", "check_fp8_support"),
    "tensorwise": ("2.2.0", "check_fp8_support"),
    "blockwise": ("2.3.0", "check_fp8_block_scaling_support"),
    "mxfp8": ("2.1.0", "check_mxfp8_support"),
}


def linear_layers(cfg: RunConfig, device: torch.device, has_apex_gradients: bool) -> LinearLayers:
    """TransformerEngine's linear layers.

    `has_apex_gradients` says whether the output layer, which is megatron-core's, can fuse as well.

    Raises:
        UserError: TransformerEngine is not installed or does not load, or the GPU is too old; with a remedy.
    """
    asked = cfg.acceleration
    engine = _load(_asking_key(asked), device)
    if asked.fp8_format is not None:
        _check_fp8(asked)
    fuses = asked.gradient_accumulation_fusion is not False
    column, row = engine.TEColumnParallelLinear, engine.TERowParallelLinear
    if fuses:
        column, row = _fusing(column), _fusing(row)
    return LinearLayers(
        column,
        row,
        type("NormedTERowParallelLinear", (NormedOutput, row), {}),
        tuple(_in_words(asked, fuses=fuses)),
        {
            "gradient_accumulation_fusion": fuses and has_apex_gradients,
            "tp_comm_overlap": asked.tp_comm_overlap,
            **(_fp8_keys(asked) if asked.fp8_format is not None else {}),
        },
        functools.partial(start_user_buffers, cfg) if asked.tp_comm_overlap else None,
    )


def start_user_buffers(cfg: RunConfig, data_parallel_size: int) -> None:
    """Makes the buffers over which tensor parallel ranks write to each other beside their products.

    Called by every rank once its groups are there, before layers are built.

    Raises:
        UserError: the GPUs or the driver cannot.
    """
    base: Any = importlib.import_module("transformer_engine.pytorch.module.base")
    asked = cfg.acceleration
    is_fp8 = asked.fp8_format is not None
    shape = [
        cfg.model.seq_length * cfg.batch.batch_shape(data_parallel_size).micro,
        cfg.model.hidden_size,
    ]
    if is_te_min_version("2.7.0"):
        mode = base.UserBufferQuantizationMode
        modes = [mode.FP8 if is_fp8 else mode.NONE]
        if is_fp8 and asked.first_last_layers_bf16:
            modes.append(mode.NONE)
        numbers: dict[str, Any] = {"quantization_modes": modes}
    else:
        numbers = {"use_fp8": is_fp8}
    try:
        base.initialize_ub(
            shape=shape,
            tp_size=cfg.parallel.model_parallel_size,
            ub_cfgs={},
            bootstrap_backend="nccl",
            **numbers,
        )
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"tp_comm_overlap=true: TransformerEngine's buffers do not start here ({_first_line(error)}); "
            "remove the key, or see docs/gpus.md"
        ) from error


def _asking_key(asked: AccelerationConfig) -> str:
    """The key for whose sake TransformerEngine is needed, with its value."""
    if asked.fp8_format is not None:
        return f"fp8_format={asked.fp8_format}"
    return "tp_comm_overlap=true" if asked.tp_comm_overlap else "transformer_impl=transformer_engine"


def _load(key: str, device: torch.device) -> Any:
    """megatron-core's wrappers, over a TransformerEngine that is there."""
    if device.type != "cuda":
        raise UserError(
            f"{key}: TransformerEngine computes on CUDA devices, and this run on the CPU; remove the key"
        )
    if importlib.util.find_spec("transformer_engine") is None:
        raise UserError(
            f"{key}: TransformerEngine is not installed; "
            "pip install --no-build-isolation 'transformer_engine[pytorch]' (docs/gpus.md), or remove the key"
        )
    try:
        importlib.import_module("transformer_engine.pytorch")
    except Exception as error:  # a library of another CUDA or torch may fail in any way
        raise UserError(
            f"{key}: TransformerEngine is installed and does not load ({_first_line(error)}); install one "
            "that is built for this torch and CUDA (docs/gpus.md), or remove the key"
        ) from error
    engine = importlib.import_module("megatron.core.extensions.transformer_engine")
    if not engine.HAVE_TE:
        raise UserError(
            f"{key}: TransformerEngine {get_te_version()} has not the modules that megatron-core 0.16.1 asks "
            "it for; install another release (docs/gpus.md), or remove the key"
        )
    return engine


def _check_fp8(asked: AccelerationConfig) -> None:
    """Refuses a recipe that this TransformerEngine or this GPU does not have."""
    least, check = _RECIPES[asked.fp8_recipe]
    if not is_te_min_version(least):
        raise UserError(
            f"fp8_recipe={asked.fp8_recipe}: needs TransformerEngine {least} or newer; install it, or use "
            "fp8_recipe: delayed"
        )
    fp8: Any = importlib.import_module("transformer_engine.pytorch.fp8")
    can, why = getattr(fp8, check)()
    if not can:
        raise UserError(
            f"fp8_format={asked.fp8_format}: fp8_recipe={asked.fp8_recipe} does not run on this GPU ({why}); "
            "use another recipe (docs/gpus.md), or remove the key and compute in bfloat16"
        )


def _fp8_keys(asked: AccelerationConfig) -> dict[str, Any]:
    """What megatron-core's configuration says of fp8. Its `fp8` is the format; weights stay in bfloat16."""
    return {
        "fp8": asked.fp8_format,
        "fp8_recipe": asked.fp8_recipe,
        "fp8_margin": asked.fp8_margin,
        "fp8_amax_history_len": asked.fp8_amax_history_len,
        "fp8_amax_compute_algo": asked.fp8_amax_compute_algo,
        "fp8_wgrad": asked.fp8_wgrad,
        "first_last_layers_bf16": asked.first_last_layers_bf16,
        "num_layers_at_start_in_bf16": asked.num_layers_at_start_in_bf16,
        "num_layers_at_end_in_bf16": asked.num_layers_at_end_in_bf16,
    }


def _fusing(layer: type) -> type:
    """`layer`, which adds its weight's gradient in the product that computes it.

    The layer is built with a configuration of its own: what megatron-core's says goes for the output layer as
    well, which needs another kernel for it.
    """

    def build(self: Any, *arguments: Any, config: Any, **keywords: Any) -> None:
        own = copy.copy(config)
        own.gradient_accumulation_fusion = True
        layer.__init__(self, *arguments, config=own, **keywords)  # type: ignore[misc]

    return type(layer.__name__, (layer,), {"__init__": build})


def _in_words(asked: AccelerationConfig, *, fuses: bool) -> list[str]:
    lines = [f"linear layers: TransformerEngine {get_te_version()} ({_asking_key(asked)})"]
    if asked.fp8_format is not None:
        ends = ""
        if asked.first_last_layers_bf16:
            first, last = asked.num_layers_at_start_in_bf16, asked.num_layers_at_end_in_bf16
            ends = f"; the first {first} and the last {last} layers in bfloat16"
        lines.append(
            f"fp8: {asked.fp8_format}, {asked.fp8_recipe} scales; norms, attention, embedding and output "
            f"layer in bfloat16{ends}"
        )
        if asked.fp8_recipe == "delayed":
            lines.append("note: fp8_recipe=delayed: its history starts anew with each start of a run")
    by = "in TransformerEngine's products" if fuses else "by name"
    lines.append(f"gradient accumulation fusion: {'on' if fuses else 'off'} ({by})")
    return lines


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
