# SPDX-License-Identifier: Apache-2.0
"""How many queues a rank has to its GPU.

megatron-core starts a collective before the product it is to run beside. Up to Hopper a GPU with several
queues may begin with the product, which fills it, and the collective waits; over one queue the order stays.
CUDA reads the variable once, before the first call of a process, so it is the launcher's to set.
"""

from __future__ import annotations

from collections.abc import Mapping

CONNECTIONS_VARIABLE = "CUDA_DEVICE_MAX_CONNECTIONS"


def connections(
    model_parallel_size: int, *, on_gpu: bool | None, environment: Mapping[str, str]
) -> dict[str, str]:
    """The variable as ranks get it; nothing where there is no tensor parallelism, or whoever set it knows."""
    if not on_gpu or model_parallel_size == 1 or CONNECTIONS_VARIABLE in environment:
        return {}
    return {CONNECTIONS_VARIABLE: "1"}
