# SPDX-License-Identifier: Apache-2.0
"""Products by oneDNN against float64, for all layouts that a training step has, and who takes them."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron.backend import cpu_engine, cpu_products
from tests.ranks import run_ranks

NEEDS_ONEDNN = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN, so there is nothing to test"
)


@contextlib.contextmanager
def all_by_onednn() -> Iterator[None]:
    """As if every product were large, and the processor of a maker whom MKL does not serve."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_products, "_LEAST_MULTIPLICATIONS", 0)
        patch.setattr(cpu_products, "_is_asked_for", True)
        yield


@NEEDS_ONEDNN
@given(
    rows=st.integers(1, 70),
    inner=st.integers(1, 70),
    columns=st.integers(1, 70),
    sequences=st.integers(0, 3),
    turned=st.tuples(st.booleans(), st.booleans()),
)
def test_every_layout_is_multiplied(
    rows: int, inner: int, columns: int, sequences: int, turned: tuple[bool, bool]
) -> None:
    """Its error is that of float32: below 1e-6 of the product of the absolute values."""
    left = torch.randn(inner, rows).t() if turned[0] else torch.randn(rows, inner)
    if sequences:
        left = torch.randn(rows, sequences, inner)
    right = torch.randn(columns, inner).t() if turned[1] else torch.randn(inner, columns)
    with all_by_onednn():
        found = cpu_products.matmul(left, right)
    exact = left.double() @ right.double()
    assert found.shape == exact.shape
    assert found.dtype == torch.float32
    assert ((found - exact).abs() <= 1e-6 * (left.abs().double() @ right.abs().double())).all()


def note_operands(taken: list[tuple[int, ...]]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """What calls oneDNN, which from then on notes the shape of the tokens and the rows of the weight."""
    linear = cpu_products._linear

    def noting(tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        taken.append((*tokens.shape, len(weight)))
        return linear(tokens, weight)

    return noting


@NEEDS_ONEDNN
def test_who_takes_which_product(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, ...]] = []
    monkeypatch.setattr(cpu_products, "_linear", note_operands(taken))
    monkeypatch.setattr(cpu_products, "_is_asked_for", True)
    side = 200  # 8 million multiplications
    x, weight = torch.randn(side, side), torch.randn(side, side)
    cpu_products.matmul(x, weight)
    assert taken == [(side, side, side)]
    cpu_products.matmul(x[:50], weight)  # too small
    cpu_products.matmul(x.bfloat16(), weight.bfloat16())  # torch takes oneDNN for these itself
    cpu_products.matmul(x.double(), weight.double())
    cpu_products.matmul(x.to("meta"), weight.to("meta"))
    assert len(taken) == 1
    # Of two that lie transposed, the narrower is laid out anew.
    cpu_products.matmul(torch.randn(side, 3 * side).t(), x)
    cpu_products.matmul(x.t(), torch.randn(side, 3 * side))
    assert taken[1:] == [(side, side, 3 * side), (side, side, 3 * side)]
    monkeypatch.setattr(cpu_products, "_is_asked_for", False)
    cpu_products.matmul(x, weight)
    assert len(taken) == 3


@pytest.mark.parametrize(
    ("told", "is_faster"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: x\n", True),
        ("processor\t: 0\nvendor_id\t: GenuineIntel\n", False),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", False),
        (None, False),
    ],
)
def test_the_maker_decides(
    told: str | None, is_faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if told is not None:
        (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(cpu_products, "_CPU_INFO", tmp_path / "cpuinfo")
    for library in ("mkl", "mkldnn"):
        monkeypatch.setattr(getattr(torch.backends, library), "is_available", lambda: True)
    monkeypatch.setattr(cpu_products, "_is_asked_for", not is_faster)
    cpu_products.take_the_faster_library()
    assert cpu_products._is_asked_for is is_faster
    assert ["AuthenticAMD" in line for line in cpu_products.describe(torch.float32)] == [True] * is_faster
    assert cpu_products.describe(torch.bfloat16) == ()


def _products_of_a_layer() -> list[tuple[int, ...]]:
    """What oneDNN is given for a linear layer of megatron-core, whose gradients are right."""
    from megatron.backend import initialize
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.neox_arguments.config import ParallelConfig

    initialize(ParallelConfig(), seed=0)
    taken: list[tuple[int, ...]] = []
    cpu_products._is_asked_for = True
    cpu_products._linear = note_operands(taken)  # type: ignore[assignment]
    config = TransformerConfig(
        num_layers=1, hidden_size=256, num_attention_heads=1, use_cpu_initialization=True
    )
    layer = ColumnParallelLinear(
        256, 320, config=config, init_method=torch.nn.init.xavier_normal_, bias=False
    )
    x = torch.randn(64, 2, 256, requires_grad=True)
    gradient = torch.randn(64, 2, 320)
    layer(x)[0].backward(gradient)
    flat, weight = x.detach().flatten(0, 1), layer.weight.detach()
    torch.testing.assert_close(x.grad, gradient @ weight)
    torch.testing.assert_close(layer.weight.grad, gradient.flatten(0, 1).t() @ flat)
    return taken


@NEEDS_ONEDNN
def test_a_layer_gives_all_three_products_to_onednn() -> None:
    [taken] = run_ranks(_products_of_a_layer, 1)
    assert taken == [(64, 2, 256, 320), (64, 2, 320, 256), (256, 128, 320)]


@NEEDS_ONEDNN
@pytest.mark.parametrize("is_transposed", [False, True])
def test_compiled_it_is_one_operation(is_transposed: bool) -> None:
    left = torch.randn(300, 160).t() if is_transposed else torch.randn(160, 300)
    torch.library.opcheck(torch.ops.llemma.product.default, (left, torch.randn(300, 128)))


def test_products_are_found_however_they_are_written() -> None:
    tree = ast.parse("a = torch.matmul(x, w.t())\nb = g.t().matmul(x)\ntorch.matmul(g, x, out=c)\nx.mm(y)")
    rewriter = cpu_engine._MatmulToOurs()
    name = cpu_engine._MATMUL
    assert ast.unparse(ast.fix_missing_locations(rewriter.visit(tree))).splitlines() == [
        f"a = {name}(x, w.t())", f"b = {name}(g.t(), x)", "torch.matmul(g, x, out=c)", "x.mm(y)",
    ]  # fmt: skip
    assert rewriter.count == 2
