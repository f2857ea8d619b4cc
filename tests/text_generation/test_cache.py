# SPDX-License-Identifier: Apache-2.0
"""Rows of the cache keep what is in them, however long rows become."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron.text_generation.cache import KVCache

MOST_TOKENS = 60


@given(
    layouts=st.lists(st.integers(4, 20), min_size=2, max_size=6),
    lengths=st.lists(st.integers(0, 4), max_size=3),
)
def test_rows_move_whole(layouts: list[int], lengths: list[int]) -> None:
    like: Any = SimpleNamespace(
        kv_heads=1, head_dim=2, dtype=torch.float32, device=torch.device("cpu"), layers_count=2
    )
    cache = KVCache(like, MOST_TOKENS)
    cache.lay_out(layouts[0], [])
    lengths = [min(layouts) if length == 4 else length for length in lengths]
    contents = [torch.rand(length, 1, 2) for length in lengths]
    for row, content in enumerate(contents):
        places = torch.tensor(cache.places(row, 0, len(content)), dtype=torch.long)
        for layer in range(2):
            cache.write(layer, places, content + layer, -content)
    for row_tokens in layouts[1:]:
        cache.lay_out(row_tokens, lengths)
        for layer in range(2):
            for row, content in enumerate(contents):
                keys, values = cache.row(layer, row, len(content))
                assert torch.equal(keys, content + layer)
                assert torch.equal(values, -content)
    if contents:
        cache.copy_row(len(contents) - 1, 0, lengths[-1])
        assert torch.equal(cache.row(0, 0, lengths[-1])[0], contents[-1])
