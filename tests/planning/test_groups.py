# SPDX-License-Identifier: Apache-2.0
"""Groups against megatron-core's own rank generator."""

from __future__ import annotations

import pytest

from megatron.backend.paper import own_group
from megatron.core.parallel_state import RankGenerator
from megatron.planning.groups import Layout, crossing, rows_by_node, span


@pytest.mark.parametrize("sizes", [(2, 1, 128), (8, 1, 32), (4, 4, 2), (1, 3, 5), (1, 1, 1)])
def test_groups_are_megatron_cores(sizes: tuple[int, int, int]) -> None:
    tensor, pipeline, data = sizes
    layout = Layout(tensor, pipeline, data)
    theirs = RankGenerator(tp=tensor, ep=1, dp=data, pp=pipeline, cp=1, order="tp-cp-ep-dp-pp")
    assert layout.tensor_groups() == theirs.get_ranks("tp")
    assert sorted(layout.data_groups()) == sorted(theirs.get_ranks("dp"))
    assert sorted(layout.pipeline_groups()) == sorted(theirs.get_ranks("pp"))


@pytest.mark.parametrize("sizes", [(2, 1, 4), (2, 4, 3), (3, 2, 2), (1, 1, 1)])
def test_on_paper_a_rank_is_given_its_own_groups(sizes: tuple[int, int, int]) -> None:
    tensor, pipeline, data = sizes
    generator = RankGenerator(tp=tensor, ep=1, dp=data, pp=pipeline, cp=1, order="tp-cp-ep-dp-pp")
    for token in ("tp", "dp", "pp", "tp-pp", "tp-dp-cp", "tp-ep-pp"):
        mask = generator.get_mask(generator.order, token)
        for group in generator.get_ranks(token):
            for rank in group:
                assert own_group(generator.ordered_size, mask, rank) == group


def test_every_rank_stands_on_its_node_once() -> None:
    layout = Layout(tensor=4, pipeline=2, data=4)
    rows = rows_by_node(layout, 8)
    assert [rank for row in rows for rank in row.ranks] == list(range(32))
    assert (rows[3].tensor_groups, rows[3].pipeline_stages) == ([[24, 25, 26, 27], [28, 29, 30, 31]], [1])
    assert rows[3].data_parallel_ranks == [2, 3]
    assert not crossing(layout, 8)
    assert crossing(layout, 6) == [[4, 5, 6, 7], [16, 17, 18, 19], [28, 29, 30, 31]]


def test_spans() -> None:
    assert (span([3]), span([4, 5, 6]), span([0, 2])) == ("3", "4-6", "0, 2")
    assert span(range(0, 256, 8)) == "0, 8, …, 248"
