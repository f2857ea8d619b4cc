# SPDX-License-Identifier: Apache-2.0
"""What a rank did by itself in a step, seen at the moment its gradients go out to be summed with the others'.

After that moment a number that is not finite is everybody's, and every rank has taken the same time. So two
things are noted there, neither of which waits for the device: the largest number in the rank's own gradients
(their norm may be too large for float32 where they are not), and how long it took to have them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from megatron.backend import Backend
from megatron.core.distributed import DistributedDataParallel


class OwnWork:
    """Listens to the gradient buckets of `model`. `begin` comes before each step's computation."""

    def __init__(self, model: DistributedDataParallel, backend: Backend) -> None:
        self._on_gpu = backend.device.type == "cuda"
        self._began: Any = None
        self._ended: Any = None
        self._largest: list[torch.Tensor] = []
        self._seconds = 0.0
        for group in model.bucket_groups:
            group.start_grad_sync = self._heard(group, group.start_grad_sync)

    def begin(self) -> None:
        """A step begins. The one before is over on the device too: its gradient's norm was read."""
        self._count()
        self._largest = []
        self._began, self._ended = self._now(), None

    def gradient_is_finite(self) -> bool:
        """Whether this rank's own gradients of the step were; waits for the device."""
        return all(bool(torch.isfinite(one)) for one in self._largest)

    def seconds(self) -> float:
        """The rank's own time in the steps that were done since the last call.

        On a GPU without the step that is under way: CUDA measures only what is over, and to wait for it would
        leave the device without work.
        """
        if not self._on_gpu:
            self._count()
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _heard(self, group: Any, start: Callable[..., Any]) -> Callable[..., Any]:
        def start_grad_sync(*arguments: Any, **named: Any) -> Any:
            if self._ended is None and self._began is not None:
                self._ended = self._now()
            self._largest += [
                torch.linalg.vector_norm(bucket.grad_data, ord=math.inf) for bucket in group.buckets
            ]
            return start(*arguments, **named)

        return start_grad_sync

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _count(self) -> None:
        if self._began is None or self._ended is None:
            return
        if self._on_gpu:
            self._seconds += self._began.elapsed_time(self._ended) / 1000
        else:
            self._seconds += self._ended - self._began
        self._began = self._ended = None
