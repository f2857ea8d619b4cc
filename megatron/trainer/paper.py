# SPDX-License-Identifier: Apache-2.0
"""One rank of a run, built and taken through a step on paper, and how many bytes that needs.

`python -m megatron.trainer.paper` is the part of `deepy.py … --plan` that needs torch. It reads an `Order` as
JSON from standard input and answers with one `Measured` for each rank asked for. Model, gradient buffers and
optimizer are those of training (`build`, `wrap`), on the meta device and with a fake process group; then
forward and backward passes run, and every storage is counted from its allocation to its end.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import weakref
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

if __name__ == "__main__":
    # A quick end is all that counts here: a third of the time is the garbage collector's, and nothing is
    # compiled on paper, so that the compiler need not be imported. Both before the engine is.
    gc.disable()
    torch.compile = lambda function=None, **_: function or (lambda inner: inner)  # type: ignore[assignment]

from torch.utils._python_dispatch import TorchDispatchMode

from megatron.backend import Backend
from megatron.backend.paper import initialize_on_paper
from megatron.core import parallel_state
from megatron.model import BuiltModel, build
from megatron.neox_arguments.config import RunConfig
from megatron.planning.memory import copied_gradient_bytes
from megatron.trainer.adam import FusedAdam, give_to_megatron_core
from megatron.trainer.setup import wrap

# Apex's and TransformerEngine's two moments in float32, which are made at the first step.
_MOMENT_BYTES = 8
# Layers, or groups of layers that are kept together, that say what each further one adds.
_FEW, _MORE = 2, 3


@dataclass(frozen=True)
class Measured:
    """A rank's parameters, and bytes by kind. `activations` is the most there was above the other kinds."""

    rank: int
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made while it is active, until each one's memory is given back."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.most = 0
        self._known: set[int] = set()
        self._sizes: dict[int, int] = {}

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Leaves out tensors that were there before."""
        self._known.update(tensor.untyped_storage()._cdata for tensor in tensors)

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        made = function(*arguments, **(keywords or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return made

    def __enter__(self) -> LiveBytes:
        self._resize = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            """What is computed again gives back the memory of a tensor that lives on."""
            before = storage.nbytes()
            made = self._resize(storage, size)
            if storage._cdata in self._sizes:
                self._sizes[storage._cdata] += size - before
                self.now += size - before
                self.most = max(self.most, self.now)
            return made

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*error)

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._given_back, key)

    def _given_back(self, key: int) -> None:
        self._known.discard(key)
        self.now -= self._sizes.pop(key)


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the memory behind the tensors, shared memory counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def measure(cfg: RunConfig, vocab_size: int, padded_vocab_size: int, rank: int, world_size: int) -> Measured:
    """Builds rank `rank` of `world_size` on paper, and takes it through the heaviest moment of a step."""
    backend = initialize_on_paper(cfg.parallel, rank, world_size)
    built = build(cfg, backend, vocab_size, padded_vocab_size, initialize=False)
    parameters = built.parameters_on_rank
    trainable = wrap(cfg, built)
    weights = list(built.module.parameters())
    gradients = [buffer.grad_data for buffer in trainable.model.buffers]
    if trainable.model.use_forward_hook:
        trainable.model.disable_forward_pre_hook(param_sync=False)  # nobody sends parameters on paper
    with trainable.model.no_sync():
        activations = _most_activations(cfg, backend, built, [*weights, *gradients])
    activations = max(activations, copied_gradient_bytes(cfg, parameters))
    return Measured(
        rank=rank,
        parameters=parameters,
        weights=bytes_of(weights),
        gradients=bytes_of(gradients),
        optimizer=optimizer_bytes(trainable.optimizer, weights),
        activations=activations,
        buffers=bytes_of([*_communication_buffers(), *built.module.buffers()]),
    )


def _communication_buffers() -> list[torch.Tensor]:
    """megatron-core's buffers for gathered activations, which stay from step to step."""
    return list(parallel_state.get_global_memory_buffer().buffer.values())


def _most_activations(
    cfg: RunConfig, backend: Backend, built: BuiltModel, there_already: list[torch.Tensor]
) -> int:
    """The most bytes that a step needs above what is there already.

    Every layer adds the same, so two and three of them (or groups of layers that are kept together) say what
    all need, and no step through 80 layers has to be waited for. Layers that are computed again as a whole
    and the others are counted each for themselves.
    """
    decoder: Any = built.module.get_submodule("module.decoder" if built.config.bf16 else "decoder")
    layers = list(decoder.layers)
    whole = cfg.parallel.recomputed_layers
    count = len(layers) if whole is None else whole
    first, rest = layers[:count], layers[count:]
    group = cfg.parallel.checkpoint_num_layers

    def most(of_first: int, of_rest: int) -> int:
        chosen = [*first[:of_first], *rest[:of_rest]]
        decoder.layers = torch.nn.ModuleList(chosen)
        decoder.num_layers_per_pipeline_rank = len(chosen)
        if cfg.parallel.recompute_method == "block":
            built.config.recompute_num_layers = of_first
        buffers = _communication_buffers()
        live = LiveBytes()
        live.ignore([*there_already, *buffers, *built.module.buffers()])
        with live:
            _forward_and_backward(cfg, backend, built)
        return live.most - (bytes_of(_communication_buffers()) - bytes_of(buffers))

    few_first, more_first = _few_and_more(len(first), group)
    few_rest, more_rest = _few_and_more(len(rest), 1)
    found = most(few_first, few_rest)
    if (more_first, more_rest) == (few_first, few_rest):
        return found
    few = most(few_first, few_rest)  # without the tables of angles, which are made once and stay
    if more_first > few_first:
        groups = (len(first) - few_first) // (more_first - few_first)
        found += (most(more_first, few_rest) - few) * groups
    if more_rest > few_rest:
        found += (most(few_first, more_rest) - few) * (len(rest) - few_rest)
    return found


def _few_and_more(layers: int, group: int) -> tuple[int, int]:
    """How many of `layers` alike are taken through a step, and how many to see what more of them add."""
    few, more = _FEW * group, _MORE * group
    return (few, more) if layers > more and layers % group == 0 else (layers, layers)


def optimizer_bytes(optimizer: Any, weights: Iterable[torch.Tensor]) -> int:
    """What the optimizer holds of its own: main parameters of its shard, and their moments."""
    main = [weight for group in optimizer.param_groups for weight in group["params"]]
    shared = {weight.untyped_storage()._cdata for weight in weights}
    inner = [one.optimizer for one in getattr(optimizer, "chained_optimizers", [optimizer])]
    states = [
        state
        for one in inner
        if isinstance(one, FusedAdam)
        for group in one.param_groups
        for weight in group["params"]
        for state in one.state_of(weight).values()
    ]
    own = bytes_of(one for one in [*main, *states] if one.untyped_storage()._cdata not in shared)
    return own + (0 if states else _MOMENT_BYTES * sum(weight.numel() for weight in main))


def _forward_and_backward(cfg: RunConfig, backend: Backend, built: BuiltModel) -> None:
    """As many forward passes as this stage has under way at once, and a backward pass.

    The schedule without interleaving gives stage i of p at most p - i micro-batches (Narayanan et al. 2021,
    section 2.2.1).
    """
    shape = cfg.batch.batch_shape(backend.data_parallel_size)
    model = cfg.model
    under_way = min(shape.accumulation, backend.pipeline_parallel_size - backend.pipeline_parallel_rank)
    tokens_BS = torch.zeros(shape.micro, model.seq_length, dtype=torch.int64, device="meta")
    local = model.seq_length // (cfg.parallel.model_parallel_size if cfg.parallel.sequence_parallel else 1)
    built.module.train()
    outputs = []
    for _ in range(under_way):
        if backend.pipeline_parallel_rank > 0:
            received_SBC = torch.empty(
                local, shape.micro, model.hidden_size, dtype=built.config.params_dtype, device="meta",
                requires_grad=True,
            )  # fmt: skip
            built.module.set_input_tensor(received_SBC)  # type: ignore[operator]
        outputs.append(built.module(tokens_BS, tokens_BS, None, labels=tokens_BS))
    first = outputs[0]
    if backend.is_last_stage:
        first.float().mean().backward()
    else:
        torch.autograd.backward(first, torch.empty_like(first))


def main() -> None:
    order = json.load(sys.stdin)
    cfg = RunConfig.model_validate_json(json.dumps(order["config"]))
    with contextlib.redirect_stdout(sys.stderr):
        give_to_megatron_core()
        found = [
            measure(cfg, order["vocab_size"], order["padded_vocab_size"], rank, order["world_size"])
            for rank in order["ranks"]
        ]
    json.dump([asdict(one) for one in found], sys.stdout)


if __name__ == "__main__":
    main()
