# SPDX-License-Identifier: Apache-2.0
"""Seconds of collectives, as NCCL does what is large: in rings.

Each rank sends (n - 1)/n of the whole in n - 1 steps, and each step costs a fixed time beside.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ring:
    """Ranks in a ring, what one of them sends in a second, and the fixed time of a step."""

    ranks: int
    bytes_per_second: float
    step_seconds: float
    crosses_nodes: bool

    def gather(self, whole_bytes: float) -> float:
        """Seconds to gather from all ranks what is `whole_bytes` in the end, or to reduce and scatter it."""
        if self.ranks == 1:
            return 0.0
        return (self.ranks - 1) * self.step_seconds + self.sent(whole_bytes) / self.bytes_per_second

    def sent(self, whole_bytes: float) -> float:
        """Bytes that a rank sends while `whole_bytes` are gathered, or reduced and scattered."""
        return whole_bytes * (self.ranks - 1) / self.ranks

    def all_reduce(self, whole_bytes: float) -> float:
        """Seconds to sum `whole_bytes` so that every rank has the sum: scattered, then gathered."""
        return 2 * self.gather(whole_bytes)

    def in_buckets(self, whole_bytes: float, buckets: int) -> float:
        """Seconds to gather in so many pieces, one after the other."""
        return buckets * self.gather(whole_bytes / buckets)
