# SPDX-License-Identifier: Apache-2.0
"""Ranks get one queue to their GPU where tensor parallel ranks talk beside computing."""

from __future__ import annotations

import pytest

from megatron.launcher.connections import connections

ONE = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}


@pytest.mark.parametrize(
    ("tensor_parallel", "on_gpu", "environment", "expected"),
    [
        (2, True, {}, ONE),
        (8, True, {"PATH": "/bin"}, ONE),
        (1, True, {}, {}),  # data parallel ranks alone need none, and some of their collectives more
        (2, False, {}, {}),
        (2, True, {"CUDA_DEVICE_MAX_CONNECTIONS": "8"}, {}),
    ],
)
def test_connections(
    tensor_parallel: int, on_gpu: bool, environment: dict[str, str], expected: dict[str, str]
) -> None:
    assert connections(tensor_parallel, on_gpu=on_gpu, environment=environment) == expected
