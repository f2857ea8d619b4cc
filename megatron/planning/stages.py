# SPDX-License-Identifier: Apache-2.0
"""A micro-batch on a rank of a pipeline stage: its kernels, what is computed again, what waits for others.

Tensor parallel collectives of a layer, each of the hidden states of a micro-batch. With sequence parallelism
they are gathered before the two matrices cut by columns and reduced and scattered after the two cut by rows:
4 in the forward pass, which waits for each. In the backward pass 2 gathers of the latter's gradients are
waited for; the input of the former is gathered again while the gradient of that input is computed, and that
gradient is reduced while the weights' is (Korthikanti et al. 2022, section 4.2.2; megatron-core's
`LinearWithGradAccumulationAndAsyncCommunication`). Without sequence parallelism 2 all-reduces are waited for
forward, and 2 run beside the weights' gradients backward.

With `tensor_overlap` (Transformer Engine's userbuffers) a collective that would be waited for goes in as many
pieces as there are ranks beside the matrix product next to it: only one piece is waited for, and what is
longer than the product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron.neox_arguments.config import ModelConfig
from megatron.planning.kernels import Both, KernelClock, LayerSeconds
from megatron.planning.memory import Choice
from megatron.planning.rings import Ring
from megatron.planning.software import Software

_NOTHING = Both(0.0, 0.0)


@dataclass(frozen=True)
class StageSeconds:
    """Seconds of a micro-batch by what they are spent on. `tensor` is waited for, `tensor_hidden` is not.

    `beside` is how much longer kernels take that a collective runs beside; `tensor_bytes` is what the rank
    sends to those that share its layers.
    """

    matrices: Both
    attention: Both
    pointwise: Both
    ends: Both
    recompute: float
    tensor: Both
    tensor_hidden: float
    beside: float
    tensor_bytes: float

    @property
    def forward(self) -> float:
        kinds = (self.matrices, self.attention, self.pointwise, self.ends, self.tensor)
        return sum(kind.forward for kind in kinds)

    @property
    def backward(self) -> float:
        kinds = (self.matrices, self.attention, self.pointwise, self.ends, self.tensor)
        return sum(kind.backward for kind in kinds) + self.recompute + self.beside

    @property
    def total(self) -> float:
        return self.forward + self.backward


@dataclass(frozen=True)
class Waits:
    """Collectives of one layer: what is waited for, what is hidden."""

    waited: Both
    hidden: Both


def stage_seconds(
    clock: KernelClock,
    model: ModelConfig,
    choice: Choice,
    ring: Ring,
    layers: int,
    *,
    vocabulary: int,
    is_first: bool,
    is_last: bool,
    first_layer: int = 0,
) -> StageSeconds:
    """A micro-batch on a stage of `layers` layers; `vocabulary` is the rank's part of the padded one.

    `first_layer` is the number, in the model, of the stage's first layer: those at the ends of the model may
    be of another format than the others.
    """
    hidden_bytes = clock.element_bytes * choice.micro * model.seq_length * model.hidden_size
    matrices, attention, pointwise, tensor, hidden, again = _NOTHING, _NOTHING, _NOTHING, _NOTHING, 0.0, 0.0
    for in_fp8, number, whole in _formats(clock.software, model, choice, layers, first_layer):
        layer = clock.layer(model, choice, in_fp8)
        waits = _layer_waits(clock, layer, choice, ring, hidden_bytes)
        kernels, again_waits = recomputed(layer, waits, choice, number, whole, clock.software.stops_early)
        matrices += layer.matrices.times(number)
        attention += layer.attention.times(number)
        pointwise += layer.pointwise.times(number)
        tensor += waits.waited.times(number) + Both(0.0, again_waits)
        hidden += number * waits.hidden.total
        again += kernels
    ends, end_waits = _NOTHING, _NOTHING
    if is_first:
        ends += clock.embedding(model, choice)
        end_waits += _end_wait(choice, ring, hidden_bytes)
    if is_last:
        ends += clock.loss(model, choice, vocabulary)
        end_waits += _end_wait(choice, ring, hidden_bytes)
    sent = collectives(choice, layers, ends=int(is_first) + int(is_last))
    return StageSeconds(
        matrices=matrices,
        attention=attention,
        pointwise=pointwise,
        ends=ends,
        recompute=again,
        tensor=tensor + end_waits,
        tensor_hidden=hidden,
        beside=clock.rates.slowdown_beside_collectives * hidden,
        tensor_bytes=sent * hidden_bytes * (choice.tensor - 1) / choice.tensor,
    )


def _formats(
    software: Software, model: ModelConfig, choice: Choice, layers: int, first_layer: int
) -> Iterator[tuple[bool, int, int]]:
    """Whether products are in 8 bits, how many layers of the stage are so, how many of these it does again.

    Those that are computed again as a whole are the first of a stage.
    """
    begin, end = software.fp8_layers(first_layer, layers, model.num_layers)
    whole = choice.whole_layers(layers)
    in_fp8, again_in_fp8 = end - begin, max(0, min(end, whole) - begin)
    for found in ((True, in_fp8, again_in_fp8), (False, layers - in_fp8, whole - again_in_fp8)):
        if found[1]:
            yield found


def collectives(choice: Choice, layers: int, ends: int) -> float:
    """How often a rank gathers, or reduces and scatters, hidden states; an all-reduce is both.

    10 of a layer with sequence parallelism, 4 all-reduces without, and what is computed again; an end of the
    model has one each way.
    """
    whole, modules = choice.whole_layers(layers), choice.recompute_modules
    again = whole + (0.5 * (layers - whole) if "mlp" in modules else 0.0)
    of_end = 1 if choice.sequence_parallel else 2
    return (10 if choice.sequence_parallel else 8) * layers + 4 * again + 2 * of_end * ends


def recomputed(
    layer: LayerSeconds, waits: Waits, choice: Choice, layers: int, whole: int, stops_early: bool
) -> tuple[float, float]:
    """Seconds of kernels, and of collectives, that the backward pass repeats of the forward pass.

    Of `layers` such layers it repeats `whole`, and of the others what `choice` names.
    """
    modules = frozenset(choice.recompute_modules)
    parts = {
        "core_attn": layer.attention.forward,
        "layernorm": layer.norms.forward,
        "mlp_act": layer.activation.forward,
        "mlp": layer.products[2] + layer.products[3] + layer.activation.forward,
    }
    of_rest = sum(parts[module] for module in modules)
    of_rest -= parts["mlp_act"] if {"mlp", "mlp_act"} <= modules else 0.0
    # The MLP is half of a layer's collectives.
    waited = whole + (0.5 * (layers - whole) if "mlp" in modules else 0.0)
    of_whole = layer.total.forward - (layer.products[3] if stops_early else 0.0)
    return whole * of_whole + (layers - whole) * of_rest, waited * waits.waited.forward


def _layer_waits(
    clock: KernelClock, layer: LayerSeconds, choice: Choice, ring: Ring, hidden_bytes: float
) -> Waits:
    if choice.tensor == 1:
        return Waits(_NOTHING, _NOTHING)
    if not choice.sequence_parallel:
        one = ring.all_reduce(hidden_bytes)
        shown = sum(max(0.0, one - beside) for beside in layer.weight_gradients)
        return Waits(Both(2 * one, shown), Both(0.0, 2 * one - shown))
    one = ring.gather(hidden_bytes)
    beside = (*layer.input_gradients, *layer.weight_gradients)
    shown = sum(max(0.0, one - product) for product in beside)
    waited, hidden = Both(4 * one, 2 * one + shown), Both(0.0, 4 * one - shown)
    if clock.software.tensor_overlap:
        forward = sum(_pieces(one, product, choice.tensor) for product in layer.products)
        backward = sum(_pieces(one, product, choice.tensor) for product in layer.products[1::2])
        hidden += Both(4 * one - forward, 2 * one - backward)
        waited = Both(forward, backward + shown)
    return Waits(waited, hidden)


def _pieces(collective: float, product: float, pieces: int) -> float:
    """What is waited for of a collective that goes in pieces beside a product."""
    return max(collective / pieces, collective - product)


def _end_wait(choice: Choice, ring: Ring, hidden_bytes: float) -> Both:
    """The embedding's sum, or the gathering for the output layer: one each way."""
    if choice.tensor == 1:
        return _NOTHING
    one = ring.gather(hidden_bytes) if choice.sequence_parallel else ring.all_reduce(hidden_bytes)
    return Both(one, one)


def without_tensor(stage: StageSeconds) -> StageSeconds:
    """The same on a rank that waits for nobody, as one GPU does that stands for a rank."""
    return replace(stage, tensor=_NOTHING, tensor_hidden=0.0, beside=0.0, tensor_bytes=0.0)
