# SPDX-License-Identifier: Apache-2.0
"""What the CPU engine adds to megatron-core: gradients in pieces, and a lone process that leaves no trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron.backend import cpu_engine
from tests.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[2]


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), transposed=st.booleans())
def test_adding_in_pieces_is_adding(rows: int, columns: int, transposed: bool) -> None:
    total = torch.randn(rows, columns)
    addend = torch.randn(columns, rows).to(torch.bfloat16).t() if transposed else torch.randn(rows, columns)
    expected = total + addend.float()
    original, cpu_engine._PIECE_ELEMENTS = cpu_engine._PIECE_ELEMENTS, 64
    try:
        cpu_engine._add_in_pieces(total, addend)
    finally:
        cpu_engine._PIECE_ELEMENTS = original
    assert torch.equal(total, expected)


def _gradients_of_two_micro_batches(is_tied: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What megatron-core's buffer holds after two backward passes in bfloat16, and what it should hold."""
    from megatron.backend import initialize
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.neox_arguments.config import ParallelConfig

    initialize(ParallelConfig(), seed=0)
    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1)
    linear = torch.nn.Linear(8, 8, bias=False).to(torch.bfloat16)
    if is_tied:
        setattr(linear.weight, "zero_out_wgrad", True)  # noqa: B010
    model = DistributedDataParallel(config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), linear)
    expected = torch.zeros(8, 8)
    for _ in range(2):
        x, y = torch.randn(5, 8).to(torch.bfloat16), torch.randn(5, 8).to(torch.bfloat16)
        (model(x) * y).sum().backward()
        expected += (y.t() @ x).float()
    assert getattr(linear.weight, "zero_out_wgrad", False) is is_tied
    return getattr(linear.weight, "main_grad"), expected  # noqa: B009


@pytest.mark.parametrize("is_tied", [False, True])
def test_every_micro_batch_is_added_once(is_tied: bool) -> None:
    [(found, expected)] = run_ranks(_gradients_of_two_micro_batches, 1, is_tied)
    assert torch.equal(found, expected)


def test_a_lone_process_leaves_the_environment_as_it_was() -> None:
    """A child of it, such as another of our tools, must not take itself for a rank of its group."""
    code = (
        "import os; before = dict(os.environ)\n"
        "import megatron.backend as backend\n"
        "from megatron.neox_arguments.config import ParallelConfig\n"
        "assert backend.initialize(ParallelConfig(), seed=0).world_size == 1\n"
        "print({key for key in os.environ if os.environ[key] != before.get(key)} - {'THP_MEM_ALLOC_ENABLE'})"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
