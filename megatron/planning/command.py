# SPDX-License-Identifier: Apache-2.0
"""`deepy.py … --plan`: from the command line to a plan that is printed, and saved with --json."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from megatron.launcher.devices import count_gpus
from megatron.launcher.plan import plan_ranks
from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.whole_files import write_whole
from megatron.planning.machine import DEFAULT_GPUS_PER_NODE, Machine, machine_of
from megatron.planning.plan import make_plan
from megatron.planning.report import as_data, in_words

STANDARD_OUTPUT = Path("-")


def run_plan(cfg: RunConfig, options: argparse.Namespace) -> int:
    """Prints the plan, and writes it to `--json`; returns 0 whether the run fits or not.

    `--json -` is for a program that reads the standard output: nothing else is printed.

    Raises:
        UserError: see the message; nothing is printed then.
    """
    machine = _machine(cfg, options)
    plan = make_plan(cfg, machine, options.mfu)
    data = json.dumps(as_data(plan), indent=1) + "\n" if options.json is not None else ""
    if options.json == STANDARD_OUTPUT:
        print(data, end="")
        return 0
    if options.json is not None:
        _write(options.json, data)
    print(in_words(plan))
    return 0


def _machine(cfg: RunConfig, options: argparse.Namespace) -> Machine:
    nodes, per_node, assumed = _nodes(cfg, options)
    return machine_of(
        nodes=nodes,
        gpus_per_node=per_node,
        gpu_name=options.gpu,
        gpu_memory=options.gpu_memory,
        disk_speed=options.disk_speed,
        network_speed=options.network_speed,
        calibrations=tuple(options.calibration or ()),
        assumed=tuple(assumed),
    )


def _nodes(cfg: RunConfig, options: argparse.Namespace) -> tuple[int, int, list[str]]:
    """Nodes, GPUs of each, and what was assumed: options first, then the configuration, then this machine."""
    assumed = []
    nodes, per_node, ranks = options.nodes, options.gpus_per_node, options.world_size
    if nodes is not None and ranks is not None:
        raise UserError(
            f"--nodes={nodes}: is set beside --world-size={ranks}; use --nodes and --gpus-per-node"
        )
    if nodes is None and ranks is None:
        nodes = cfg.launch.num_nodes
    if nodes is None and per_node is None and ranks is None:
        here = plan_ranks(cfg, count_gpus(os.environ))
        ranks = here.ranks
        assumed.append(f"the ranks are those that a start on this machine has: {here} (--nodes)")
    if per_node is None:
        per_node = cfg.launch.num_gpus or DEFAULT_GPUS_PER_NODE
        if ranks is not None:
            per_node = min(per_node, ranks)
        assumed.append(f"a node has {per_node} GPUs (--gpus-per-node)")
    if ranks is not None:
        if per_node < 1 or ranks % per_node:
            raise UserError(
                f"--world-size={ranks}: is no whole number of nodes with {per_node} GPUs; use --nodes"
            )
        nodes = ranks // per_node
    if nodes is None:
        nodes = 1
        assumed.append("there is one node (--nodes)")
    return nodes, per_node, assumed


def _write(path: Path, text: str) -> None:
    """In one step: a program that waits for the file sees all of it or none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise UserError(
            f"--json={path}: cannot be written ({error.strerror}); choose another place"
        ) from error
