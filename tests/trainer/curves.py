# SPDX-License-Identifier: Apache-2.0
"""Training a small Llama on random tokens in any layout: called on every rank by the tests beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.llamas import run_config

if TYPE_CHECKING:
    from megatron.checkpointing.record import CheckpointRecord
    from megatron.data.loader import MicroBatch

GLOBAL_BATCH, MICRO_BATCH, SEQ_LENGTH, VOCAB = 8, 2, 64, 512


def micro_batch_size(tensor_parallel_size: int) -> int:
    """Larger, so fewer, with tensor parallelism: on gloo a collective takes longer than a layer."""
    return min(GLOBAL_BATCH, MICRO_BATCH * tensor_parallel_size)


def micro_batches(
    start: int, data_parallel_size: int, data_parallel_rank: int, size: int = MICRO_BATCH
) -> Iterator[MicroBatch]:
    """The micro-batches of one rank from step `start` on; every layout sees the same global batches."""
    import torch

    from megatron.data.loader import MicroBatch

    for step in range(start, 10_000):
        generator = torch.Generator().manual_seed(1000 + step)
        # Few tokens and a rule between neighbours: something that 40 steps can learn.
        sequences = torch.randint(0, 32, (GLOBAL_BATCH, SEQ_LENGTH + 1), generator=generator)
        sequences[:, 1::2] = (sequences[:, 0:-1:2] + 1) % 32
        for first in range(0, GLOBAL_BATCH, size * data_parallel_size):
            begin = first + data_parallel_rank * size
            mine = sequences[begin : begin + size]
            tokens, labels = mine[:, :-1].contiguous(), mine[:, 1:].contiguous()
            yield MicroBatch(tokens, labels, torch.ones(tokens.shape), torch.arange(begin, begin + size))


def train_curve(
    steps: int,
    changes: dict[str, Any],
    save: str | None = None,
    save_at: int = 0,
    resume: bool = False,
    copy_to: str | None = None,
) -> dict[str, Any]:
    """Trains `steps` steps; returns losses, gradient norms and digests of this rank's weights.

    "weights" is of all of them, "uncut" of those that every tensor parallel rank holds whole.
    With `save`, writes a checkpoint after `save_at` steps; with `resume`, starts from the one there, and with
    `copy_to` writes it again, as this layout holds it, before the first step.
    """
    from megatron.backend import initialize
    from megatron.checkpointing import folders
    from megatron.checkpointing.record import CheckpointRecord
    from megatron.checkpointing.saving import save as save_checkpoint
    from megatron.checkpointing.state import load_all
    from megatron.model import build
    from megatron.trainer.adam import give_to_megatron_core
    from megatron.trainer.setup import TrainingState, wrap
    from megatron.trainer.step import compute_gradients, reduce_over_ranks, update_weights

    micro_batch = micro_batch_size(changes.get("parallel", {}).get("model_parallel_size", 1))
    batch = {"train_micro_batch_size_per_gpu": micro_batch, "train_batch_size": GLOBAL_BATCH}
    cfg = run_config(seq_length=SEQ_LENGTH, batch=batch, **changes)
    backend = initialize(cfg.parallel, seed=1)
    give_to_megatron_core()
    built = build(cfg, backend, VOCAB, VOCAB)
    state = TrainingState(built, wrap(cfg, built))
    start = 0
    if resume and save is not None:
        folder = folders.find(Path(save))
        assert folder is not None
        record = CheckpointRecord.read(folder)
        load_all(folder, state.trainable, record, backend)
        start = record.iteration
        if copy_to is not None:
            again = record_at(cfg, backend, start)
            save_checkpoint(Path(copy_to), state.trainable, again, backend, None, [])
    batches = micro_batches(start, backend.data_parallel_size, backend.data_parallel_rank, micro_batch)
    losses, norms = [], []
    for step in range(start, steps):
        local = compute_gradients(state, cfg, backend, batches)
        losses.append(reduce_over_ranks(local, [], backend)[0])
        norms.append(update_weights(state, cfg, lr=3e-3 / (1 + 0.05 * step)))
        if save is not None and not resume and step + 1 == save_at:
            record = record_at(cfg, backend, step + 1)
            save_checkpoint(Path(save), state.trainable, record, backend, None, [])
    parameters = dict(state.model.named_parameters())
    uncut = {n: p for n, p in parameters.items() if not getattr(p, "tensor_model_parallel", False)}
    return {"losses": losses, "norms": norms, "weights": _digest(parameters), "uncut": _digest(uncut)}


def train_curves(steps: int, calls: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """`train_curve` with one tuple of arguments after the other, in the same processes."""
    import megatron.backend  # noqa: F401  (before megatron.core)
    from megatron.core import parallel_state

    curves = []
    for call in calls:
        curves.append(train_curve(steps, *call))
        parallel_state.destroy_model_parallel()
    return curves


def record_at(cfg: Any, backend: Any, iteration: int) -> CheckpointRecord:
    """The record of a checkpoint of this model after so many steps."""
    from megatron.checkpointing.record import CheckpointRecord
    from megatron.checkpointing.state import layout_of

    return CheckpointRecord(
        iteration=iteration,
        sequences_seen=iteration * GLOBAL_BATCH,
        tokens_seen=iteration * GLOBAL_BATCH * SEQ_LENGTH,
        model=cfg.model.model_dump(mode="json"),
        vocab_size=VOCAB,
        padded_vocab_size=VOCAB,
        tokenizer_fingerprint="",
        dtype=cfg.precision.dtype_name,
        layout=layout_of(backend),
        has_optimizer=True,
    )


def _digest(parameters: dict[str, Any]) -> str:
    import hashlib

    import torch

    digest = hashlib.sha256()
    for _, parameter in sorted(parameters.items()):
        digest.update(parameter.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()
