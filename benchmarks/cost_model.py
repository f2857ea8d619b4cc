#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""The cost model of `--plan`: what it says about published runs, and about Llemma's on 256 GPUs.

    python benchmarks/cost_model.py [--runs FILE.json] [--calibration FILE.json] [--output FOLDER]

Nothing is run: the model of megatron/planning is asked. The first table compares it with speeds that others
measured (`published_speeds.json`, each with its source); runs marked "set by" gave the model its one figure
that is taken from whole runs, `sustained_share`, and all others it never saw. The second has Llemma's two
runs on 256 GPUs, as published and in the fastest layout that fits; the third how these times move with each
assumption. Writes `cost_model.md` and `cost_model.json` to --output.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.loader import load_config
from megatron.planning.calibration import read_calibration
from megatron.planning.flops import flops_per_token
from megatron.planning.gpus import find_gpu
from megatron.planning.layouts import Candidate, candidates, evaluate, fastest
from megatron.planning.length import Length, length_of
from megatron.planning.machine import Machine, machine_of
from megatron.planning.memory import Choice, choice_of
from megatron.planning.plan import checkpoints_of
from megatron.planning.published import published_run
from megatron.planning.recompute import described
from megatron.planning.sensitivity import Swing, swings
from megatron.planning.software import Software
from megatron.planning.speed import LinkUse, StepTime, step_time, utilisation

ROOT = Path(__file__).resolve().parents[1]
GPUS_PER_NODE = 8
# Of both of Llemma's runs: 1,024 sequences of 4,096 tokens a step.
PUBLISHED_GPUS, SEQUENCES = 256, 1024
LLEMMA = {"7b": "Llemma 7B", "34b": "Llemma 34B"}
GPUS = ("a100", "h100", "h200")
SCALED = (("7b", "a100"), ("7b", "h100"), ("34b", "a100"), ("34b", "h100"))
NODES = (4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Compared:
    """A published run beside what the model says of it; speeds in tokens a second and GPU."""

    name: str
    source: str
    gpu: str
    gpus: int
    note: str
    is_set_by: bool
    is_understood: bool
    measured: float
    modelled: float
    mfu_measured: float
    mfu_modelled: float
    shares: dict[str, float]

    @property
    def error(self) -> float:
        """Of the model: over 0 where it says faster than was measured."""
        return self.modelled / self.measured - 1


def compare(run: dict[str, Any], model: dict[str, Any]) -> Compared:
    """One entry of published_speeds.json."""
    gpus, cut = run["gpus"], run["tensor"] * run["pipeline"]
    cfg = config_of(run, model)
    machine = machine_of(
        nodes=-(-gpus // GPUS_PER_NODE),
        gpus_per_node=min(gpus, GPUS_PER_NODE),
        gpu_name=run["gpu"],
        gpu_memory=None,
        disk_speed=None,
        network_speed=run.get("network_speed"),
    )
    gpu = replace(machine.gpu, **run.get("gpu_changes", {}))
    software = Software(**run.get("software", {}))
    machine = replace(machine, gpu=gpu)
    vocab = model["vocab_size"]
    time = step_time(cfg, choice_of(cfg, gpus), machine, vocab, run["accumulation"], software)
    modelled = run["micro"] * run["accumulation"] * run["seq_length"] / cut / time.total
    of_peak = flops_per_token(cfg.model, vocab)[0] / (gpu.bf16_tflops * 1e12)
    return Compared(
        name=run["name"],
        source=run["source"],
        gpu=run["gpu"],
        gpus=gpus,
        note=run.get("note", ""),
        is_set_by=run.get("set_by", False),
        is_understood=not run.get("outside", False),
        measured=run["tokens_per_second_per_gpu"],
        modelled=modelled,
        mfu_measured=run["tokens_per_second_per_gpu"] * of_peak,
        mfu_modelled=modelled * of_peak,
        shares=time.shares(),
    )


def config_of(run: dict[str, Any], model: dict[str, Any]) -> RunConfig:
    """The run as this repository would have it."""
    overlap = run.get("overlap", True)
    parallel: dict[str, Any] = {
        "model_parallel_size": run["tensor"],
        "pipe_parallel_size": run["pipeline"],
        "recompute": run["recompute"],
        "overlap_grad_reduce": overlap,
        "overlap_param_gather": overlap,
    }
    if "sequence_parallel" in run:
        parallel["sequence_parallel"] = run["sequence_parallel"]
    sizes = {**model, "seq_length": run["seq_length"], "make_vocab_size_divisible_by": 1}
    return RunConfig.model_validate(
        {
            "model": {**sizes, "no_weight_tying": True},
            "parallel": parallel,
            "precision": {"precision": "bfloat16", "grad_accum_dtype": run.get("gradients", "fp32")},
            "batch": {
                "train_micro_batch_size_per_gpu": run["micro"],
                "gradient_accumulation_steps": run["accumulation"],
            },
            "optimizer": {"lr": 1e-3},
            "schedule": {"train_iters": 1, "lr_decay_style": "constant"},
        }
    )


@dataclass(frozen=True)
class Expected:
    """One of Llemma's runs on 256 GPUs by the model: its layout, a step, the whole run.

    `gpu_hours` are those of the configuration's steps, the other ones of as many steps as the paper trained.
    """

    size: str
    gpu: str
    layout: str
    choice: Choice
    settings: dict[str, object]
    mfu: float
    memory_gib: float
    step: StepTime
    length: Length
    gpu_hours: float
    gpu_hours_of_published_steps: float
    swings: list[Swing]


def expect(size: str, gpu: str, calibrations: Sequence[Path], nodes: int = 32) -> Iterator[Expected]:
    """As published where there are as many GPUs, then the fastest layout that fits; the batch is the same."""
    cfg, machine = llemma(size), cluster(gpu, calibrations, nodes)
    vocab = cfg.model.vocab_size
    assert vocab is not None
    if machine.gpus == PUBLISHED_GPUS:
        asis = evaluate(cfg, choice_of(cfg, machine.gpus), machine, vocab, SEQUENCES)
        yield expected(cfg, machine, asis, size, gpu, "as published")
    found = list(candidates(cfg, machine, vocab, SEQUENCES))
    for best in fastest(found, machine.planned_bytes, 1):
        yield expected(cfg, machine, best, size, gpu, "fastest that fits")


def expected(cfg: RunConfig, machine: Machine, one: Candidate, size: str, gpu: str, layout: str) -> Expected:
    vocab = cfg.model.vocab_size
    assert vocab is not None
    run = published_run(cfg.model)
    assert run is not None
    schedule = cfg.schedule.model_copy(update={"train_iters": run.steps})
    length, of_published = (
        length_of(
            steps,
            machine,
            step_seconds=one.time.total,
            forward_seconds=one.time.forward_passes,
            checkpoint_bytes=checkpoints_of(cfg, vocab, machine).bytes_each,
        )
        for steps in (cfg, cfg.model_copy(update={"schedule": schedule}))
    )
    return Expected(
        size=size,
        gpu=gpu,
        layout=layout,
        choice=one.choice,
        settings=one.settings(),
        mfu=one.mfu,
        memory_gib=one.memory.total / 2**30,
        step=one.time,
        length=length,
        gpu_hours=length.total_seconds / 3600 * machine.gpus,
        gpu_hours_of_published_steps=of_published.total_seconds / 3600 * machine.gpus,
        swings=swings(cfg, one.choice, machine, vocab, one.accumulation),
    )


def llemma(size: str) -> RunConfig:
    """The published run, saving while training goes on."""
    files = [ROOT / "configs" / f"llemma_{size}.yml", ROOT / "configs" / "proof_pile_2.yml"]
    return load_config(files, ["async_save=true"], check_files=False)[0]


def cluster(gpu: str, calibrations: Sequence[Path], nodes: int = 32) -> Machine:
    """Nodes of 8; a calibration holds for the GPUs it was measured on, others stay assumed."""
    known = find_gpu(gpu)
    mine = [path for path in calibrations if find_gpu(read_calibration(path).gpu) == known]
    return machine_of(
        nodes=nodes, gpus_per_node=8, gpu_name=gpu, gpu_memory=None, disk_speed=None, calibrations=mine
    )


def published_table(found: list[Compared]) -> Iterator[str]:
    yield "| Run | GPUs | Measured | MFU | Model | Error | |"
    yield "|---|---|---|---|---|---|---|"
    for one in found:
        remark = "set by" if one.is_set_by else one.note
        yield (
            f"| {one.name} | {one.gpus:,} {one.gpu} | {one.measured:,.0f} | {one.mfu_measured:.1%} "
            f"| {one.mfu_modelled:.1%} | {one.error:+.1%} | {remark} |"
        )
    unseen = [one for one in found if not one.is_set_by and one.is_understood]
    outside = [one for one in found if not one.is_understood]
    yield ""
    yield (
        f"{len(unseen)} runs that the model was not set by: mean error "
        f"{statistics.mean(one.error for one in unseen):+.1%}, mean absolute error "
        f"{statistics.mean(abs(one.error) for one in unseen):.1%}, largest "
        f"{max((one.error for one in unseen), key=abs):+.1%}. The last {len(outside)}, which differ in "
        "something that the model has no notion of, are not among them."
    )
    yield ""
    yield "Sources: " + "; ".join(sorted({one.source for one in found})) + "."


def expected_table(found: list[Expected]) -> Iterator[str]:
    yield (
        "| Run | GPUs | Layout | TP | PP | micro | recompute | GiB | MFU | step | training | evaluating | "
        "saving | days | GPU-hours | for the paper's steps | paper |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for one in found:
        keys, length = one.settings, one.length
        run = published_run(llemma(one.size).model)
        assert run is not None
        hours = [
            seconds / 3600
            for seconds in (length.training_seconds, length.evaluating_seconds, length.saving_seconds)
        ]
        yield (
            f"| {LLEMMA[one.size]} | 256 {one.gpu.upper()} | {one.layout} | {keys['model_parallel_size']} "
            f"| {keys['pipe_parallel_size']} | {keys['train_micro_batch_size_per_gpu']} "
            f"| {described(one.choice)} | {one.memory_gib:.1f} | {one.mfu:.1%} | {one.step.total:.2f} s "
            f"| {hours[0]:.1f} h | {hours[1]:.1f} h | {hours[2]:.1f} h | {length.total_seconds / 86400:.1f} "
            f"| {one.gpu_hours:,.0f} | {one.gpu_hours_of_published_steps:,.0f} ({run.steps:,}) "
            f"| {run.gpu_hours:,.0f} {run.gpu} |"
        )


def step_table(found: list[Expected]) -> Iterator[str]:
    """Where a step's seconds go, a column for each run."""
    yield "| Seconds of a step | " + " | ".join(_short(one) for one in found) + " |"
    yield "|---|" + "---|" * len(found)
    for name in found[0].step.parts():
        cells = [one.step.parts()[name] for one in found]
        if max(cells) >= 0.005:
            yield f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |"
    yield "| **in all** | " + " | ".join(f"**{one.step.total:.2f}**" for one in found) + " |"
    for name in ("tensor parallel communication", "reducing gradients", "gathering weights"):
        uses = [next((use for use in one.step.links if use.name == name), None) for one in found]
        hidden = [f"{use.hidden_seconds:.2f}" if use else "0.00" for use in uses]
        yield f"| hidden: {name} | " + " | ".join(hidden) + " |"
        sent = [f"{use.sent_bytes / 1e9:,.0f} {_link(use)}" if use else "0" for use in uses]
        yield f"| GB sent: {name} | " + " | ".join(sent) + " |"


def _link(use: LinkUse) -> str:
    return "between nodes" if use.is_between_nodes else "in the node"


def swing_table(found: list[Expected]) -> Iterator[str]:
    """Worse and better case of each assumption, relative to the step; a column for each run."""
    yield "| Assumption | worse; better | " + " | ".join(_short(one) for one in found) + " |"
    yield "|---|---|" + "---|" * len(found)
    order = [swing.assumption for swing in found[-1].swings]
    for name in order:
        row = [next(swing for swing in one.swings if swing.assumption == name) for one in found]
        cells = []
        for swing, one in zip(row, found, strict=True):
            changes = (
                seconds / one.step.total - 1 for seconds in (swing.worse_seconds, swing.better_seconds)
            )
            cells.append("; ".join(f"{change:+.1%}" for change in changes))
        yield f"| {name} | {row[-1].worse}; {row[-1].better} | " + " | ".join(cells) + " |"


def levers() -> Iterator[tuple[str, Software]]:
    """Software that does more and more, each on top of the one before."""
    plain = Software(norm_fused=False, swiglu_fused=False)
    yield "all pointwise kernels plain", plain
    fused = replace(plain, norm_fused=True, swiglu_fused=True)
    yield "norm and SwiGLU fused", fused
    more = replace(fused, rotary_fused=True, loss_fused=True, gradients_fused=True)
    yield "rotary, loss and gradient sums fused too", more
    overlapped = replace(more, tensor_overlap=True)
    yield "tensor parallel collectives in pieces beside products", overlapped
    yield "products of the layers in fp8", replace(overlapped, fp8=True)


def lever_table(found: list[Expected]) -> Iterator[str]:
    """MFU of the same layouts with other software, of the bfloat16 peak."""
    yield "| MFU with | " + " | ".join(_short(one) for one in found) + " |"
    yield "|---|" + "---|" * len(found)
    for words, software in levers():
        cells = [_mfu_with(one, software) for one in found]
        yield f"| {words} | " + " | ".join(cells) + " |"


def _mfu_with(one: Expected, software: Software) -> str:
    cfg, machine = llemma(one.size), cluster(one.gpu, ())
    if software.fp8 and not machine.gpu.fp8_tflops:
        return "has none"
    vocab, choice = cfg.model.vocab_size, one.choice
    assert vocab is not None
    accumulation = SEQUENCES // (machine.gpus // (choice.tensor * choice.pipeline) * choice.micro)
    time = step_time(cfg, choice, machine, vocab, accumulation, software)
    return f"{utilisation(cfg, machine, vocab, SEQUENCES * cfg.model.seq_length, time.total):.1%}"


def scale_table(calibrations: Sequence[Path]) -> Iterator[str]:
    """The same runs, with the same batch, on fewer and more GPUs; each in the fastest layout that fits."""
    yield "| GPUs | " + " | ".join(f"{LLEMMA[size]}, {gpu.upper()}" for size, gpu in SCALED) + " |"
    yield "|---|" + "---|" * len(SCALED)
    for nodes in NODES:
        cells = []
        for size, gpu in SCALED:
            found = [one for one in expect(size, gpu, calibrations, nodes) if one.layout != "as published"]
            cells += [_scaled(one) for one in found] or ["does not fit"]
        yield f"| {8 * nodes:,} | " + " | ".join(cells) + " |"


def _scaled(one: Expected) -> str:
    keys = one.settings
    layout = f"TP {keys['model_parallel_size']}, PP {keys['pipe_parallel_size']}"
    return f"{one.mfu:.1%}, {one.length.total_seconds / 86400:.1f} days, {one.gpu_hours:,.0f} h ({layout})"


def _short(one: Expected) -> str:
    layout = "fastest" if one.layout.startswith("fastest") else "published"
    return f"{one.size.upper()}, {one.gpu.upper()}, {layout}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=ROOT / "benchmarks" / "published_speeds.json")
    parser.add_argument(
        "--calibration", type=Path, action="append", default=[], help="measurements, as for deepy.py --plan"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks")
    options = parser.parse_args()
    data = json.loads(options.runs.read_text())
    compared = [compare(run, data["models"][run["model"]]) for run in data["runs"]]
    runs = [one for size in LLEMMA for gpu in GPUS for one in expect(size, gpu, options.calibration)]
    shown = [one for one in runs if one.gpu != "h200"]
    names = ", ".join(path.name for path in options.calibration)
    measured = f"calibrated by {names}" if names else "assumed rates"
    sections = [
        f"# The cost model: published runs, and Llemma's on 256 GPUs ({measured})",
        "Written by `python benchmarks/cost_model.py`; nothing here was run on a GPU by this repository.",
        "## Published runs",
        "\n".join(published_table(compared)),
        "## Llemma's runs on 256 GPUs",
        "\n".join(expected_table(runs)),
        "## Where the seconds of a step go",
        "\n".join(step_table(shown)),
        "## What software changes",
        "\n".join(lever_table(shown)),
        "## On fewer and more GPUs",
        "\n".join(scale_table(options.calibration)),
        "## How a step's time moves with each assumption",
        "\n".join(swing_table(shown)),
    ]
    text = "\n\n".join(sections) + "\n"
    print(text)
    (options.output / "cost_model.md").write_text(text)
    saved = {
        "published": [{**asdict(one), "error": one.error} for one in compared],
        "llemma": [asdict(one) for one in runs],
    }
    (options.output / "cost_model.json").write_text(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__":
    main()
