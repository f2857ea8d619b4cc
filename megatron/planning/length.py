# SPDX-License-Identifier: Apache-2.0
"""Seconds of a whole run: its steps, its evaluations, and what its saves keep it from."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice, pairwise

from megatron.neox_arguments.config import RunConfig
from megatron.planning.machine import Machine
from megatron.planning.saves import saved_iterations, saves_of

# The steps between two saves are looked at for so many of them; a run has far fewer.
_MOST_SAVES = 100_000


@dataclass(frozen=True)
class Length:
    """Seconds of a run by what they go to. Start-up, and what is lost with a node, are not in them.

    `evaluations` is how often the validation sources are evaluated, `evaluated_batches` counts the global
    batches of these and of the test sources. `lost_each_seconds` is what a save keeps training from, in the
    mean of all but the last, and `lost_last_seconds` what the run waits for that one.
    """

    training_seconds: float
    evaluating_seconds: float
    saving_seconds: float
    evaluations: int
    validation_sources: int
    test_sources: int
    evaluated_batches: int
    lost_each_seconds: float
    lost_last_seconds: float

    @property
    def total_seconds(self) -> float:
        return self.training_seconds + self.evaluating_seconds + self.saving_seconds


def length_of(
    cfg: RunConfig,
    machine: Machine,
    *,
    step_seconds: float,
    forward_seconds: float,
    checkpoint_bytes: int,
) -> Length:
    """The run's seconds from iteration 0; `forward_seconds` are those of a step's forward passes alone.

    An evaluation takes `eval_iters` global batches of each source through the forward pass. A save
    that waits keeps training from all of its writing, an asynchronous one from the copy to the host's memory;
    where writing takes longer than the steps to the next save, that one waits for it, and the end of the run
    for all of the last one.
    """
    steps = cfg.schedule.train_iters
    validation, test = held_out_sources(cfg)
    evaluations = evaluations_of(cfg) if validation else 0
    batches = (evaluations * validation + test) * cfg.validation.eval_iters
    saves = saves_of(cfg).written
    each, last = lost_seconds(cfg, machine, checkpoint_bytes, step_seconds)
    return Length(
        training_seconds=steps * step_seconds,
        evaluating_seconds=batches * forward_seconds,
        saving_seconds=(saves - 1) * each + last if saves else 0.0,
        evaluations=evaluations,
        validation_sources=validation,
        test_sources=test,
        evaluated_batches=batches,
        lost_each_seconds=each,
        lost_last_seconds=last,
    )


def evaluations_of(cfg: RunConfig) -> int:
    """As trainer/loop.py: before the first step, after every `eval_interval` steps, and after the last."""
    return cfg.validation.eval_at_start - (-cfg.schedule.train_iters // cfg.validation.eval_interval)


def lost_seconds(
    cfg: RunConfig, machine: Machine, checkpoint_bytes: int, step_seconds: float
) -> tuple[float, float]:
    """What a save keeps training from, in the mean of all but the last, and what the last one does."""
    gpu, rates = machine.gpu, machine.rates
    copying = checkpoint_bytes / machine.gpus / (gpu.host_gb_per_second * 1e9 * rates.host_share)
    writing = checkpoint_bytes / machine.disk_bytes_per_second
    iterations = list(islice(saved_iterations(cfg), _MOST_SAVES))
    if not iterations:
        return 0.0, 0.0
    last = rates.save_seconds + copying + writing
    if len(iterations) == 1:
        return 0.0, last
    if not cfg.checkpoint.async_save:
        return last, last
    waited = [max(0.0, writing - (later - earlier) * step_seconds) for earlier, later in pairwise(iterations)]
    return rates.save_seconds + copying + sum(waited) / len(waited), last


def held_out_sources(cfg: RunConfig) -> tuple[int, int]:
    """Validation and test sources that are evaluated; of `data_path`, the parts that `split` leaves for them.

    None where `eval_iters` is 0; a weight of 0 leaves a source out, and `do_test` all test sources.
    """
    data, validation = cfg.data, cfg.validation
    if not validation.eval_iters:
        return 0, 0
    if data.data_path is not None:
        shares = [float(share) for share in data.split.replace("/", ",").split(",")]
        valid, test = (int(len(shares) > place and shares[place] > 0) for place in (1, 2))
    else:
        valid, test = (
            sum(weight > 0 for weight in weights)
            for weights in (data.valid_data_weights, data.test_data_weights)
        )
    return valid, test if validation.do_test else 0
