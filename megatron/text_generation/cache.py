# SPDX-License-Identifier: Apache-2.0
"""Keys and values of the tokens read so far: rows of one length in memory that is taken once.

The memory is a rectangle of rows, one a sequence, that lie next to each other, so that all sequences are
attended to by one call without a copy of the cache. How long a row is follows from the requests at hand; the
memory is always the same: `max_tokens` places in each layer.

Legend: P places in the cache, N tokens, B rows in use, T places of them that are looked at, G local KV heads,
R query heads of each, D head dimension.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from megatron.model.reading import ModelReader


class KVCache:
    """The keys and values of every layer, on this rank."""

    def __init__(self, reader: ModelReader, max_tokens: int) -> None:
        shape = (max_tokens, reader.kv_heads, reader.head_dim)
        self.max_tokens = max_tokens
        self.row_tokens = 0
        # Zeros: places that a mask hides have the weight 0, and 0 x NaN is NaN.
        self._keys, self._values = (
            [torch.zeros(shape, dtype=reader.dtype, device=reader.device) for _ in range(reader.layers_count)]
            for _ in range(2)
        )

    @property
    def bytes(self) -> int:
        """What it takes of the device's memory."""
        return sum(x.numel() * x.element_size() for x in (*self._keys, *self._values))

    def lay_out(self, row_tokens: int, lengths: list[int]) -> None:
        """Gives rows another length; the first `lengths[b]` places of row b stay what they are."""
        old, self.row_tokens = self.row_tokens, row_tokens
        # Rows that move back are moved last first, so that none is overwritten before it has moved.
        order = range(len(lengths)) if row_tokens < old else reversed(range(len(lengths)))
        for row in order:
            self._move(row * old, row * row_tokens, lengths[row])

    def copy_row(self, source: int, target: int, tokens: int) -> None:
        """The first places of one row, to another."""
        self._move(source * self.row_tokens, target * self.row_tokens, tokens)

    def _move(self, first: int, to: int, tokens: int) -> None:
        if first == to or tokens == 0:
            return
        for memory in (*self._keys, *self._values):
            source = memory[first : first + tokens]
            memory[to : to + tokens] = source.clone() if abs(first - to) < tokens else source

    def places(self, row: int, first: int, end: int) -> range:
        """Where tokens first … end - 1 of a row lie."""
        return range(row * self.row_tokens + first, row * self.row_tokens + end)

    def write(self, layer: int, places_N: torch.Tensor, k_NGD: torch.Tensor, v_NGD: torch.Tensor) -> None:
        """Puts tokens where they belong."""
        self._keys[layer].index_copy_(0, places_N, k_NGD)
        self._values[layer].index_copy_(0, places_N, v_NGD)

    def rows(self, layer: int, count: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first places of the first rows; keys and values, each [B, G, T, D], in place."""
        heads, head_dim = self._keys[layer].shape[1:]
        k_BGTD, v_BGTD = (
            memory[: count * self.row_tokens]
            .view(count, self.row_tokens, heads, head_dim)[:, :tokens]
            .transpose(1, 2)
            for memory in (self._keys[layer], self._values[layer])
        )
        return k_BGTD, v_BGTD

    def row(self, layer: int, row: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first places of one row; keys and values, each [T, G, D], in place."""
        first = row * self.row_tokens
        return self._keys[layer][first : first + tokens], self._values[layer][first : first + tokens]


def attend_with_one_token(
    q_NGRD: torch.Tensor, k_BGTD: torch.Tensor, v_BGTD: torch.Tensor, mask_B11T: torch.Tensor | None
) -> torch.Tensor:
    """One token of each row sees its row. Query heads that share a KV head stand where several query tokens
    would, so that keys and values are not repeated for them."""
    out_BGRD = scaled_dot_product_attention(q_NGRD, k_BGTD, v_BGTD, attn_mask=mask_B11T)
    return out_BGRD.flatten(1)


def attend_to_row(q_NGRD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor) -> torch.Tensor:
    """The last N tokens of one row of T, each of which sees those before it."""
    tokens, queries = len(q_NGRD), q_NGRD.size(2)
    q_GRND = q_NGRD.permute(1, 2, 0, 3)
    # Heads that share a key see the same memory: an expanded dimension has the stride 0.
    k_GRTD, v_GRTD = (x.permute(1, 0, 2)[:, None].expand(-1, queries, -1, -1) for x in (k_TGD, v_TGD))
    mask = None
    if tokens < len(k_TGD):
        places = torch.arange(len(k_TGD), device=q_NGRD.device)
        mask = places <= places[-tokens:, None]
    out_GRND = scaled_dot_product_attention(q_GRND, k_GRTD, v_GRTD, attn_mask=mask, is_causal=mask is None)
    return out_GRND.permute(2, 0, 1, 3).flatten(1)
