# SPDX-License-Identifier: Apache-2.0
"""No sequence is read twice or left out when a run goes on with other ranks or another micro-batch.

The loop itself runs, and what it takes from its loader is written down: positions in the order, and tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runs import Place, call_on_ranks, make_place

STEPS, GLOBAL_BATCH = 8, 8
Taken = list[tuple[int, int, str]]  # iteration, position in the order, digest of the tokens


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


def train_and_note(model_yaml: Path, config: Path) -> Taken:
    """Trains on this rank as train.py does; returns every sequence that a step took."""
    import megatron.trainer.loop as loop
    from megatron.neox_arguments.loader import load_config
    from megatron.trainer.interruption import StopRequest
    from megatron.trainer.startup import StartUp
    from train import run_training

    cfg, _ = load_config([model_yaml, config])
    taken: Taken = []
    read = loop.batches

    def noting(dataset: Any, shape: Any, rank: int, **named: Any) -> Iterator[Any]:
        steps = 0
        for number, batch in enumerate(read(dataset, shape, rank, **named)):
            steps = number // shape.accumulation
            for position, tokens_S in zip(batch.sample_ids_B.tolist(), batch.tokens_BS, strict=True):
                digest = hashlib.sha256(tokens_S.numpy().tobytes()).hexdigest()
                taken.append((steps, position, digest))
            yield batch

    loop.batches = noting  # type: ignore[assignment]
    run_training(cfg, StopRequest(), "the same command", StartUp())
    return taken


def read_in(place: Place, folder: Path, ranks: int, steps: int, **changes: Any) -> list[tuple[int, str]]:
    """Runs up to `steps`; the sequences in the order in which the steps took them."""
    config = place.write(
        folder / f"to{steps}.yml", save=str(folder / "save"), train_iters=steps, lr_decay_iters=STEPS,
        eval_iters=0, valid_data_paths=None, valid_data_names=None, test_data_paths=None, **changes,
    )  # fmt: skip
    by_rank = call_on_ranks(folder / f"ranks{steps}", train_and_note, ranks, place.model_yaml, config)
    together = sorted(entry for rank in by_rank for entry in rank)
    return [(position, digest) for _, position, digest in together]


MOVES: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "DP 2 to DP 1": ((2, 2), (1, 2)),
    "DP 1 to DP 2": ((1, 4), (2, 2)),
    "DP 2 to DP 4": ((2, 4), (4, 1)),
    "another micro-batch": ((2, 1), (2, 4)),
}


@pytest.fixture(scope="module")
def whole(place: Place) -> list[tuple[int, str]]:
    return read_in(place, place.folder / "whole", 1, STEPS, train_micro_batch_size_per_gpu=2)


def test_an_uninterrupted_run_reads_the_order_from_its_start(whole: list[tuple[int, str]]) -> None:
    assert [position for position, _ in whole] == list(range(STEPS * GLOBAL_BATCH))
    assert len({digest for _, digest in whole}) == len(whole)


@pytest.mark.parametrize("name", MOVES)
def test_each_sequence_is_read_once_whatever_the_ranks(
    place: Place, whole: list[tuple[int, str]], tmp_path: Path, name: str
) -> None:
    (ranks, micro), (later_ranks, later_micro) = MOVES[name]
    first = read_in(place, tmp_path, ranks, 3, train_micro_batch_size_per_gpu=micro)
    rest = read_in(place, tmp_path, later_ranks, STEPS, train_micro_batch_size_per_gpu=later_micro)
    assert len(first) == 3 * GLOBAL_BATCH
    assert first + rest == whole


def test_each_sequence_is_read_once_with_another_global_batch(
    place: Place, whole: list[tuple[int, str]], tmp_path: Path
) -> None:
    """Half the batch after 3 steps of 8: the run goes on where it is, and has its remaining 5 steps."""
    first = read_in(place, tmp_path, 1, 3)
    rest = read_in(place, tmp_path, 1, STEPS, train_batch_size=4)
    assert len(rest) == 5 * 4
    assert first + rest == whole[: len(first) + len(rest)]
