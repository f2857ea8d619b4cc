# SPDX-License-Identifier: Apache-2.0
"""What rank 0 tells the other tensor parallel ranks: small Python objects, beside the tensors of the model.

They go over gloo in a group of their own, also where tensors go over NCCL: NCCL's watchdog would end ranks
that wait for the next request longer than its time limit, and gloo says at once when the other end is gone.
What is sent was made by the same program, so it is pickled.
"""

from __future__ import annotations

import datetime
from typing import TypeVar

import torch.distributed as dist

from megatron.backend import Backend

T = TypeVar("T")
# A server may wait for its next request as long as it likes.
PATIENCE = datetime.timedelta(days=3650)


class Ranks:
    """The ranks that read one model together. Every rank makes one, at the same place of the program."""

    def __init__(self, backend: Backend) -> None:
        assert backend.tensor_parallel_size == backend.world_size, "a model is read by all ranks together"
        self.is_first = backend.rank == 0
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if backend.world_size > 1 else None

    def share(self, value: T | None) -> T:
        """What rank 0 gives, on every rank.

        Raises:
            RuntimeError: another rank has gone. Nothing can go on without it.
        """
        if self._group is None:
            assert value is not None
            return value
        box = [value if self.is_first else None]
        dist.broadcast_object_list(box, src=0, group=self._group)
        assert box[0] is not None
        return box[0]
