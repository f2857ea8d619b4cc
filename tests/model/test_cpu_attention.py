# SPDX-License-Identifier: Apache-2.0
"""Attention on a CPU against the formula in float64, and which of its two kernels is taken."""

from __future__ import annotations

import pytest
import torch

from megatron.model import cpu_attention
from megatron.model.attention import AttentionShape, attention_task, choose_attention
from megatron.model.attention_kernels import Kernel, Settings, math_attention, sdpa
from megatron.model.cpu_attention import attention_on_cpu
from megatron.model.kernel_choice import Tensors, relative_difference

needs_bfloat16 = pytest.mark.skipif(
    not cpu_attention.has_bfloat16_products(), reason="this CPU has no bfloat16 products"
)
# Whole blocks, a rest, one query in the last block; one KV head, several, as many as queries.
SHAPES = [
    AttentionShape(128, 2, 4, 2, 16),
    AttentionShape(200, 1, 6, 1, 24),
    AttentionShape(193, 3, 2, 2, 8),
]


def results(kernel: Kernel, inputs: Tensors, how: Settings) -> list[torch.Tensor]:
    """The output and the gradients of q, k, v."""
    out = kernel(inputs[0], inputs[1], inputs[2], how)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad(out, list(inputs), weights)]


def inputs_of(shape: AttentionShape, dtype: torch.dtype) -> Tensors:
    return attention_task(shape, torch.device("cpu"), dtype).inputs(False)


def worst_error(shape: AttentionShape, dtype: torch.dtype, how: Settings) -> float:
    inputs = inputs_of(shape, dtype)
    exact = results(math_attention, [x.detach().double().requires_grad_() for x in inputs], how)
    found = results(attention_on_cpu, inputs, how)
    return max(relative_difference(*pair) for pair in zip(found, exact, strict=True))


@pytest.fixture
def only_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "sdpa", None)


@pytest.fixture
def only_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "block_attention", None)


@pytest.mark.usefixtures("only_blocks")
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_are_the_formula_in_float32(shape: AttentionShape, scale: float | None) -> None:
    assert worst_error(shape, torch.float32, Settings(scale)) < 1e-6


@needs_bfloat16
@pytest.mark.usefixtures("only_blocks")
@pytest.mark.parametrize("shape", SHAPES)
def test_in_bfloat16_they_are_as_near_to_the_formula_as_a_flash_kernel(shape: AttentionShape) -> None:
    """One rounding is 2^-9, 1.1e-3 in the mean of squares: a result has up to four of them."""
    assert worst_error(shape, torch.bfloat16, Settings()) < 4.5e-3


@needs_bfloat16
@pytest.mark.usefixtures("only_blocks")
def test_large_scores_are_not_rounded() -> None:
    """Scores of 60 and more, which bfloat16 would round by a quarter, and their exponentials by as much."""
    q, k, v = inputs_of(SHAPES[0], torch.bfloat16)
    q, k = q.detach() * 6, k.detach() * 3
    exact = math_attention(q.double(), k.double(), v.double(), Settings())
    assert relative_difference(attention_on_cpu(q, k, v, Settings()), exact) < 4.5e-3


def elements_kept(tokens: int) -> tuple[int, int]:
    """How many numbers a call keeps for the backward pass, and how many it was given."""
    inputs = inputs_of(AttentionShape(tokens, 1, 2, 2, 8), torch.float32)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attention_on_cpu(inputs[0], inputs[1], inputs[2], Settings())
    return sum(kept), sum(x.numel() for x in inputs)


@pytest.mark.usefixtures("only_blocks")
def test_of_long_sequences_nothing_is_kept_but_what_was_given() -> None:
    """Not the square of the tokens: 576 * 576 is 72 times q."""
    kept, given = elements_kept(576)
    assert kept == given


@pytest.mark.usefixtures("only_blocks")
def test_of_short_ones_probabilities_are_kept() -> None:
    """Of two heads and 200 tokens, in blocks of 64 and one of 8, each with the keys up to its end."""
    kept, given = elements_kept(200)
    assert kept == given + 2 * (64 * (64 + 128 + 192) + 8 * 200)


@pytest.mark.usefixtures("only_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
@pytest.mark.parametrize("shape", SHAPES)
def test_kept_or_computed_again_they_are_the_same(
    shape: AttentionShape, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = inputs_of(shape, dtype)
    kept = results(attention_on_cpu, inputs, Settings())
    monkeypatch.setattr(cpu_attention, "_MOST_KEPT_TOKENS", 0)
    again = results(attention_on_cpu, inputs, Settings())
    assert all(torch.equal(*pair) for pair in zip(kept, again, strict=True))


@pytest.mark.usefixtures("only_torch")
@pytest.mark.parametrize(("tokens", "dropout"), [(64, 0.0), (2048, 0.0), (256, 0.1)])
def test_torch_computes_the_rest(tokens: int, dropout: float) -> None:
    q, k, v = inputs_of(AttentionShape(tokens, 1, 1, 1, 8), torch.float32)
    torch.manual_seed(0)
    found = attention_on_cpu(q, k, v, Settings(None, dropout))
    torch.manual_seed(0)
    assert torch.equal(found, sdpa(q, k, v, Settings(None, dropout)))


@pytest.mark.usefixtures("only_torch")
def test_without_bfloat16_products_torch_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "has_bfloat16_products", lambda: False)
    q, k, v = inputs_of(SHAPES[0], torch.bfloat16)
    assert torch.equal(attention_on_cpu(q, k, v, Settings()), sdpa(q, k, v, Settings()))


def test_a_run_on_a_cpu_takes_it() -> None:
    choice = choose_attention("auto", torch.device("cpu"), torch.float32, SHAPES[0])
    assert choice.kernel is attention_on_cpu


def test_compiled_code_does_not_grow_with_the_tokens() -> None:
    """torch.compile sees one operation, forward and backward, however many blocks there are."""
    sizes = {}
    for tokens in (128, 1024):
        graphs: list[torch.fx.GraphModule] = []

        def keep(
            graph: torch.fx.GraphModule, inputs: object, graphs: list[torch.fx.GraphModule] = graphs
        ) -> torch.fx.GraphModule:
            graphs.append(graph)
            return graph

        torch._dynamo.reset()
        inputs = inputs_of(AttentionShape(tokens, 1, 2, 1, 8), torch.float32)
        compiled = torch.compile(attention_on_cpu, backend=keep, fullgraph=True, dynamic=False)
        expected = results(attention_on_cpu, inputs, Settings())
        for found, exact in zip(results(compiled, inputs, Settings()), expected, strict=True):
            assert torch.equal(found, exact)
        [graph] = graphs
        sizes[tokens] = len(graph.graph.nodes)
    assert sizes[128] == sizes[1024] < 10
