# SPDX-License-Identifier: Apache-2.0
"""Products with weights in oneDNN's layout against plain ones, and when they are chosen."""

from __future__ import annotations

import psutil
import pytest
import torch

from megatron.model.products import choose_products, laid_out, plain

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 5, 16, 300])
@pytest.mark.parametrize("has_bias", [False, True])
def test_both_compute_the_same(dtype: torch.dtype, tokens: int, has_bias: bool) -> None:
    if choose_products(CPU, dtype, 0)[0] is plain:
        pytest.skip(choose_products(CPU, dtype, 0)[1])
    torch.manual_seed(0)
    weight, x_NC = torch.randn(70, 96).to(dtype), torch.randn(tokens, 2, 96).to(dtype)[:, 1]
    bias = torch.randn(70).to(dtype) if has_bias else None
    with torch.inference_mode():
        ours = laid_out(torch.nn.Parameter(weight), bias)(x_NC)
        exact = x_NC.double() @ weight.double().T
        exact += 0 if bias is None else bias.double()
    assert ours.dtype == dtype
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.3}[dtype]
    assert (ours.double() - exact).abs().max() < tolerance
    assert torch.allclose(plain(weight, bias)(x_NC).float(), ours.float(), atol=tolerance)


def test_copies_are_made_where_memory_is_plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10e9})())
    chosen, why = choose_products(CPU, torch.float32, 6_000_000_000)
    assert chosen is plain
    assert why == "weights as they lie (copies in oneDNN's layout would take 6.0 GB, and 10.0 GB are free)"
    assert choose_products(torch.device("cuda", 0), torch.bfloat16, 1) == (
        plain,
        "weights as they lie (a GPU)",
    )
