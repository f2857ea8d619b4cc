# SPDX-License-Identifier: Apache-2.0
"""Runs of train.py with a fault put into them: called on every rank by the tests of recovery.

A fault is a name and its particulars. Steps are counted from 1 over the calls of `compute_gradients`, which a
diagnosis does not make, so a fault of one step is gone when the step is computed again.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def trained(config: str, faults: Sequence[tuple[Any, ...]]) -> int:
    """Trains as train.py does, with `faults`; returns the exit status, 2 for an error of the user's."""
    import train
    from megatron.launcher.frozen import read_frozen
    from megatron.neox_arguments import UserError
    from megatron.trainer.interruption import StopRequest
    from megatron.trainer.startup import StartUp

    for name, *particulars in faults:
        globals()[name](*particulars)
    try:
        cfg, stop = read_frozen(Path(config), {}), StopRequest().listen()
        train.run_training(cfg, stop, "python deepy.py train.py", StartUp())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as end:  # of a rank that leaves the talking to another
        return int(end.code or 0)
    return 0


def _rank() -> int:
    import torch.distributed as dist

    return dist.get_rank()


def _module(name: str) -> Any:
    return importlib.import_module(f"megatron.trainer.{name}")


def _at_step(step: int, act: Callable[[Any], None], rank: int | None = None) -> None:
    """Calls `act(state)` before the gradients of a step, on one rank or on all."""
    loop = _module("loop")

    compute, done = loop.compute_gradients, 0

    def counting(state: Any, *arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == step and (rank is None or _rank() == rank):
            act(state)
        return compute(state, *arguments)

    loop.compute_gradients = counting


def bad_sample(*positions: int) -> None:
    """The data: the loss mask of some sequences is not a number, whoever reads them."""
    from megatron.data.mcore_datasets import Sample, SequenceOrder

    read = SequenceOrder.__getitem__

    def reading(order: Any, position: int) -> Sample:
        sample = read(order, position)
        if position in positions and len(order) > 20:  # not in the validation sets, which are shorter
            return sample._replace(loss_mask_S=sample.loss_mask_S * float("nan"))
        return sample

    SequenceOrder.__getitem__ = reading  # type: ignore[method-assign]


def bad_weight(step: int, rank: int) -> None:
    """The weights: one number in the memory of one rank is lost before a step."""

    def spoil(state: Any) -> None:
        weights = dict(state.model.named_parameters())
        name = next(name for name in weights if name.endswith("mlp.linear_fc2.weight"))
        weights[name].data.view(-1)[7] = float("nan")

    _at_step(step, spoil, rank)


def bad_loss_once(step: int, rank: int) -> None:
    """One rank: its loss is not a number in one step."""
    of_step = _module("step")

    mean_loss, is_now = of_step._mean_loss, False

    def arm(state: Any) -> None:
        nonlocal is_now
        is_now = True

    def failing(*arguments: Any) -> Any:
        nonlocal is_now
        loss, report = mean_loss(*arguments)
        if is_now:
            is_now = False
            return loss * float("nan"), {"loss": report["loss"] * float("nan")}
        return loss, report

    of_step._mean_loss = failing
    _at_step(step, arm, rank)


def bad_gradient_once(step: int, rank: int) -> None:
    """One rank: its gradient of one weight is infinite in one step, the loss is finite."""

    def arm(state: Any) -> None:
        weights = dict(state.model.named_parameters())
        name = next(name for name in weights if name.endswith("mlp.linear_fc1.weight"))
        handle: Any = None

        def spoil(gradient: Any) -> Any:
            handle.remove()
            return gradient * float("inf")

        handle = weights[name].register_hook(spoil)

    _at_step(step, arm, rank)


def bad_module(step: int, rank: int) -> None:
    """One rank: from a step on, a part of one module's output there is never a number."""

    def arm(state: Any) -> None:
        module = next(m for name, m in state.model.named_modules() if name.endswith("core_attention"))
        module.register_forward_hook(lambda _module, _inputs, output: output * float("nan"))

    _at_step(step, arm, rank)


def high_loss(first: int, last: int) -> None:
    """A spike: for some steps the loss that is seen is ten times what it is."""
    loop = _module("loop")

    read, done = loop.read_sums, 0

    def counting(*arguments: Any) -> Any:
        nonlocal done
        done += 1
        loss, sums = read(*arguments)
        return (10 * loss if first <= done <= last else loss), sums

    loop.read_sums = counting


def left_out(*steps: int) -> None:
    """No fault: a reference in which the updates of some steps are left out."""
    loop = _module("loop")

    update, done = loop.update_weights, 0

    def leaving_out(*arguments: Any) -> float:
        nonlocal done
        done += 1
        return 1.0 if done in steps else update(*arguments)

    loop.update_weights = leaving_out


def slow(rank: int, seconds: float) -> None:
    """One rank computes longer."""
    import time

    of_step = _module("step")

    mean_loss = of_step._mean_loss

    def slowly(*arguments: Any) -> Any:
        if _rank() == rank:
            time.sleep(seconds)
        return mean_loss(*arguments)

    of_step._mean_loss = slowly


def stuck(step: int, rank: int, seconds: float) -> None:
    """One rank does not come to a step."""
    import time

    _at_step(step, lambda state: time.sleep(seconds), rank)


def bad_weight_after(step: int) -> None:
    """The weights: one number in the memory of rank 1 is lost after a step's update."""
    loop = _module("loop")

    update, done = loop.update_weights, 0

    def spoiling(state: Any, *arguments: Any) -> float:
        nonlocal done
        done += 1
        norm = update(state, *arguments)
        if done == step and _rank() == 1:
            next(state.model.parameters()).data.view(-1)[7] = float("nan")
        return norm

    loop.update_weights = spoiling


def slow_write(seconds: float) -> None:
    """A disk on which this rank's share of a checkpoint takes a while."""
    import time

    saving: Any = importlib.import_module("megatron.checkpointing.saving")
    write = saving._write

    def slowly(*arguments: Any) -> Any:
        time.sleep(seconds)
        return write(*arguments)

    saving._write = slowly


def killed_in_a_save(rank: int) -> None:
    """One rank's process is gone while the ranks agree on who writes what."""
    import os
    import signal

    saving: Any = importlib.import_module("megatron.checkpointing.saving")

    plan = saving._plan

    def planning(*arguments: Any) -> Any:
        if _rank() == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return plan(*arguments)

    saving._plan = planning


def killed_at(step: int, rank: int) -> None:
    """One rank's process is gone in a step."""
    import os
    import signal

    _at_step(step, lambda state: os.kill(os.getpid(), signal.SIGKILL), rank)
