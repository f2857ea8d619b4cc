# SPDX-License-Identifier: Apache-2.0
"""Seconds of a layer's kernels on one rank, by kind: matrix products, attention, and what memory bounds.

A matrix product is cut into tiles, a tile for a multiprocessor; tiles go in waves, and a last wave that is
not full costs half of what it lacks (libraries share its work out in part). A kernel that streams takes its
bytes over the memory's rate. Bytes are counted from what each kernel reads and writes, in bfloat16 unless
said; a chain of plain kernels writes and reads everything between them.

Legend: T tokens of a micro-batch, L those of them on this rank between layers, C hidden size, F width of the
MLP, H and K heads of queries and of keys, D head dimension, V vocabulary on this rank.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from megatron.neox_arguments.config import ModelConfig
from megatron.planning.gpus import Gpu
from megatron.planning.memory import Choice
from megatron.planning.rates import Rates
from megatron.planning.software import Software

# Tiles of (rows, columns) that libraries have, and the rate they reach next to the largest: a smaller one
# reads its operands more often. The first is the usual one on Ampere and Hopper (CUTLASS' default).
_TILES = ((128, 256, 1.0), (256, 128, 1.0), (128, 128, 0.92), (64, 128, 0.8), (64, 64, 0.6))
# What a tile costs beside its products, in elements of the inner dimension: filling the pipe, writing out.
_TILE_OVERHEAD = 128

# Bytes of each element of a row, forward and backward. Fused: x in, y out; then x and dy in, dx out. Plain,
# in float32 between: to float32, square, mean, times, back to bfloat16, times the weight.
_NORM_BYTES = {True: (4, 6), False: (36, 72)}
# Fused: in and out, once each way. Plain: x cos + rotate(x) sin, in five kernels.
_ROTARY_BYTES = {True: (4, 4), False: (22, 22)}
# Of each element of the MLP's width: gate and up in, their product out. Plain: silu, product, and in the
# backward pass their derivatives and the joining of two halves.
_SWIGLU_BYTES = {True: (6, 10), False: (10, 24)}
# The sum of the residual stream and a block's output; backward the sum of two gradients.
_RESIDUAL_BYTES = (6, 6)
# Queries, keys and values are cut out of one matrix, and their gradients joined to one.
_SPLIT_BYTES = (4, 4)
# Of each logit. Fused: read once, then read and replaced by its gradient. In pieces: a float32 copy,
# maximum, difference, exponential, sum; backward the same and the product.
_LOSS_BYTES = {True: (2, 4), False: (30, 34)}
# Of each weight and micro-batch: its gradient is read, and the float32 sum read and written. Fused, the
# matrix product does the latter itself.
_ACCUMULATION_BYTES = {True: 6, False: 10}
# With fp8, of each element of a product's input and of its output's gradient: the largest magnitude is
# sought, and all are written in 8 bits, as they are and transposed.
_CAST_BYTES = 6
# Of each weight that this rank updates: gradient, copy and two moments read, the latter three written, the
# bfloat16 weight written from the copy; before that the norm and clipping of gradients. Of each weight of
# this rank: the gradient's buffer is scaled and zeroed.
_UPDATE_BYTES, _BUFFER_BYTES = 46, 12


@dataclass(frozen=True)
class MatrixShape:
    """`[m, k] @ [k, n]` of one rank; m is tokens."""

    name: str
    m: int
    n: int
    k: int

    @property
    def flops(self) -> int:
        return 2 * self.m * self.n * self.k


@dataclass(frozen=True)
class Both:
    """Seconds of the forward and of the backward pass."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward

    def __add__(self, other: Both) -> Both:
        return Both(self.forward + other.forward, self.backward + other.backward)

    def times(self, number: float) -> Both:
        return Both(number * self.forward, number * self.backward)


@dataclass(frozen=True)
class LayerSeconds:
    """One layer and micro-batch on one rank.

    The two matrices that are cut by columns, those after a norm, have collectives beside their gradients:
    `input_gradients` and `weight_gradients` are the seconds of these, attention's matrix first.
    `products` are the four matrices' forward seconds, in order; `norms` and `activation` are of `pointwise`.
    """

    matrices: Both
    attention: Both
    pointwise: Both
    norms: Both
    activation: Both
    products: tuple[float, float, float, float]
    input_gradients: tuple[float, float]
    weight_gradients: tuple[float, float]

    @property
    def total(self) -> Both:
        return self.matrices + self.attention + self.pointwise


def layer_matrices(model: ModelConfig, choice: Choice) -> tuple[MatrixShape, ...]:
    """The four matrix products of a layer's forward pass, on one rank."""
    tokens, hidden = choice.micro * model.seq_length, model.hidden_size
    heads, kv_heads, width = model.num_attention_heads, model.num_kv_heads, model.head_dim
    cut = choice.tensor
    return (
        MatrixShape("queries, keys, values", tokens, max(1, (heads + 2 * kv_heads) * width // cut), hidden),
        MatrixShape("attention's output", tokens, hidden, heads * width // cut),
        MatrixShape("gate and up", tokens, 2 * model.intermediate_size // cut, hidden),
        MatrixShape("down", tokens, hidden, model.intermediate_size // cut),
    )


def attention_flops(model: ModelConfig, choice: Choice) -> int:
    """Of a layer's forward pass on one rank: two products, over the half that is not masked."""
    heads = model.num_attention_heads // choice.tensor
    return 2 * choice.micro * model.seq_length**2 * heads * model.head_dim


class KernelClock:
    """Seconds of kernels on a GPU with given rates."""

    def __init__(self, gpu: Gpu, rates: Rates, software: Software, element_bytes: int) -> None:
        self.rates, self.software, self.element_bytes = rates, software, element_bytes
        self._multiprocessors = gpu.multiprocessors
        self._memory_per_second = gpu.memory_gb_per_second * 1e9 * rates.memory_share
        peak = gpu.bf16_tflops * 1e12
        # Float32 runs on the FP32 units, not on tensor cores: 19.5 to 312 on an A100.
        self._peak = peak if element_bytes == 2 else peak / 16
        self._fp8_rate = gpu.fp8_tflops * 1e12 * rates.fp8_matrix_share * rates.sustained_share
        self.matrix = functools.lru_cache(maxsize=None)(self._matrix)
        self.layer = functools.lru_cache(maxsize=None)(self._layer)

    def _matrix(self, m: int, n: int, k: int, in_fp8: bool = False) -> float:
        """Seconds of `[m, k] @ [k, n]`."""
        rates = self.rates
        per_second = self._peak * rates.matrix_share * rates.sustained_share
        if in_fp8:
            per_second = self._fp8_rate
        seconds = math.inf
        for rows, columns, share in _TILES:
            waves = -(-m // rows) * -(-n // columns) / self._multiprocessors
            paid = max(1.0, (waves + math.ceil(waves)) / 2)
            flops = 2 * rows * columns * (k + _TILE_OVERHEAD) * self._multiprocessors
            seconds = min(seconds, paid * flops / (per_second * share))
        moved = self.element_bytes * (m * k + k * n + m * n)
        seconds = max(seconds, moved / self._memory_per_second, rates.launch_seconds)
        return seconds * self._factor("matrix_products", (m, n, k))

    def stream(self, moved_bytes: float, kernels: int = 1) -> float:
        """Seconds of so many kernels that together move so many bytes, given for bfloat16."""
        moved = moved_bytes * self.element_bytes / 2
        return max(moved / self._memory_per_second, kernels * self.rates.launch_seconds)

    def attention(self, model: ModelConfig, choice: Choice) -> Both:
        """Causal attention of a micro-batch: the backward pass has five products for the forward's two."""
        curve, sustained = self.rates.attention, self.rates.sustained_share * self.rates.attention_factor
        reached = model.seq_length / (model.seq_length + curve.half_tokens) * self._peak * sustained
        flops = attention_flops(model, choice)
        kv_heads = max(1, model.num_kv_heads // choice.tensor)
        heads = model.num_attention_heads // choice.tensor
        shape = (choice.micro, model.seq_length, heads, kv_heads, model.head_dim)
        return Both(
            self._factor("attention forward", shape)
            * max(flops / (reached * curve.forward_share), self.rates.launch_seconds),
            self._factor("attention backward", shape)
            * max(2.5 * flops / (reached * curve.backward_share), self.rates.launch_seconds),
        )

    def pointwise(self, kind: str, rows: int, columns: int) -> Both:
        """`rmsnorm`, `rotary` or `swiglu` of rows x columns, fused or plain as the software has it."""
        tables = {"rmsnorm": _NORM_BYTES, "rotary": _ROTARY_BYTES, "swiglu": _SWIGLU_BYTES}
        is_fused = self.is_fused(kind)
        forward, backward = tables[kind][is_fused]
        kernels = (1, 1) if is_fused else (4, 6)
        shape, how = (rows, columns), "fused" if is_fused else "plain"
        return Both(
            self.stream(rows * columns * forward, kernels[0]) * self._factor(f"{kind} {how} forward", shape),
            self.stream(rows * columns * backward, kernels[1])
            * self._factor(f"{kind} {how} backward", shape),
        )

    def is_fused(self, kind: str) -> bool:
        software = self.software
        return {
            "rmsnorm": software.norm_fused, "rotary": software.rotary_fused, "swiglu": software.swiglu_fused
        }[kind]  # fmt: skip

    def _layer(self, model: ModelConfig, choice: Choice, in_fp8: bool = False) -> LayerSeconds:
        """A layer of a micro-batch, without recomputation and communication; `in_fp8` are its products."""
        shapes = layer_matrices(model, choice)
        products = tuple(self.matrix(shape.m, shape.n, shape.k, in_fp8) for shape in shapes)
        inputs = [self.matrix(shape.m, shape.k, shape.n, in_fp8) for shape in shapes]
        weights = [self.matrix(shape.k, shape.n, shape.m, in_fp8) for shape in shapes]
        accumulated = _ACCUMULATION_BYTES[self.software.gradients_fused]
        added = sum(self.stream(accumulated * shape.n * shape.k) for shape in shapes)
        tokens, cut = choice.micro * model.seq_length, choice.tensor
        norms = self._norms(model, choice)
        activation = self.pointwise("swiglu", tokens, model.intermediate_size // cut)
        others = self._other_pointwise(model, choice) + Both(0.0, added)
        if in_fp8:
            others += Both(
                sum(self.stream(_CAST_BYTES * shape.m * shape.k) for shape in shapes),
                sum(self.stream(_CAST_BYTES * shape.m * shape.n) for shape in shapes),
            )
        assert len(products) == 4
        return LayerSeconds(
            matrices=Both(sum(products), sum(inputs) + sum(weights)),
            attention=self.attention(model, choice),
            pointwise=norms + activation + others,
            norms=norms,
            activation=activation,
            products=products,
            input_gradients=(inputs[0], inputs[2]),
            weight_gradients=(weights[0], weights[2]),
        )

    def _norms(self, model: ModelConfig, choice: Choice) -> Both:
        """The two norms of a layer, and those of queries and keys where it has them."""
        tokens, cut = choice.micro * model.seq_length, choice.tensor
        local = tokens // (cut if choice.sequence_parallel else 1)
        found = self.pointwise("rmsnorm", local, model.hidden_size).times(2)
        if model.qk_norm is not None:
            heads = model.num_attention_heads + model.num_kv_heads
            found += self.pointwise("rmsnorm", tokens, max(1, heads * model.head_dim // cut))
        return found

    def _other_pointwise(self, model: ModelConfig, choice: Choice) -> Both:
        """Rotary embedding, the cutting of queries, keys and values, and the two sums with the residual."""
        tokens, cut = choice.micro * model.seq_length, choice.tensor
        local = tokens // (cut if choice.sequence_parallel else 1)
        heads, kv_heads, width = model.num_attention_heads, model.num_kv_heads, model.head_dim
        found = self.pointwise("rotary", tokens, max(1, (heads + kv_heads) * width // cut))
        split = tokens * (heads + 2 * kv_heads) * width / cut
        found += Both(*(self.stream(moved * split) for moved in _SPLIT_BYTES))
        return found + Both(
            *(2 * self.stream(moved * local * model.hidden_size) for moved in _RESIDUAL_BYTES)
        )

    def embedding(self, model: ModelConfig, choice: Choice) -> Both:
        """Rows are read and written; backward added to the table's float32 gradient."""
        tokens = choice.micro * model.seq_length
        return Both(self.stream(4 * tokens * model.hidden_size), self.stream(10 * tokens * model.hidden_size))

    def cross_entropy(self, rows: int, hidden: int, vocabulary: int) -> Both:
        """Output layer and cross-entropy of `rows` tokens and the part of the vocabulary on this rank."""
        forward, backward = _LOSS_BYTES[self.software.loss_fused]
        shape, how = (rows, hidden, vocabulary), "fused" if self.software.loss_fused else "plain"
        logits = rows * vocabulary
        gradients = self.matrix(rows, hidden, vocabulary) + self.matrix(hidden, vocabulary, rows)
        return Both(
            self._factor(f"loss {how} forward", shape)
            * (self.matrix(rows, vocabulary, hidden) + self.stream(forward * logits)),
            self._factor(f"loss {how} backward", shape) * (gradients + self.stream(backward * logits)),
        )

    def loss(self, model: ModelConfig, choice: Choice, vocabulary: int) -> Both:
        """Last norm, output layer and cross-entropy; `vocabulary` is this rank's part."""
        tokens, hidden = choice.micro * model.seq_length, model.hidden_size
        local = tokens // (choice.tensor if choice.sequence_parallel else 1)
        added = self.stream(_ACCUMULATION_BYTES[self.software.gradients_fused] * hidden * vocabulary)
        last_norm = self.pointwise("rmsnorm", local, hidden)
        return self.cross_entropy(tokens, hidden, vocabulary) + last_norm + Both(0.0, added)

    def update(self, parameters: float) -> float:
        """AdamW of so many weights, their gradients' norm and clipping."""
        seconds = self.stream(2 / self.element_bytes * _UPDATE_BYTES * parameters, 8)
        return seconds * self._factor("optimizers", (max(1.0, parameters),))

    def optimizer(self, parameters: int, shards: int) -> float:
        """The update of `parameters` weights, of which this rank updates one of `shards`."""
        buffers = self.stream(2 / self.element_bytes * _BUFFER_BYTES * parameters, 2)
        return self.update(parameters / shards) + buffers

    def _factor(self, kind: str, shape: tuple[float, ...]) -> float:
        corrections = self.rates.corrections
        return 1.0 if corrections is None else corrections.factor(kind, shape)
