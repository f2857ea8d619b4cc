# SPDX-License-Identifier: Apache-2.0
"""How a step's time moves with each of the cost model's assumptions, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from megatron.neox_arguments.config import RunConfig
from megatron.planning.machine import Machine
from megatron.planning.memory import Choice
from megatron.planning.speed import step_time


@dataclass(frozen=True)
class Swing:
    """A step's seconds where an assumption is worse, and where it is better; both in words too."""

    assumption: str
    worse: str
    better: str
    worse_seconds: float
    better_seconds: float

    @property
    def width(self) -> float:
        return self.worse_seconds - self.better_seconds


def swings(
    cfg: RunConfig, choice: Choice, machine: Machine, padded_vocab: int, accumulation: int
) -> list[Swing]:
    """One for each assumption, the widest first."""

    def seconds(changed: Machine) -> float:
        return step_time(cfg, choice, changed, padded_vocab, accumulation).total

    found = [
        Swing(name, worse, better, seconds(worsen(machine)), seconds(improve(machine)))
        for name, (worse, worsen), (better, improve) in _assumptions(machine)
    ]
    return sorted(found, key=lambda swing: -swing.width)


_Change = tuple[str, Callable[[Machine], Machine]]


def _assumptions(machine: Machine) -> Iterator[tuple[str, _Change, _Change]]:
    """Name, the worse and the better case."""
    rates = machine.rates

    def rate(**changes: float) -> Callable[[Machine], Machine]:
        return lambda one: replace(one, rates=replace(one.rates, **changes))  # type: ignore[arg-type]

    def network(factor: float) -> Callable[[Machine], Machine]:
        slower = factor * machine.network_bytes_per_second
        return lambda one: replace(one, network_bytes_per_second=slower)

    def steps(factor: float) -> Callable[[Machine], Machine]:
        return rate(
            node_step_seconds=factor * rates.node_step_seconds,
            network_step_seconds=factor * rates.network_step_seconds,
        )

    sustained, memory, link = rates.sustained_share, rates.memory_share, rates.node_link_share
    yield (
        "clock kept, and slowest GPU",
        (f"{0.9 * sustained:.0%}", rate(sustained_share=0.9 * sustained)),
        (f"{min(1.0, 1.1 * sustained):.0%}", rate(sustained_share=min(1.0, 1.1 * sustained))),
    )
    yield (
        "attention kernel",
        ("0.75 times as fast", rate(attention_factor=0.75)),
        ("1.25 times", rate(attention_factor=1.25)),
    )
    yield (
        "memory rate reached",
        (f"{0.8 * memory:.0%}", rate(memory_share=0.8 * memory)),
        ("95%", rate(memory_share=0.95)),
    )
    yield (
        "least time of a kernel",
        (f"{3e6 * rates.launch_seconds:.0f} µs", rate(launch_seconds=3 * rates.launch_seconds)),
        ("0", rate(launch_seconds=0.0)),
    )
    yield (
        "links in a node",
        (f"{0.75 * link:.0%} of their rating", rate(node_link_share=0.75 * link)),
        ("95%", rate(node_link_share=0.95)),
    )
    yield (
        "network of a GPU",
        (f"{machine.network_bytes_per_second / 4e9:g} GB/s, a quarter", network(0.25)),
        (f"{machine.network_bytes_per_second / 5e8:g} GB/s, twice", network(2.0)),
    )
    yield "time of a ring's step", ("twice", steps(2.0)), ("half", steps(0.5))
    yield (
        "kernels slowed by collectives",
        ("30%", rate(slowdown_beside_collectives=0.30)),
        ("not at all", rate(slowdown_beside_collectives=0.0)),
    )
