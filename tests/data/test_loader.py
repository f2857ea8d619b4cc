# SPDX-License-Identifier: Apache-2.0
"""Micro-batches: the same global order on every layout, from any position, with any number of threads."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.data.loader import MicroBatch, batches
from megatron.data.mcore_datasets import Sample
from megatron.neox_arguments.training import BatchShape


class Counting:
    """Sequence i is i, i+1, … so that a batch shows where it comes from."""

    def __init__(self, sequences: int, fail_at: int = -1, delay_seconds: float = 0.0) -> None:
        self.sequences, self.fail_at, self.delay_seconds = sequences, fail_at, delay_seconds
        self.read = 0

    def __len__(self) -> int:
        return self.sequences

    def __getitem__(self, position: int) -> Sample:
        if position == self.fail_at:
            raise OSError("the disk is gone")
        if self.delay_seconds and position % 3 == 0:
            time.sleep(self.delay_seconds)
        self.read += 1
        row = torch.arange(position, position + 5)
        return Sample(row[:-1], row[1:], torch.ones(4))


def shape(micro: int, accumulation: int, data_parallel: int) -> BatchShape:
    return BatchShape(micro, accumulation, data_parallel, micro * accumulation * data_parallel)


def ids(micro_batches: list[MicroBatch]) -> list[list[int]]:
    return [micro_batch.sample_ids_B.tolist() for micro_batch in micro_batches]


def test_positions_are_those_of_the_formula() -> None:
    batch_shape = shape(micro=2, accumulation=2, data_parallel=3)
    expected = [
        [i * 12 + m * 2 * 3 + r * 2 + k for k in range(2)] for r in [1] for i in range(2) for m in range(2)
    ]
    assert ids(list(batches(Counting(35), batch_shape, dp_rank=1))) == expected


@settings(deadline=None, max_examples=50)
@given(
    micro=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    data_parallel=st.integers(1, 4),
    extra=st.integers(0, 63),
    workers=st.integers(0, 3),
    start=st.integers(0, 70),
)
def test_the_global_order_does_not_depend_on_the_layout(
    micro: int, accumulation: int, data_parallel: int, extra: int, workers: int, start: int
) -> None:
    batch_shape = shape(micro, accumulation, data_parallel)
    dataset = Counting(2 * batch_shape.global_ + extra)
    ranks = [list(batches(dataset, batch_shape, rank, start, workers)) for rank in range(data_parallel)]
    together = [
        sequence
        for step in zip(*ranks, strict=True)
        for micro_batch in step
        for sequence in micro_batch.sample_ids_B
    ]
    whole = max(0, len(dataset) - start) // batch_shape.global_ * batch_shape.global_
    assert [int(sequence) for sequence in together] == list(range(start, start + whole))


def test_tensors_belong_to_their_positions() -> None:
    [batch] = batches(Counting(3), shape(3, 1, 1), 0)
    assert batch.tokens_BS.tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]
    assert batch.labels_BS.tolist() == [[1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]]
    assert batch.tokens_BS.dtype == batch.labels_BS.dtype == batch.sample_ids_B.dtype == torch.int64
    assert batch.loss_mask_BS.shape == (3, 4)


def test_resuming_continues_where_the_run_was() -> None:
    batch_shape = shape(2, 2, 2)
    whole = ids(list(batches(Counting(80), batch_shape, 1)))
    for iteration in range(10):
        resumed = ids(list(batches(Counting(80), batch_shape, 1, start_sequence=8 * iteration)))
        assert resumed == whole[2 * iteration :]


def test_slow_reads_do_not_change_the_order() -> None:
    batch_shape = shape(1, 3, 1)
    slow = Counting(30, delay_seconds=0.005)
    assert ids(list(batches(slow, batch_shape, 0, num_workers=4))) == [[i] for i in range(30)]


def test_an_error_is_raised_where_it_belongs() -> None:
    micro_batches = batches(Counting(30, fail_at=7), shape(1, 1, 1), 0, num_workers=3)
    assert [next(micro_batches).sample_ids_B.item() for _ in range(7)] == list(range(7))
    with pytest.raises(OSError, match="the disk is gone"):
        next(micro_batches)


def test_reading_ahead_is_bounded_and_ends_with_the_iterator() -> None:
    dataset = Counting(10_000)
    micro_batches = batches(dataset, shape(1, 2, 1), 0, num_workers=2)
    next(micro_batches)
    time.sleep(0.1)
    assert 1 < dataset.read <= 8
    micro_batches.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("data") for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "threads outlive their iterator"
        time.sleep(0.01)


def test_closing_cancels_what_has_not_begun() -> None:
    dataset = Counting(1000, delay_seconds=0.1)
    micro_batches = batches(dataset, shape(3, 4, 1), 0, num_workers=1)
    next(micro_batches)
    begun = dataset.read
    micro_batches.close()  # type: ignore[attr-defined]
    time.sleep(0.8)
    assert dataset.read <= begun + 3


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="dp_rank=2 is not one of 2"):
        batches(Counting(4), shape(1, 1, 2), 2)
    with pytest.raises(ValueError, match="start_sequence=-1"):
        batches(Counting(4), shape(1, 1, 1), 0, start_sequence=-1)


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_batches_are_the_same(workers: int) -> None:
    batch_shape = shape(micro=2, accumulation=2, data_parallel=1)
    plain = list(batches(Counting(16), batch_shape, 0, num_workers=workers))
    pinned = list(batches(Counting(16), batch_shape, 0, num_workers=workers, pins_memory=True))
    for one, other in zip(plain, pinned, strict=True):
        for name in ("tokens_BS", "labels_BS", "loss_mask_BS"):
            assert getattr(other, name).is_pinned()
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert torch.equal(one.sample_ids_B, other.sample_ids_B)
