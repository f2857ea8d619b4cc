# SPDX-License-Identifier: Apache-2.0
"""Which ranks form which parallel groups, and on which nodes they lie.

Ranks fill nodes in order, `rank = node * gpus_per_node + GPU`, and megatron-core lays its groups over them
in the order tensor, data, pipeline: `rank = tensor + T * (data + D * pipeline)`. Tensor parallel groups are
neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Ranks = tensor x pipeline x data."""

    tensor: int
    pipeline: int
    data: int

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline * self.data

    def tensor_groups(self) -> list[list[int]]:
        """Ranks that share each layer."""
        return [list(range(first, first + self.tensor)) for first in range(0, self.ranks, self.tensor)]

    def data_groups(self) -> list[list[int]]:
        """Ranks with the same part of the model and other data."""
        stage_ranks = self.tensor * self.data
        return [
            list(range(stage * stage_ranks + tensor, (stage + 1) * stage_ranks, self.tensor))
            for stage in range(self.pipeline)
            for tensor in range(self.tensor)
        ]

    def pipeline_groups(self) -> list[list[int]]:
        """Ranks that hand activations to each other, first stage first."""
        stage_ranks = self.tensor * self.data
        return [list(range(first, self.ranks, stage_ranks)) for first in range(stage_ranks)]

    def first_rank_of_stage(self, stage: int) -> int:
        return stage * self.tensor * self.data


@dataclass(frozen=True)
class NodeRow:
    """What lies on one node."""

    node: int
    ranks: list[int]
    tensor_groups: list[list[int]]
    pipeline_stages: list[int]
    data_parallel_ranks: list[int]


def nodes_of(ranks: Sequence[int], gpus_per_node: int) -> list[int]:
    """The nodes that a group lies on."""
    return sorted({rank // gpus_per_node for rank in ranks})


def rows_by_node(layout: Layout, gpus_per_node: int) -> list[NodeRow]:
    """Every node: its ranks, the tensor parallel groups that touch it, stages, data parallel ranks."""
    rows = []
    for first in range(0, layout.ranks, gpus_per_node):
        ranks = list(range(first, min(first + gpus_per_node, layout.ranks)))
        groups = range(ranks[0] // layout.tensor, ranks[-1] // layout.tensor + 1)
        rows.append(
            NodeRow(
                node=first // gpus_per_node,
                ranks=ranks,
                tensor_groups=[
                    list(range(group * layout.tensor, (group + 1) * layout.tensor)) for group in groups
                ],
                pipeline_stages=sorted({rank // (layout.tensor * layout.data) for rank in ranks}),
                data_parallel_ranks=sorted({rank // layout.tensor % layout.data for rank in ranks}),
            )
        )
    return rows


def crossing(layout: Layout, gpus_per_node: int) -> list[list[int]]:
    """Tensor parallel groups that lie on more than one node."""
    return [group for group in layout.tensor_groups() if len(nodes_of(group, gpus_per_node)) > 1]


def span(ranks: Sequence[int]) -> str:
    """`0-7`, or `0, 2, …, 254 (128)` for ranks that are no neighbours."""
    ranks = list(ranks)
    if len(ranks) == 1:
        return str(ranks[0])
    if ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}-{ranks[-1]}"
    if len(ranks) <= 4:
        return ", ".join(map(str, ranks))
    return f"{ranks[0]}, {ranks[1]}, …, {ranks[-1]}"
