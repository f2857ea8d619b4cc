# SPDX-License-Identifier: Apache-2.0
"""Lets megatron-core run where there is no CUDA device, on the CPU and gloo, with nothing else changed.

megatron-core names CUDA in three ways, and each is reached by the narrowest means that reaches it:

1. functions of `torch.cuda` (streams, events, random state): replaced on the `torch.cuda` module;
2. device literals, `.cuda()` calls and tensor type names inside its source: rewritten while the
   module is imported, in a fixed list of modules, each with the number of places expected there;
3. two helpers of `tensor_parallel.random` that read the generator of a CUDA device.

Seven things more are for speed. The products of linear layers go through `cpu_products.py`, by another
rewriting of their module. torch.compile does not wrap its fused functions, which nothing here calls on a
CPU: importing the compiler takes as long as importing torch. Triton is not imported, where it is installed. A
data parallel group of one rank does not copy its buffers onto themselves, bfloat16 gradients are added to
float32 buffers without a float32 copy of each, torch takes large pages, and a run that trains keeps the
memory that a step frees.

torch's own factories stay as they are: patching those would change them for everybody. The version
and every count are checked, so that another megatron-core is refused instead of half patched.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import importlib.abc
import importlib.machinery
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, ModuleType
from typing import Any, cast

import torch

from megatron.backend.cpu_products import matmul

MEGATRON_CORE_VERSION = "0.16.1"

# Places that name CUDA, by module of megatron-core 0.16.1. A different count means different source.
REWRITES: dict[str, int] = {
    "megatron.core.dist_checkpointing.exchange_utils": 7,
    "megatron.core.dist_checkpointing.strategies.state_dict_saver": 1,
    "megatron.core.distributed.param_and_grad_buffer": 1,
    "megatron.core.models.common.embeddings.rope_utils": 1,
    "megatron.core.models.common.language_module.language_module": 1,
    "megatron.core.optimizer.clip_grads": 6,
    "megatron.core.optimizer.distrib_optimizer": 6,
    "megatron.core.optimizer.grad_scaler": 5,
    "megatron.core.optimizer.optimizer": 9,
    "megatron.core.pipeline_parallel.schedules": 4,
    "megatron.core.pipeline_parallel.utils": 1,
    "megatron.core.rerun_state_machine": 2,
    "megatron.core.tensor_parallel.data": 2,
    "megatron.core.tensor_parallel.layers": 2,
    "megatron.core.transformer.utils": 2,
    "megatron.core.utils": 7,
}

# Products of two matrices there, by module; what has a tensor for its result (`out`) is left alone.
PRODUCTS: dict[str, int] = {"megatron.core.tensor_parallel.layers": 5}
_MATMUL = "matmul_of_cpu_products"  # a name of those modules then

_TENSOR_TYPES = {
    f"torch.cuda.{kind}": f"torch.{kind}" for kind in ("FloatTensor", "HalfTensor", "BFloat16Tensor")
}


class _CudaToCpu(ast.NodeTransformer):
    """Rewrites "cuda" literals, CUDA tensor type names and `.cuda(...)` calls; counts what it did."""

    def __init__(self) -> None:
        self.count = 0

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        new = "cpu" if node.value == "cuda" else None
        if isinstance(node.value, str):
            new = new or _TENSOR_TYPES.get(node.value)
        if new is None:
            return node
        self.count += 1
        return ast.copy_location(ast.Constant(new), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Attribute) and node.func.attr == "cuda"):
            return node
        self.count += 1
        to_cpu = ast.Attribute(node.func.value, "cpu", ast.Load())
        return ast.copy_location(ast.Call(to_cpu, [], []), node)


class _MatmulToOurs(ast.NodeTransformer):
    """Rewrites `torch.matmul(a, b)` and `a.matmul(b)` to a call of ours; counts what it did."""

    def __init__(self) -> None:
        self.count = 0

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Attribute) and node.func.attr == "matmul") or node.keywords:
            return node
        self.count += 1
        owner = node.func.value
        is_torch = isinstance(owner, ast.Name) and owner.id == "torch"
        operands = node.args if is_torch else [owner, *node.args]
        return ast.copy_location(ast.Call(ast.Name(_MATMUL, ast.Load()), operands, []), node)


class _RewritingLoader(importlib.machinery.SourceFileLoader):
    """Compiles one listed module from its rewritten source (never from, or into, a .pyc)."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path))
        for rewriter, expected, what in (
            (_CudaToCpu(), REWRITES[fullname], "places name CUDA"),
            (_MatmulToOurs(), PRODUCTS.get(fullname), "products are computed"),
        ):
            if expected is None:
                continue
            tree = rewriter.visit(tree)
            if rewriter.count != expected:
                raise ImportError(
                    f"{fullname}: {rewriter.count} {what} where megatron-core {MEGATRON_CORE_VERSION} has "
                    f"{expected}; reinstall megatron-core=={MEGATRON_CORE_VERSION}"
                )
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ in PRODUCTS:
            setattr(module, _MATMUL, matmul)
        super().exec_module(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in REWRITES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _RewritingLoader(spec.loader.name, spec.loader.path)
        return spec


class _Event:
    """Stands for a CUDA event where everything is already done when the call returns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def record(self, *args: Any) -> None: ...

    def wait(self, *args: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        return 0.0


class _Stream:
    """Stands for a CUDA stream: work is in order because there is only one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_stream(self, *args: Any) -> None: ...

    def wait_event(self, *args: Any) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, *args: Any) -> _Event:
        return _Event()

    def query(self) -> bool:
        return True


def _replace_torch_cuda() -> None:
    the_stream = _Stream()

    def get_rng_state(device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(new_state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(new_state)

    replacements: dict[str, Any] = {
        "current_device": lambda: torch.device("cpu"),
        "synchronize": lambda *args, **kwargs: None,
        "empty_cache": lambda: None,
        "set_device": lambda device: None,
        "device_count": lambda: 1,
        "manual_seed": lambda seed: torch.default_generator.manual_seed(int(seed)),
        "get_rng_state": get_rng_state,
        "set_rng_state": set_rng_state,
        "Stream": _Stream,
        "Event": _Event,
        "current_stream": lambda *args, **kwargs: the_stream,
        "default_stream": lambda *args, **kwargs: the_stream,
        "stream": lambda stream: contextlib.nullcontext(),
    }
    for name, value in replacements.items():
        setattr(torch.cuda, name, value)
    torch.cuda.nvtx.range_push = lambda *args: None
    torch.cuda.nvtx.range_pop = lambda *args: None


def _replace_random_state_helpers() -> None:
    from megatron.core.tensor_parallel import random

    def get_state(device: Any = None, clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(new_state: torch.Tensor, device: Any = None, graph_safe: bool = False) -> None:
        torch.set_rng_state(new_state)

    random._get_cuda_rng_state = get_state
    random._set_cuda_rng_state = set_state


def _skip_alone(collective: Callable[..., Any]) -> Callable[..., Any]:
    """`collective` (output, input), which a group of one rank does not call when both are one memory.

    NCCL sees that there is nothing to do; gloo copies the whole buffer onto itself, three times a step.
    """

    def call(output: torch.Tensor, source: torch.Tensor, *, group: Any, async_op: bool, **others: Any) -> Any:
        if group.size() == 1 and not async_op and output.data_ptr() == source.data_ptr():
            return None
        return collective(output, source, group=group, async_op=async_op, **others)

    return call


def _spare_collectives_of_one_rank() -> None:
    from megatron.core.distributed import param_and_grad_buffer as buffers

    buffers.dist_all_gather_func = _skip_alone(buffers.dist_all_gather_func)
    buffers.dist_reduce_scatter_func = _skip_alone(buffers.dist_reduce_scatter_func)


# Parameters of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def _leave_triton_out() -> None:
    """Who asks for Triton finds that it is not installed: a CPU has no use for it, its import takes 0.2 s.

    A process that has its kernels interpreted (TRITON_INTERPRET=1), or has imported it before, keeps it.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        sys.modules.setdefault("triton", cast(Any, None))


def _take_large_pages() -> None:
    """torch asks Linux for 2 MiB pages, where a step otherwise spends its time on faults of 4 KiB ones.

    A fresh tensor of 200 MB is filled in 0.03 s instead of 0.33. torch reads the variable at its first
    allocation; whoever set it already is obeyed.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory() -> None:
    """Memory that a step frees stays with the process, for the next step, which asks for the same.

    glibc gives pieces above 32 MB back at once, and each step takes them anew, as pages that Linux fills with
    zeros: with 8.4 M parameters 5% of a step. Without glibc nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(ctypes.c_int(parameter), ctypes.c_int(value))


# Elements converted at once: their float32 copy stays in the processor's cache.
_PIECE_ELEMENTS = 2**17


def _add_in_pieces(total: torch.Tensor, addend: torch.Tensor) -> None:
    """`total += addend`. torch first converts all of `addend` to the dtype of `total`, in fresh memory."""
    if total.dtype == addend.dtype or total.is_meta:
        total.add_(addend)
        return
    pieces = (x.view(-1).split(_PIECE_ELEMENTS) for x in (total, addend.contiguous()))
    for total_piece, addend_piece in zip(*pieces, strict=True):
        total_piece.add_(addend_piece)


def _add_gradients_in_pieces() -> None:
    """megatron-core's hook adds a parameter's gradient unless told that this was done already."""
    from megatron.core.distributed import DistributedDataParallel

    make_hook = DistributedDataParallel._make_backward_post_hook

    def make_sparing_hook(self: Any, parameter: torch.nn.Parameter) -> Callable[..., None]:
        hook = make_hook(self, parameter)

        def call(*arguments: Any) -> None:
            gradient, weight = parameter.grad, cast(Any, parameter)
            # The hook adds the gradient of a tied weight (`zero_out_wgrad`) whatever the flag says.
            is_tied = getattr(weight, "zero_out_wgrad", False)
            if gradient is not None and (is_tied or not weight.grad_added_to_main_grad):
                _add_in_pieces(weight.main_grad, gradient)
                weight.grad_added_to_main_grad, weight.zero_out_wgrad = True, False
            hook(*arguments)
            weight.grad_added_to_main_grad, weight.zero_out_wgrad = False, is_tied

        return call

    DistributedDataParallel._make_backward_post_hook = make_sparing_hook


@contextlib.contextmanager
def _without_torch_compile() -> Iterator[None]:
    """What is decorated with torch.compile in between stays the plain function."""
    compile_ = torch.compile
    torch.compile = cast(Any, lambda function, **_: function)
    try:
        yield
    finally:
        torch.compile = compile_


def install() -> None:
    """Makes megatron-core run on the CPU in this process.

    Raises:
        ImportError: megatron-core has another version, or was imported already.
    """
    version = importlib.metadata.version("megatron-core")
    if version != MEGATRON_CORE_VERSION:
        raise ImportError(
            f"megatron-core is {version}; the CPU engine is written for {MEGATRON_CORE_VERSION}: "
            f"pip install megatron-core=={MEGATRON_CORE_VERSION}"
        )
    if "megatron.core" in sys.modules:
        raise ImportError("megatron.core was imported before megatron.backend: import megatron.backend first")
    _take_large_pages()
    _leave_triton_out()
    _replace_torch_cuda()
    sys.meta_path.insert(0, _Finder())
    with _without_torch_compile():
        importlib.import_module("megatron.core.jit").disable_jit_fuser()  # for what is imported later
    _replace_random_state_helpers()
    _spare_collectives_of_one_rank()
    _add_gradients_in_pieces()
