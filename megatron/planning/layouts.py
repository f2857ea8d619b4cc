# SPDX-License-Identifier: Apache-2.0
"""Other ways to run the same steps on the same GPUs: which fit, which are fastest, which are nearest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron.neox_arguments.checks import check_world
from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.model import pad_vocab
from megatron.planning.machine import RESERVED_BYTES, Machine
from megatron.planning.memory import Choice, Memory, fullest_stage
from megatron.planning.recompute import cheapest, recompute_settings
from megatron.planning.speed import StepTime, step_time, utilisation

_MICRO_BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Candidate:
    """A layout with what it needs and what it takes; both by arithmetic."""

    choice: Choice
    accumulation: int
    memory: Memory
    time: StepTime
    mfu: float

    def settings(self) -> dict[str, object]:
        """The keys that make a run this one."""
        return {**_parallel_settings(self.choice), **_batch_settings(self.choice, self.accumulation)}

    def changes(self, from_: Candidate) -> dict[str, object]:
        """The keys in which it differs, for `--set`."""
        before = from_.settings()
        return {key: value for key, value in self.settings().items() if before[key] != value}


def _parallel_settings(choice: Choice) -> dict[str, object]:
    return {
        "model_parallel_size": choice.tensor,
        "pipe_parallel_size": choice.pipeline,
        "sequence_parallel": choice.sequence_parallel,
        **recompute_settings(choice),
    }


def _batch_settings(choice: Choice, accumulation: int) -> dict[str, object]:
    return {
        "train_micro_batch_size_per_gpu": choice.micro,
        "gradient_accumulation_steps": accumulation,
    }


def configured(cfg: RunConfig, choice: Choice, accumulation: int) -> RunConfig:
    """`cfg` as it is with the keys of a layout, whether the rules allow that or not."""
    return cfg.model_copy(
        update={
            "parallel": cfg.parallel.model_copy(update=_parallel_settings(choice)),
            "batch": cfg.batch.model_copy(update=_batch_settings(choice, accumulation)),
        }
    )


def evaluate(cfg: RunConfig, choice: Choice, machine: Machine, vocab: int, global_batch: int) -> Candidate:
    """One layout by arithmetic; the batch is the same for all."""
    data = machine.gpus // (choice.tensor * choice.pipeline)
    accumulation = global_batch // (data * choice.micro)
    padded = pad_vocab(vocab, cfg.model.make_vocab_size_divisible_by, choice.tensor)
    _, memory = fullest_stage(cfg, choice, padded, machine.gpus, accumulation)
    time = step_time(cfg, choice, machine, padded, accumulation)
    mfu = utilisation(cfg, machine, vocab, global_batch * cfg.model.seq_length, time.total)
    return Candidate(choice, accumulation, replace(memory, reserved=RESERVED_BYTES), time, mfu)


def candidates(cfg: RunConfig, machine: Machine, vocab: int, global_batch: int) -> Iterator[Candidate]:
    """Every layout that the rules and the machine allow, with what it must compute again to fit.

    Tensor parallel groups stay in a node.
    """
    model = cfg.model
    for tensor in _divisors(machine.gpus_per_node):
        for pipeline in _divisors(model.num_layers):
            data, rest = divmod(machine.gpus, tensor * pipeline)
            if rest or not data or global_batch % data:
                continue
            for micro in _MICRO_BATCHES:
                if global_batch // data % micro:
                    continue
                sequence_parallel = tensor > 1 and model.seq_length % tensor == 0
                choice = Choice(tensor, pipeline, micro, "none", sequence_parallel)
                accumulation = global_batch // (data * micro)
                if check_world(configured(cfg, choice, accumulation), machine.gpus):
                    continue
                padded = pad_vocab(vocab, model.make_vocab_size_divisible_by, tensor)
                most = machine.planned_bytes - RESERVED_BYTES
                choice = cheapest(cfg, choice, padded, machine.gpus, accumulation, most)
                yield evaluate(cfg, choice, machine, vocab, global_batch)


def fastest(found: list[Candidate], memory_bytes: int, count: int) -> list[Candidate]:
    """The fastest that fit, at most one for each cut of the model, so that they are different things."""
    best: dict[tuple[int, int], Candidate] = {}
    for one in sorted(found, key=lambda one: (one.time.total, one.memory.total)):
        if one.memory.total <= memory_bytes:
            best.setdefault((one.choice.tensor, one.choice.pipeline), one)
    return list(best.values())[:count]


def nearest(found: list[Candidate], run: Candidate, memory_bytes: int, count: int) -> list[Candidate]:
    """Those that fit and differ least from the run: by how much is changed, then by speed."""

    def distance(one: Candidate) -> tuple[int, float]:
        mine, theirs = run.choice, one.choice
        cut = 3 * (mine.tensor != theirs.tensor) + 3 * (mine.pipeline != theirs.pipeline)
        same_sequence = mine.sequence_parallel == theirs.sequence_parallel
        small = (
            (recompute_settings(mine) != recompute_settings(theirs))
            + (mine.micro != theirs.micro)
            + (not same_sequence)
        )
        return cut + small, one.time.total

    return sorted((one for one in found if one.memory.total <= memory_bytes), key=distance)[:count]


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
