# SPDX-License-Identifier: Apache-2.0
"""megatron-core's packing and blending behind one small class; the only place in `data` that imports
megatron.core.

Packing is `GPTDataset`: the documents, shuffled by the seed, are laid end to end and cut into sequences that
overlap by one token; the sequences are shuffled again. The blend is megatron-core's greedy rule: each
position takes the source that is furthest behind its weight. Both are GPT-NeoX's. Of megatron-core's
`BlendedDataset` only that rule is used: the class itself asks for an initialised process group. Indices go
through our own cache, because the one of megatron-core is keyed by the path of the data and not by what is in
it, and can be left half written.

Shapes: S tokens of a sequence.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from megatron.core.datasets import helpers
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from megatron.data.index_cache import Arrays, IndexCache
from megatron.data.sources import Source
from megatron.neox_arguments.errors import UserError

# GPT-NeoX and Megatron-LM draw this much more from each source than its share, because the blend is not
# exact.
_SURPLUS = 1.005
# GPTDataset's document index is int32.
_MOST_DOCUMENTS = 2**31 - 1


class Sample(NamedTuple):
    """One sequence: `labels_S[i]` follows `tokens_S[i]`; `loss_mask_S` is 0 where the loss is not counted."""

    tokens_S: torch.Tensor
    labels_S: torch.Tensor
    loss_mask_S: torch.Tensor
    is_masked: bool = (
        False  # whether tokens of this order may be left out of the loss; alike for all its sequences
    )


@dataclass(frozen=True)
class Packing:
    """What all sources of a run are packed with."""

    seq_length: int
    seed: int
    vocab_size: int
    eod_id: int
    eod_mask_loss: bool


@contextlib.contextmanager
def _without_its_warning() -> Iterator[None]:
    """megatron-core warns where it is not the one to save the indices."""

    def keep(record: logging.LogRecord) -> bool:
        return "path_to_cache is None" not in record.getMessage()

    logger = logging.getLogger(GPTDataset.__module__)
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


class _CachedGPTDataset(GPTDataset):
    """`GPTDataset` with indices from our cache; with an empty `path_to_cache` it builds them in memory."""

    def __init__(self, source: Source, num_samples: int, packing: Packing, cache: IndexCache) -> None:
        self._source, self._packing, self._cache = source, packing, cache
        prefix = str(source.file.prefix)
        config = GPTDatasetConfig(
            random_seed=packing.seed,
            sequence_length=packing.seq_length,
            blend=([prefix], None),
            split="1,0,0",  # the documents are chosen by `indices` below
            path_to_cache="",
            # No `pad`: a padding id that is also a token would be taken out of the loss.
            tokenizer=SimpleNamespace(
                vocab_size=packing.vocab_size, eod=packing.eod_id, unique_identifiers={}
            ),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=packing.eod_mask_loss,
            create_attention_mask=False,
        )
        documents = np.arange(source.first_document, source.end_document, dtype=np.int32)
        super().__init__(IndexedDataset(prefix), prefix, documents, num_samples, Split.train, config)
        self._learnt = self._of_the_mask()

    def _of_the_mask(self) -> _CachedGPTDataset | None:
        """This order over the loss mask, where the source has one: the same documents, cut alike."""
        mask = self._source.loss_mask
        if mask is None:
            return None
        other = copy.copy(self)
        other.dataset = IndexedDataset(str(mask.prefix))
        return other

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        item: dict[str, torch.Tensor] = super().__getitem__(index)
        if self._learnt is not None:
            learnt, _ = self._learnt._query_document_sample_shuffle_indices(index)
            # The loss at a place is that of the token after it.
            item["loss_mask"] = item["loss_mask"] * torch.from_numpy(learnt[1:].astype(np.float32))
        return item

    @property
    def laid_out(self) -> dict[str, int]:
        """What the order of the sequences depends on beside the documents, the length and the seed.

        Orders in which these agree begin alike, however long they are: megatron-core shuffles as many passes
        over the documents together as are wanted, and the last by itself where less than 80% of it is.
        """
        tokens, length = self._source.tokens, self._packing.seq_length
        passes = self._get_num_epochs(tokens)
        before_last, in_a_pass = ((passes - 1) * tokens - 1) // length, (tokens - 1) // length
        is_last_apart = passes > 1 and self.num_samples - before_last < int(0.8 * in_a_pass)
        return {"passes": passes, "passes_shuffled_together": passes - is_last_apart}

    def _build_document_sample_shuffle_indices(self) -> tuple[npt.NDArray[Any], ...]:
        key = {
            "what": "packing of megatron-core 0.16.1",
            "lengths": self._source.lengths_digest,
            "num_samples": self.num_samples,
            "seq_length": self._packing.seq_length,
            "seed": self._packing.seed,
        }
        names = ("document_index", "sample_index", "shuffle_index")

        def build() -> Arrays:
            with _without_its_warning():
                arrays = super(_CachedGPTDataset, self)._build_document_sample_shuffle_indices()
            return dict(zip(names, arrays, strict=True))

        arrays = self._cache.get(self._source.name.replace("/", "_"), key, build)
        return tuple(arrays[name] for name in names)


class SequenceOrder:
    """Sequences of one or several sources in the order in which they are read: the same on every rank and
    layout.

    Item `i` is the `Sample` at global position `i`. Reading is safe from several threads.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        sequences: int,
        packing: Packing,
        cache: IndexCache,
    ) -> None:
        """An order of `sequences` sequences from `sources` with positive `weights`.

        A source that holds fewer sequences than its share is read again, shuffled anew. Errors: `UserError`
        for a source without a single whole sequence."""
        for source in sources:
            if source.end_document > _MOST_DOCUMENTS:
                raise UserError(
                    f"{source.file.prefix}: holds {source.file.documents} documents, and a run reads at most "
                    f"{_MOST_DOCUMENTS} of one file (megatron-core numbers them in 32 bits); tokenise the "
                    "text into several files and list all in train_data_paths"
                )
            if error := source.lacks_a_sequence(packing.seq_length):
                raise UserError(error)
        self.names = [source.name for source in sources]
        self._sequences, self._packing = sequences, packing
        self._sources = list(sources)
        shares = np.asarray(weights, dtype=np.float64) / np.sum(weights, dtype=np.float64)
        self._shares = shares
        self._is_masked = packing.eod_mask_loss or any(source.loss_mask is not None for source in sources)
        self._blend: Arrays | None = None
        drawn = [sequences]
        if len(sources) > 1:
            self._blend = _blend(shares, sequences, cache)
            counts = np.bincount(self._blend["source"], minlength=len(sources)).tolist()
            drawn = [
                max(count, math.ceil(sequences * share * _SURPLUS))
                for count, share in zip(counts, shares.tolist(), strict=True)
            ]
        self._datasets = [
            _CachedGPTDataset(source, number, packing, cache)
            for source, number in zip(sources, drawn, strict=True)
        ]

    def __len__(self) -> int:
        return self._sequences

    def __getitem__(self, position: int) -> Sample:
        source, number = self._locate(position)
        item = self._datasets[source][number]
        return Sample(item["tokens"], item["labels"], item["loss_mask"], self._is_masked)

    def describe(self) -> dict[str, Any]:
        """All that the order depends on, for a checkpoint's record.

        Two orders with equal descriptions hold the same sequences at the same positions, as far as both go.
        """
        sources = [
            {
                "name": source.name,
                "path": str(source.file.prefix),
                "documents": source.lengths_digest,
                "share": share,
                **dataset.laid_out,
                **({"loss_mask": source.loss_mask.prefix.name} if source.loss_mask else {}),
            }
            for source, share, dataset in zip(
                self._sources, self._shares.tolist(), self._datasets, strict=True
            )
        ]
        return {"seq_length": self._packing.seq_length, "seed": self._packing.seed, "sources": sources}

    def source_of(self, position: int) -> str:
        """The name of the source that the sequence at `position` comes from."""
        return self.names[self._locate(position)[0]]

    def _locate(self, position: int) -> tuple[int, int]:
        if not 0 <= position < self._sequences:
            raise IndexError(f"position {position} is outside an order of {self._sequences} sequences")
        if self._blend is None:
            return 0, position
        return int(self._blend["source"][position]), int(self._blend["sequence"][position])


def _blend(shares: npt.NDArray[np.float64], sequences: int, cache: IndexCache) -> Arrays:
    """For each position its source and the number of the sequence in it."""

    def build() -> Arrays:
        source = np.zeros(sequences, dtype=np.int16)
        sequence = np.zeros(sequences, dtype=np.int64)
        helpers.build_blending_indices(source, sequence, shares, len(shares), sequences, False)
        return {"source": source, "sequence": sequence}

    key = {"what": "blend of megatron-core 0.16.1", "shares": shares.tolist(), "sequences": sequences}
    return cache.get("blend", key, build)
