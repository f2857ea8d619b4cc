# SPDX-License-Identifier: Apache-2.0
"""Which links a group's collectives go over: NVLink in a node, network cards between nodes.

A ring over nodes enters and leaves each of them once for each of its
members there, since NCCL makes as many rings as a node has network cards for the group: its rate is that of
all these cards together, and at most NVLink's (Sergeev & Del Balso 2018; NCCL's own "bus bandwidth").
"""

from __future__ import annotations

from megatron.planning.machine import Machine
from megatron.planning.memory import Choice
from megatron.planning.rates import Rates
from megatron.planning.rings import Ring


def tensor_ring(machine: Machine, rates: Rates, choice: Choice) -> Ring:
    """The ranks that share a layer: neighbours."""
    per_node = machine.gpus_per_node
    is_inside = choice.tensor <= per_node and per_node % choice.tensor == 0
    return _ring(machine, rates, choice.tensor, min(choice.tensor, per_node), is_inside)


def data_ring(machine: Machine, rates: Rates, choice: Choice) -> Ring:
    """The ranks with the same part of the model: every `tensor`-th of a pipeline stage."""
    ranks = machine.gpus // (choice.tensor * choice.pipeline)
    is_inside = ranks * choice.tensor <= machine.gpus_per_node
    in_node = min(ranks, max(1, machine.gpus_per_node // choice.tensor))
    return _ring(machine, rates, ranks, in_node, is_inside)


def _ring(machine: Machine, rates: Rates, ranks: int, ranks_in_node: int, is_inside: bool) -> Ring:
    gpu = machine.gpu
    node = gpu.node_gb_per_second * 1e9 * rates.node_link_share
    if is_inside:
        return Ring(ranks, node, rates.node_step_seconds, crosses_nodes=False)
    cards = ranks_in_node * machine.network_bytes_per_second * rates.network_share
    return Ring(ranks, min(node, cards), rates.network_step_seconds, crosses_nodes=True)


def send_seconds(machine: Machine, rates: Rates, choice: Choice, sent_bytes: float) -> float:
    """Seconds to hand `sent_bytes` of one rank to the next pipeline stage."""
    stage_ranks = machine.gpus // choice.pipeline
    if choice.pipeline == 1:
        return 0.0
    if stage_ranks >= machine.gpus_per_node:
        rate = machine.network_bytes_per_second * rates.network_share
        return rates.network_step_seconds + sent_bytes / rate
    rate = machine.gpu.node_gb_per_second * 1e9 * rates.node_link_share
    return rates.node_step_seconds + sent_bytes / rate
