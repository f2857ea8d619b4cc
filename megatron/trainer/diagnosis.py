# SPDX-License-Identifier: Apache-2.0
"""Why a step's loss or gradient is not finite: the data, the weights, or one rank.

Looked into when it has happened, never before. Every rank looks at its weights and the optimizer's moments,
and computes the step again, one sample at a time and without the sum over data parallel ranks, watching what
each module gives. A bad sample is then computed by every data parallel rank: what is bad everywhere is the
data, what is bad on some ranks only is these ranks. What is good the second time was a fault of the moment.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from megatron.backend import Backend
from megatron.checkpointing.state import Trainable
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.data.loader import MicroBatch, read_micro_batch
from megatron.neox_arguments.config import BatchShape, RunConfig
from megatron.trainer.own_work import OwnWork
from megatron.trainer.setup import TrainingState
from megatron.trainer.step import forward_backward

if TYPE_CHECKING:
    from megatron.data.mcore_datasets import SequenceOrder

_ALONE = BatchShape(micro=1, accumulation=1, data_parallel=1, global_=1)
# Of a sample's gradient in one layer: megatron-core adds the squares of all in float32, which ends at 3.4e38.
_LARGEST_NORM = 1e18
_MOST_NAMED = 8  # parameters, samples or ranks in a sentence

Place = tuple[int, int, str]  # pipeline stage, how many modules of it came before, its name


@dataclass(frozen=True)
class SampleFacts:
    """One sample computed again on one rank."""

    sample_id: int
    loss: float | None  # on the last pipeline stage
    gradient_is_finite: bool
    first_bad: Place | None  # the first module whose output is not finite
    bad_gradient: str | None  # the last parameter, the first on the way back, whose gradient is not finite

    @property
    def is_bad(self) -> bool:
        has_bad_loss = self.loss is not None and not math.isfinite(self.loss)
        return has_bad_loss or not self.gradient_is_finite or self.first_bad is not None


@dataclass(frozen=True)
class RankFacts:
    """What one rank found."""

    rank: int
    data_parallel_rank: int
    pipeline_rank: int
    bad_weights: list[str]
    bad_moments: list[str]
    own_loss_is_finite: bool
    own_gradient_is_finite: bool
    largest_weight: float = math.nan
    samples: list[SampleFacts] = field(default_factory=list)
    cross_check: SampleFacts | None = None
    # layer → norms of this rank's part of its weights and of its gradients, the latter before any sum
    layers: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cause:
    """What is at fault, as far as it is known.

    `kind` is "data", "weights", "rank" or "unknown". `is_hopeless`: the next steps can only fail too.
    """

    kind: str
    text: str
    ranks: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    is_hopeless: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """A cause, and what it was concluded from; equal on every rank."""

    cause: Cause
    facts: list[RankFacts]

    def of_a_spike(self) -> Diagnosis:
        """The same facts about a step whose numbers are finite, and too large."""
        worst = sorted(self.losses().items(), key=lambda item: -item[1])[:3]
        named = ", ".join(f"{sample} ({loss:.4f})" for sample, loss in worst)
        text = f"all numbers are finite; the largest losses, with the weights after it, have samples {named}"
        return Diagnosis(Cause("unknown", text), self.facts)

    def layers(self) -> list[dict[str, Any]]:
        """For each layer the largest norm of a rank's part, and the ranks on which one is not finite."""
        names = list(dict.fromkeys(name for rank in self.facts for name in rank.layers))
        table = []
        for name in names:
            parts = {rank.rank: rank.layers[name] for rank in self.facts if name in rank.layers}
            norms = [[part[place] for part in parts.values()] for place in (0, 1)]
            table.append(
                {
                    "layer": name,
                    "weight_norm": _largest(norms[0]),
                    "gradient_norm": _largest(norms[1]),
                    "not_finite_on_ranks": [
                        rank for rank, part in parts.items() if not all(map(math.isfinite, part))
                    ],
                }
            )
        return table

    def first_not_finite(self) -> dict[str, Any] | None:
        """Where the numbers first went wrong in the second computation, or in the state itself."""
        for rank in self.facts:
            for what, names in (("weights", rank.bad_weights), ("moments", rank.bad_moments)):
                if names:
                    return {"rank": rank.rank, "of": what, "name": names[0]}
        outputs = [
            (sample.first_bad, rank.rank)
            for rank in self.facts
            for sample in rank.samples
            if sample.first_bad is not None
        ]
        if outputs:
            place, at = min(outputs)
            return {"rank": at, "of": "output", "name": place[2]}
        for rank in reversed(self.facts):
            for sample in rank.samples:
                if sample.loss is not None and not math.isfinite(sample.loss):
                    return {"rank": rank.rank, "of": "loss", "name": f"sample {sample.sample_id}"}
                if sample.bad_gradient is not None:
                    return {"rank": rank.rank, "of": "gradient", "name": sample.bad_gradient}
        return None

    def to_json(self) -> dict[str, Any]:
        return {
            "cause": asdict(self.cause),
            "first_not_finite": self.first_not_finite(),
            "layers": self.layers(),
            "ranks": [
                {
                    "rank": rank.rank,
                    "data_parallel_rank": rank.data_parallel_rank,
                    "bad_weights": rank.bad_weights[:_MOST_NAMED],
                    "bad_moments": rank.bad_moments[:_MOST_NAMED],
                    "own_loss_is_finite": rank.own_loss_is_finite,
                    "own_gradient_is_finite": rank.own_gradient_is_finite,
                }
                for rank in self.facts
            ],
        }

    def good_gradients(self) -> dict[int, bool]:
        """Whether the gradient of each sample was finite in the second computation, on every rank."""
        found: dict[int, bool] = {}
        for rank in self.facts:
            for sample in rank.samples:
                found[sample.sample_id] = found.get(sample.sample_id, True) and sample.gradient_is_finite
        return found

    def losses(self) -> dict[int, float]:
        """The loss of each sample in the second computation."""
        return {
            sample.sample_id: sample.loss
            for rank in self.facts
            for sample in rank.samples
            if sample.loss is not None
        }


def _largest(norms: list[float]) -> float:
    return next((norm for norm in norms if not math.isfinite(norm)), max(norms))


def is_sound(trainable: Trainable, backend: Backend) -> bool:
    """Whether all weights and moments are finite, on all ranks: one pass over them, a small reduction."""
    tensors = [tensor for _, tensor in _state_tensors(trainable)]
    largest = torch.stack([norm.float() for norm in torch._foreach_norm(tensors, float("inf"))])
    is_bad = (~torch.isfinite(largest)).any().to(torch.int32)
    dist.all_reduce(is_bad, dist.ReduceOp.MAX)
    return not bool(is_bad)


def _state_tensors(trainable: Trainable) -> Iterator[tuple[str, torch.Tensor]]:
    """("weights" or "moments", tensor): the model's weights, the optimizer's copies and its moments."""
    for parameter in trainable.model.parameters():
        yield "weights", parameter.data
    for part in trainable.optimizer.chained_optimizers:
        for parameter, states in part.optimizer.state.items():
            yield "weights", parameter.data
            for name, state in states.items():
                # The 16 bits that a weight lacks (trainer/adam.py) are no number of their own.
                if torch.is_tensor(state) and state.is_floating_point() and state.numel():
                    yield "weights" if name == "master_param" else "moments", state


def diagnose(
    state: TrainingState,
    cfg: RunConfig,
    backend: Backend,
    data: SequenceOrder,
    batch: Iterable[MicroBatch],
    own_loss: torch.Tensor,
    own_work: OwnWork,
) -> Diagnosis:
    """Called on every rank, after a step whose loss or gradient is not finite. `batch` is the rank's own."""
    own_loss_is_finite, own_gradient_is_finite = (
        bool(torch.isfinite(own_loss)),
        own_work.gradient_is_finite(),
    )
    names = _Names(state.model)
    bad_weights = [
        names.of(name) for name, weight in state.model.named_parameters() if not _is_finite(weight)
    ]
    kinds = {kind for kind, tensor in _state_tensors(state.trainable) if not _is_finite(tensor)}
    if "weights" in kinds and not bad_weights:
        bad_weights = ["the optimizer's copy of the weights"]
    again = _Again(state, cfg, backend, names)
    samples = [again.compute(sample) for micro_batch in batch for sample in _singly(micro_batch)]
    mine = RankFacts(
        rank=backend.rank,
        data_parallel_rank=backend.data_parallel_rank,
        pipeline_rank=backend.pipeline_parallel_rank,
        bad_weights=bad_weights,
        bad_moments=["the optimizer's moments"] if "moments" in kinds else [],
        own_loss_is_finite=own_loss_is_finite,
        own_gradient_is_finite=own_gradient_is_finite,
        largest_weight=max(
            float(torch.linalg.vector_norm(weight.detach(), ord=math.inf))
            for weight in state.model.parameters()
        ),
        samples=samples,
        layers=again.layers(),
    )
    facts = _gathered(mine, backend)
    suspect = min(
        (sample.sample_id for rank in facts for sample in rank.samples if sample.is_bad), default=None
    )
    if suspect is not None:
        crossed = again.compute(read_micro_batch(data, suspect, 1))
        facts = _gathered(RankFacts(**{**vars(mine), "cross_check": crossed}), backend)
    state.model.zero_grad_buffer()
    return Diagnosis(conclude(facts), facts)


def _gathered(mine: RankFacts, backend: Backend) -> list[RankFacts]:
    facts: list[Any] = [None] * backend.world_size
    dist.all_gather_object(facts, mine)
    return facts


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


class _Names:
    """Names as they are in the whole model: without wrappers, layers counted over pipeline stages."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._layers = {
            _unwrapped(name): f"decoder.layers.{module.layer_number - 1}"
            for name, module in model.named_modules()
            if isinstance(module, TransformerLayer)
        }

    def of(self, name: str) -> str:
        short = _unwrapped(name)
        parts = short.split(".")
        layer = self._layers.get(".".join(parts[:3]))
        return short if layer is None else ".".join([layer, *parts[3:]])


def _unwrapped(name: str) -> str:
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def _singly(batch: MicroBatch) -> Iterator[MicroBatch]:
    """Each with the mean over its own tokens in the loss."""
    for i in range(len(batch.sample_ids_B)):
        yield MicroBatch(
            batch.tokens_BS[i : i + 1],
            batch.labels_BS[i : i + 1],
            batch.loss_mask_BS[i : i + 1],
            batch.sample_ids_B[i : i + 1],
        )


class _Again:
    """Computes single samples with this rank's weights, the others of its model's ranks taking part."""

    def __init__(self, state: TrainingState, cfg: RunConfig, backend: Backend, names: _Names) -> None:
        self._state, self._cfg, self._backend, self._names = state, cfg, backend, names
        self._squares: dict[str, tuple[float, float]] = {}

    def compute(self, sample: MicroBatch) -> SampleFacts:
        model = self._state.model
        model.zero_grad_buffer()
        with self._watched() as bad, self._unsummed():
            loss = forward_backward(
                self._state, self._cfg, self._backend, iter([sample]), forward_only=False, shape=_ALONE
            )
        bad_gradients = self._add_norms()
        return SampleFacts(
            sample_id=int(sample.sample_ids_B[0]),
            loss=float(loss) if self._backend.is_last_stage else None,
            gradient_is_finite=not bad_gradients,
            first_bad=bad[0] if bad else None,
            bad_gradient=bad_gradients[-1] if bad_gradients else None,
        )

    def layers(self) -> dict[str, tuple[float, float]]:
        """Norms of this rank's part: of the weights, and of the gradients, the largest of any sample."""
        return {name: (math.sqrt(w), math.sqrt(g)) for name, (w, g) in self._squares.items()}

    def _add_norms(self) -> list[str]:
        """Keeps the norms by layer; returns the parameters whose gradient is not finite."""
        squares: dict[str, tuple[float, float]] = {}
        bad = []
        for name, parameter in self._state.model.named_parameters():
            gradient = parameter.main_grad
            weight_norm, gradient_norm = (
                # In float64: numbers of float32 may all be finite where the sum of their squares is not.
                float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))
                for tensor in (parameter, gradient)
            )
            if not math.isfinite(gradient_norm):
                bad.append(self._names.of(name))
            layer = _layer_of(self._names.of(name))
            before = squares.get(layer, (0.0, 0.0))
            squares[layer] = (before[0] + weight_norm**2, before[1] + gradient_norm**2)
        for layer, (weight, gradient) in squares.items():
            largest = _largest([gradient, self._squares.get(layer, (0.0, 0.0))[1]])
            self._squares[layer] = (weight, largest)
        return bad

    @contextlib.contextmanager
    def _unsummed(self) -> Iterator[None]:
        """Leaves gradients in this rank's buffers, as they are before the sum over data parallel ranks."""
        config = self._state.config
        names = ("no_sync_func", "grad_sync_func", "finalize_model_grads_func")
        before = {name: getattr(config, name) for name in names}
        for name in names:
            setattr(config, name, None)
        try:
            with self._state.model.no_sync():
                yield
        finally:
            for name, value in before.items():
                setattr(config, name, value)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[list[Place]]:
        """Collects the modules whose output is not finite, in the order in which they were done."""
        found: list[Place] = []
        done = 0

        def look(name: str, output: Any) -> None:
            nonlocal done
            done += 1
            for tensor in output if isinstance(output, (tuple, list)) else [output]:
                if torch.is_tensor(tensor) and tensor.is_floating_point() and not _is_finite(tensor):
                    found.append((self._backend.pipeline_parallel_rank, done, self._names.of(name)))
                    return

        handles = [
            module.register_forward_hook(lambda _module, _inputs, output, name=name: look(name, output))
            for name, module in self._state.model.named_modules()
            if name
        ]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


def _layer_of(name: str) -> str:
    """`decoder.layers.3` of `decoder.layers.3.mlp.linear_fc1.weight`."""
    parts = name.split(".")
    return ".".join(parts[:3]) if parts[:2] == ["decoder", "layers"] else ".".join(parts[:-1])


def conclude(facts: list[RankFacts]) -> Cause:
    """The cause that all facts together point to."""
    for kind in ("weights", "moments"):
        bad = {rank.rank: getattr(rank, f"bad_{kind}") for rank in facts}
        ranks = [rank for rank, names in bad.items() if names]
        if ranks:
            text = f"{kind} are not finite on {_ranks(ranks, facts)}: {_some(bad[ranks[0]])}"
            return Cause("weights", text, ranks, is_hopeless=True)
    bad_samples = sorted({s.sample_id for rank in facts for s in rank.samples if s.is_bad})
    if bad_samples:
        return _conclude_from_samples(facts, bad_samples)
    at_fault = [rank.rank for rank in facts if not rank.own_loss_is_finite] or [
        rank.rank for rank in facts if not rank.own_gradient_is_finite
    ]
    if at_fault:
        text = f"a fault of the moment on {_ranks(at_fault, facts)}: the step computed again is finite"
        return Cause("rank", text, at_fault)
    norms = {name: part[1] for rank in facts for name, part in rank.layers.items()}
    name = max(norms, key=lambda layer: norms[layer], default="")
    if name and norms[name] > _LARGEST_NORM:
        text = (
            f"the weights: with them every gradient is finite and too large: the norm of that of {name} is "
            f"{norms[name]:.3g}, and the square of such a number overflows float32"
        )
        return Cause("weights", text, is_hopeless=True)
    text = (
        "every rank's own loss and gradient were finite and their sum was not: an overflow, or the "
        "communication between the ranks"
    )
    return Cause("unknown", text)


def _conclude_from_samples(facts: list[RankFacts], bad_samples: list[int]) -> Cause:
    """Weights are finite, and some samples give numbers that are not, again."""
    everywhere = {s.sample_id for rank in facts for s in rank.samples}
    crossed = {rank.rank: rank.cross_check for rank in facts if rank.cross_check is not None}
    # Of a bad sample every rank of its copy of the model gets something that is not finite; at fault is the
    # one where it began, in which the copies and the ranks of a stage differ only if it is not the data.
    good_copies = {rank.data_parallel_rank for rank in facts} - {
        rank.data_parallel_rank for rank in facts if rank.rank in crossed and crossed[rank.rank].is_bad
    }
    begun = [(check.first_bad, rank) for rank, check in crossed.items() if check.first_bad is not None]
    earliest = min((place[:2] for place, _ in begun), default=None)
    beginners = sorted(rank for place, rank in begun if earliest is not None and place[:2] == earliest)
    stage = {rank.pipeline_rank for rank in facts if rank.rank in beginners}
    of_stage = [rank.rank for rank in facts if rank.pipeline_rank in stage]
    if good_copies:
        if not beginners or len(beginners) == len(of_stage):
            beginners = sorted(rank for rank, check in crossed.items() if check.is_bad)
        return _these_ranks(beginners, facts, bad_samples)
    if beginners and len(beginners) < len(of_stage):
        return _these_ranks(beginners, facts, bad_samples)
    if len(everywhere) > 1 and len(bad_samples) == len(everywhere):
        largest = max(rank.largest_weight for rank in facts)
        text = (
            f"the weights: each is finite, the largest {largest:.3g}, and with them all {len(everywhere)} "
            f"samples give {_what_is_bad(facts)}"
        )
        return Cause("weights", text, samples=bad_samples, is_hopeless=True)
    text = f"the data: finite weights and sample(s) {_some(bad_samples)} give {_what_is_bad(facts)}"
    return Cause("data", text, samples=bad_samples)


def _what_is_bad(facts: list[RankFacts]) -> str:
    """What the bad samples give, on the ranks that have them."""
    bad = [sample for rank in facts for sample in rank.samples if sample.is_bad]
    if any(sample.loss is not None and not math.isfinite(sample.loss) for sample in bad):
        return "a loss that is not finite"
    outputs = [sample.first_bad for sample in bad if sample.first_bad is not None]
    if outputs:
        return f"a finite loss, and an output of {min(outputs)[2]} that is not finite"
    names = [sample.bad_gradient for sample in bad if sample.bad_gradient is not None]
    return f"a finite loss, and a gradient that is not finite, first of {names[-1]}"


def _these_ranks(ranks: list[int], facts: list[RankFacts], bad_samples: list[int]) -> Cause:
    text = (
        f"{_ranks(ranks, facts)}: finite weights give numbers there, every time, that are not, elsewhere not"
    )
    return Cause("rank", text, ranks, bad_samples, is_hopeless=True)


def _ranks(ranks: list[int], facts: list[RankFacts]) -> str:
    if len(ranks) == len(facts) > 1:
        return "every rank"
    return f"rank{'s' if len(ranks) > 1 else ''} {_some(ranks)}" + (" only" if len(facts) > 1 else "")


def _some(names: Iterable[Any]) -> str:
    named = list(names)
    rest = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return ", ".join(map(str, named[:_MOST_NAMED])) + rest
