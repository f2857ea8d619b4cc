# SPDX-License-Identifier: Apache-2.0
"""benchmarks/kernels.py: what it writes where there is no GPU, and the bytes that its speeds count."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from megatron.model.fused_kernels import LayerShape


@pytest.fixture(scope="module", autouse=True)
def _environment() -> object:
    """The module asks Triton to interpret; other tests must not see that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "0")
        yield


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: nothing would be left unmeasured")
def test_without_a_gpu_speed_is_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import kernels

    monkeypatch.setattr(sys, "argv", ["kernels.py", "attention", "--output", str(tmp_path / "table")])
    kernels.main()
    content = json.loads((tmp_path / "table.json").read_text())
    assert {row["speed"] for row in content["speed"]} == {"not measured"}
    assert len(content["speed"]) == 3 * 6
    page = (tmp_path / "table.md").read_text()
    assert "There is no GPU here: speed is not measured." in page
    assert "| attention | 34B, TP 8 | flash_attn_3 | not measured |" in page


def test_the_least_bytes_are_those_of_inputs_and_results() -> None:
    from benchmarks.kernels import least_bytes

    shape = LayerShape(
        tokens=8, sequences=2, norm_tokens=4, hidden=10, kv_heads=2, queries=3, head_dim=4, ffn=7, eps=1e-5
    )
    x, product, width = 4 * 2 * 10 * 2, 16 * 2 * 5 * 4 * 2, 16 * 7 * 2
    assert least_bytes("rmsnorm_neox", shape, 2) == (2 * x, 3 * x)
    assert least_bytes("rotary", shape, 2) == (2 * product, 2 * product)
    assert least_bytes("swiglu", shape, 2) == (3 * width, 5 * width)
