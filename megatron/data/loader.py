# SPDX-License-Identifier: Apache-2.0
"""Micro-batches of one data parallel rank, read ahead by threads, from any position of the global order.

The global order does not depend on the number of ranks: iteration i takes the sequences [i G, (i+1) G) of it,
G the global batch, and micro-batch m of data parallel rank r those from i G + (m DP + r) micro on. A run is
resumed by the number of sequences it has consumed and nothing else.

Threads suffice: reading is a copy out of memory-mapped files, and threads neither fork a process that holds a
CUDA context nor need the data sent between processes.

Shapes: B sequences of a micro-batch, S tokens of a sequence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from megatron.data.mcore_datasets import Sample
from megatron.neox_arguments.training import BatchShape


class Sequences(Protocol):
    """What micro-batches are made of; `SequenceOrder` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Sample: ...


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch on the CPU: int64 tokens and labels, float32 loss mask (0: not in the loss).

    `sample_ids_B` are positions in the global order: what a resumed run must repeat.
    """

    tokens_BS: torch.Tensor
    labels_BS: torch.Tensor
    loss_mask_BS: torch.Tensor
    sample_ids_B: torch.Tensor
    is_masked: bool = False  # whether a loss mask of the run's data may leave tokens out; alike on all ranks

    def pinned(self) -> MicroBatch:
        """The same in page-locked memory, from which it is copied to a GPU without anybody waiting."""
        return replace(
            self,
            tokens_BS=self.tokens_BS.pin_memory(),
            labels_BS=self.labels_BS.pin_memory(),
            loss_mask_BS=self.loss_mask_BS.pin_memory(),
        )


def batches(
    dataset: Sequences,
    batch_shape: BatchShape,
    dp_rank: int,
    start_sequence: int = 0,
    num_workers: int = 2,
    *,
    pins_memory: bool = False,
) -> Iterator[MicroBatch]:
    """The micro-batches of data parallel rank `dp_rank`, `batch_shape.accumulation` of them for each
    iteration.

    Starts after `start_sequence` consumed sequences (global) and ends with the last whole iteration in
    `dataset`. `num_workers` threads read ahead (0: none), and pin what they read where `pins_memory` is set;
    an error of theirs is raised at the micro-batch it belongs to."""
    if not 0 <= dp_rank < batch_shape.data_parallel:
        raise ValueError(f"dp_rank={dp_rank} is not one of {batch_shape.data_parallel} data parallel ranks")
    if start_sequence < 0:
        raise ValueError(f"start_sequence={start_sequence} is below 0")
    starts = _starts(len(dataset), batch_shape, dp_rank, start_sequence)

    def read(start: int) -> MicroBatch:
        micro_batch = read_micro_batch(dataset, start, batch_shape.micro)
        return micro_batch.pinned() if pins_memory else micro_batch

    if num_workers == 0:
        return (read(start) for start in starts)
    return _read_ahead(read, starts, num_workers, 2 * num_workers + batch_shape.accumulation)


def _starts(sequences: int, shape: BatchShape, dp_rank: int, start_sequence: int) -> Iterator[int]:
    """The first position of each micro-batch of a rank."""
    for first in range(start_sequence, sequences - shape.global_ + 1, shape.global_):
        for micro_batch in range(shape.accumulation):
            yield first + (micro_batch * shape.data_parallel + dp_rank) * shape.micro


def read_micro_batch(dataset: Sequences, start: int, micro: int) -> MicroBatch:
    positions = range(start, start + micro)
    samples = [dataset[position] for position in positions]
    return MicroBatch(
        tokens_BS=torch.stack([sample.tokens_S for sample in samples]),
        labels_BS=torch.stack([sample.labels_S for sample in samples]),
        loss_mask_BS=torch.stack([sample.loss_mask_S for sample in samples]),
        sample_ids_B=torch.tensor(positions, dtype=torch.int64),
        is_masked=any(sample.is_masked for sample in samples),
    )


def _read_ahead(
    read: Callable[[int], MicroBatch], starts: Iterator[int], num_workers: int, window: int
) -> Iterator[MicroBatch]:
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="data")
    waiting: deque[Future[MicroBatch]] = deque()
    try:
        for start in starts:
            waiting.append(pool.submit(read, start))
            if len(waiting) > window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
