# SPDX-License-Identifier: Apache-2.0
"""Layers compiled by torch.compile: `torch_compile: layer`.

Each layer's `forward` is replaced on the layer itself, so names of weights stay, and everything around a
layer (recomputation, pipelines, gradient buffers) sees a layer as before. All layers share their compiled
code. With tensor parallelism a layer is compiled in pieces: between them megatron-core's products and
collectives run as they are.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterable
from typing import Any

import torch

from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import UserError

# What compiles the graphs; tests take a faster one.
BACKEND = "inductor"


def compile_layers(layers: Iterable[torch.nn.Module], wanted: str, device: torch.device) -> tuple[str, ...]:
    """Compiles each of `layers` at its first call, where that is `wanted`; says so for the log.

    Raises:
        UserError: there is no C++ compiler, which torch.compile needs on a CPU.
    """
    if wanted == "none":
        return ()
    if device.type == "cpu" and not has_cpp_compiler():
        raise UserError(
            f"torch_compile={wanted}: torch.compile needs a C++ compiler on a CPU, and there is no g++ or "
            "clang++; install one, or set CXX, or remove the key"
        )
    _prepare_compiler()
    for layer in layers:
        # Through setattr, because a method is not to be assigned to; a module keeps it out of its state.
        setattr(layer, "forward", torch.compile(layer.forward, dynamic=False, backend=BACKEND))  # noqa: B010
    return ("torch.compile: each layer, at its first call (torch_compile=layer)",)


def has_cpp_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def _prepare_compiler() -> None:
    import torch._dynamo.config as dynamo

    # megatron-core warns of its own defaults in the middle of a layer, which would cut the graph there.
    dynamo.ignore_logging_functions.add(warnings.warn)
    # A layer that is compiled anew too often would be run as it is, and nothing would be said.
    dynamo.fail_on_recompile_limit_hit = True


def without_compilation(cfg: RunConfig) -> contextlib.AbstractContextManager[Any]:
    """Layers run as they are inside: who listens to the modules in a compiled layer would hear nothing."""
    if cfg.acceleration.torch_compile == "none":
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")
