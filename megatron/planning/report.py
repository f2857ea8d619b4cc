# SPDX-License-Identifier: Apache-2.0
"""A plan in words for people, and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from megatron.launcher.plan import counted, describe
from megatron.neox_arguments.errors import shown
from megatron.planning.gpus import GIB
from megatron.planning.groups import crossing, nodes_of, rows_by_node, span
from megatron.planning.layouts import Candidate
from megatron.planning.machine import USED_SHARE
from megatron.planning.memory import Choice, Memory
from megatron.planning.plan import Plan
from megatron.planning.recompute import recompute_settings

_MOST_ROWS = 64


def in_words(plan: Plan) -> str:
    """The whole plan, section by section."""
    sections: list[tuple[str, Iterable[str]]] = [
        ("The run", _run(plan)),
        ("Groups by node", _groups(plan)),
        ("Data", _data(plan)),
        ("Memory of a rank", _memory(plan)),
        ("Time", _time(plan)),
        ("A step", _step(plan)),
        ("What its time hangs on", _swings(plan)),
        ("Checkpoints", _checkpoints(plan)),
        ("Fastest layouts that fit", _suggestions(plan)),
    ]
    if plan.machine.assumed:
        sections.append(("Assumed, because not said", [f"- {one}" for one in plan.machine.assumed]))
    return "\n\n".join("\n".join([title, "-" * len(title), *rows]) for title, rows in sections)


def _run(plan: Plan) -> Iterator[str]:
    machine = plan.machine
    yield _row(
        "machine",
        f"{counted(machine.nodes, 'node')} x {counted(machine.gpus_per_node, 'GPU')} = {machine.gpus:,} "
        f"{machine.gpu.name} with {_gib(machine.memory_bytes)} each",
    )
    yield from describe(plan.cfg, machine.gpus).splitlines()
    yield _row(
        "FLOPs",
        f"{plan.flops_per_token:.4g} a token (6 N + 12 L d s), "
        f"{plan.flops_per_token * plan.tokens:.4g} in all",
    )


def _groups(plan: Plan) -> Iterator[str]:
    layout, per_node = plan.layout, plan.machine.gpus_per_node
    data, pipes = layout.data_groups(), layout.pipeline_groups()
    of_tensor = counted(len(layout.tensor_groups()), "group")
    yield _row("tensor", f"{of_tensor} of {counted(layout.tensor, 'neighbouring rank')}")
    yield _row(
        "data", f"{counted(len(data), 'group')} of {layout.data:,}, such as {span(data[0])}, "
        f"over {counted(len(nodes_of(data[0], per_node)), 'node')}"
    )  # fmt: skip
    if layout.pipeline > 1:
        over = counted(len(nodes_of(pipes[0], per_node)), "node")
        yield _row(
            "pipeline",
            f"{counted(len(pipes), 'group')} of {layout.pipeline}, such as {span(pipes[0])}, over {over}",
        )
    torn, gpu = crossing(layout, per_node), plan.machine.gpu
    if torn:
        yield (
            f"warning: {counted(len(torn), 'tensor parallel group')} {'lies' if len(torn) == 1 else 'lie'} "
            f"on more than one node, such as ranks {span(torn[0])} on nodes "
            f"{span(nodes_of(torn[0], per_node))}: every layer waits for the network "
            f"({gpu.network_gb_per_second:g} GB/s, not {gpu.node_gb_per_second:g}); "
            f"use model_parallel_size at most {per_node} and dividing it"
        )
    yield f"{'node':>6}  {'ranks':<12} {'stage':<8} {'data ranks':<14} tensor parallel groups"
    rows = rows_by_node(layout, per_node)
    for row in rows[:_MOST_ROWS]:
        groups = " ".join(span(group) for group in row.tensor_groups)
        yield (
            f"{row.node:>6}  {span(row.ranks):<12} {span(row.pipeline_stages):<8} "
            f"{span(row.data_parallel_ranks):<14} {groups}"
        )
    if len(rows) > _MOST_ROWS:
        yield f"{'…':>6}  and {counted(len(rows) - _MOST_ROWS, 'more node')}; --json has all groups"


def _data(plan: Plan) -> Iterator[str]:
    if not plan.sources:
        yield "no training source is given"
    for use in plan.sources:
        text = f"{use.share:.1%}, {use.tokens_read:,} tokens are read"
        if use.epochs is not None:
            text += f" of {use.tokens:,}: {use.epochs:.2f} epochs"
        else:
            text += f"; its epochs are not known: {use.why_unknown or 'it is empty'}"
        yield _row(use.name, text)


def _memory(plan: Plan) -> Iterator[str]:
    if plan.is_measured:
        yield "Measured: the model, its buffers and its optimizer were built on paper, and a step was taken."
    else:
        yield f"By arithmetic alone, within a tenth: {plan.not_measured_because}, so nothing was built."
    if plan.settled is not None:
        yield f"By arithmetic: {plan.settled.in_words()}."
    kinds = list(asdict(plan.stages[0].memory))
    yield f"{'stage':>6} {'rank':>6} {'parameters':>16} " + " ".join(
        f"{kind:>11}" for kind in [*kinds, "total"]
    )
    for stage in plan.stages:
        amounts = [*asdict(stage.memory).values(), stage.memory.total]
        yield f"{stage.stage:>6} {stage.rank:>6} {stage.parameters:>16,} " + " ".join(
            f"{_gib(amount):>11}" for amount in amounts
        )
    need, there, most = plan.fullest.memory.total, plan.machine.memory_bytes, plan.machine.planned_bytes
    margin = f"a plan uses at most {USED_SHARE:.0%} of it, {_gib(most)}"
    if plan.fits:
        yield f"fits: {_gib(need)} of {_gib(there)}, which is {need / there:.0%}; {margin}"
        return
    much = f"{_gib(need - there)} too much" if need > there else "no margin is left"
    yield f"DOES NOT FIT: {_gib(need)} needed, {_gib(there)} there ({much}); {margin}"
    if not plan.remedies:
        yield "No layout of this run fits on these GPUs: use more of them, or larger ones."
    for one in plan.remedies:
        cost = f"{_gib(one.memory.total)}, {_slower(one, plan.run)}"
        yield f"  would fit ({cost}): {_as_options(one, plan.run)}"


def _time(plan: Plan) -> Iterator[str]:
    origin = "given by --mfu" if plan.mfu_is_given else "the cost model's, docs/planning.md; --mfu sets it"
    rate = plan.tokens_per_second
    yield _row("at MFU", f"{plan.mfu:.1%} of {plan.machine.gpu.bf16_tflops:g} TFLOP/s ({origin})")
    yield _row(
        "speed",
        f"{rate:,.0f} tokens/s, {rate / plan.machine.gpus:,.0f} a GPU; "
        f"a step takes {plan.tokens_per_step / rate:.2f} s",
    )
    length = plan.length
    yield _row("training", f"{_hours(length.training_seconds)}, {plan.gpu_hours:,.0f} GPU-hours")
    yield _row("evaluating", f"{_hours(length.evaluating_seconds)}: {_evaluated(plan)}")
    yield _row("saving", f"{_hours(length.saving_seconds)}: {_saved(plan)}")
    total_gpu_hours = plan.hours * plan.machine.gpus
    yield _row("in all", f"{_hours(length.total_seconds)}, {total_gpu_hours:,.0f} GPU-hours")
    run = plan.published
    if run is not None:
        yield _row(
            "published",
            f"{run.name} took {run.gpu_hours:,.0f} {run.gpu}-hours for {run.steps:,} steps, "
            f"{run.tokens / 1e9:,.0f} B tokens ({run.source}): "
            f"{run.tokens_per_second_per_gpu:,.0f} tokens/s a GPU, "
            f"which is an MFU of {run.implied_mfu(plan.cfg.model, plan.vocab):.1%}",
        )


def _evaluated(plan: Plan) -> str:
    """How often, and how many global batches of how many sources."""
    length, each = plan.length, plan.cfg.validation.eval_iters
    if not length.evaluated_batches:
        return "eval_iters is 0" if not each else "there is no validation or test source"
    parts = []
    if length.evaluations:
        sources = counted(length.validation_sources, "source")
        parts.append(f"{counted(length.evaluations, 'time')} {_batches(each)} of {sources}")
    if length.test_sources:
        sources = counted(length.test_sources, "test source")
        parts.append(f"at the end {_batches(each)} of {sources}")
    return f"{', '.join(parts)}; {_batches(length.evaluated_batches)} in all"


def _saved(plan: Plan) -> str:
    if not plan.checkpoints.written:
        return "save is not set"
    last, each = plan.length.lost_last_seconds, plan.length.lost_each_seconds
    if plan.checkpoints.written == 1:
        return f"{last:,.1f} s lost with the only save, at the end"
    if each == last:
        return f"{each:,.1f} s lost with each save"
    return f"{each:,.1f} s lost with each save, {last:,.1f} s with the last"


def _batches(number: int) -> str:
    return f"{number:,} batch" if number == 1 else f"{number:,} batches"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h ({seconds / 86400:.1f} days)"


def _step(plan: Plan) -> Iterator[str]:
    """The step by the cost model, whatever --mfu says."""
    time = plan.run.time
    yield f"{'seconds':>9} {'share':>6}"
    for name, seconds in time.parts().items():
        if seconds > 0:
            yield f"{seconds:>9.3f} {seconds / time.total:>6.1%}  {name}"
    yield f"{time.total:>9.3f} {'':>6}  a step, by the cost model"
    if time.links:
        yield f"{'GB sent':>9} {'waited':>8} {'hidden':>8}  by each GPU in a step, over"
    for use in time.links:
        link = "the network between nodes" if use.is_between_nodes else "the links in a node"
        yield (
            f"{use.sent_bytes / 1e9:>9.1f} {use.waited_seconds:>6.3f} s {use.hidden_seconds:>6.3f} s  "
            f"{link}: {use.name}"
        )


def _swings(plan: Plan) -> Iterator[str]:
    yield f"{'worse':>8} {'better':>8}  a step's time with one assumption changed"
    for swing in plan.swings:
        worse, better = (
            seconds / plan.run.time.total - 1 for seconds in (swing.worse_seconds, swing.better_seconds)
        )
        if swing.width > 1e-3 * plan.run.time.total:
            yield f"{worse:>+8.1%} {better:>+8.1%}  {swing.assumption}: {swing.worse}; {swing.better}"


def _checkpoints(plan: Plan) -> Iterator[str]:
    found, speed = plan.checkpoints, plan.machine.disk_bytes_per_second / 1e9
    yield _row(
        "each", f"{found.bytes_each / 1e9:,.1f} GB, of which weights {found.weights_bytes / 1e9:,.1f} GB"
    )
    hidden = "while training goes on" if plan.cfg.checkpoint.async_save else "during which training waits"
    yield _row("to write", f"{found.seconds_each:,.0f} s at {speed:g} GB/s, {hidden}")
    if not found.written:
        yield _row("in all", "none is written: save is not set")
        return
    of_these = f" ({counted(found.milestones, 'milestone')} among them)" if found.milestones else ""
    yield _row(
        "in all",
        f"{found.written:,} written, {found.kept:,} kept{of_these}: "
        f"{found.kept * found.bytes_each / 1e12:,.2f} TB",
    )


def _suggestions(plan: Plan) -> Iterator[str]:
    """By arithmetic: the memory may differ by a tenth from what a plan of that layout measures."""
    if not plan.suggestions:
        yield "none"
        return
    yield (
        f"{'':>3} {'TP':>3} {'PP':>3} {'DP':>5} {'micro':>6} {'recompute':>10} {'memory':>10} {'MFU':>6} "
        f"{'step':>8}  why"
    )
    for place, one in enumerate(plan.suggestions, start=1):
        choice = one.choice
        data = plan.machine.gpus // (choice.tensor * choice.pipeline)
        yield (
            f"{place:>2}. {choice.tensor:>3} {choice.pipeline:>3} {data:>5} {choice.micro:>6} "
            f"{_recompute(choice):>10} {_gib(one.memory.total):>10} {one.mfu:>6.1%} "
            f"{one.time.total:>6.2f} s  {_shares(one)}"
        )
    first = plan.suggestions[0]
    if first.changes(plan.run):
        yield f"the first: {_as_options(first, plan.run)}"
        yield f"           {_slower(first, plan.run)}, by the same model"
    else:
        yield "the first is the run as it is configured"


def _recompute(choice: Choice) -> str:
    """`none`, `parts`, `full`, or how many layers of a stage are computed again: `full in 5`."""
    if choice.recompute_num_layers is not None:
        return f"full in {choice.recompute_num_layers}"
    return {"selective": "parts"}.get(choice.recompute, choice.recompute)


def _shares(one: Candidate) -> str:
    return ", ".join(f"{share:.0%} {name}" for name, share in one.time.shares().items())


def _slower(one: Candidate, run: Candidate) -> str:
    ratio = one.time.total / run.time.total
    return f"{ratio:.2f} times the time of the run as configured"


def _as_options(one: Candidate, run: Candidate) -> str:
    changes = one.changes(run).items()
    return " ".join(f"--set {key}={_typed(value)}" for key, value in changes) or "as configured"


def _typed(value: object) -> str:
    """As a shell passes it on: YAML needs no quotes in a list of names."""
    return f"[{','.join(value)}]" if isinstance(value, tuple) else shown(value)


def _row(name: str, text: str) -> str:
    return f"{name:<13} {text}"


def _gib(amount: float) -> str:
    return f"{amount / GIB:,.2f} GiB"


def as_data(plan: Plan) -> dict[str, Any]:
    """The plan for programs; docs/planning.md names the keys.

    Parameters are rank 0's, memory is that of the rank which needs the most.
    """
    machine, layout, rates = plan.machine, plan.layout, plan.machine.rates
    return {
        "nodes": machine.nodes,
        "gpus_per_node": machine.gpus_per_node,
        "gpu": machine.gpu.name,
        "gpu_memory_bytes": machine.memory_bytes,
        "planned_memory_bytes": machine.planned_bytes,
        "world_size": machine.gpus,
        "tensor_parallel_size": layout.tensor,
        "pipeline_parallel_size": layout.pipeline,
        "data_parallel_size": layout.data,
        "tensor_parallel_groups": layout.tensor_groups(),
        "pipeline_parallel_groups": layout.pipeline_groups(),
        "data_parallel_groups": layout.data_groups(),
        "tensor_parallel_groups_over_nodes": crossing(layout, machine.gpus_per_node),
        "nodes_of_ranks": [asdict(row) for row in rows_by_node(layout, machine.gpus_per_node)],
        "sequences_per_step": plan.sequences_per_step,
        "tokens_per_step": plan.tokens_per_step,
        "gradient_accumulation_steps": plan.accumulation,
        "steps": plan.steps,
        "tokens": plan.tokens,
        "sources": [asdict(use) for use in plan.sources],
        "parameters_per_rank": plan.stages[0].parameters,
        "memory_bytes_per_rank": _memory_data(plan.fullest.memory),
        "memory_is_measured": plan.is_measured,
        "recompute": recompute_settings(plan.run.choice),
        "recompute_was_auto": plan.settled is not None,
        "fits": plan.fits,
        "stages": [
            {
                "stage": stage.stage,
                "rank": stage.rank,
                "parameters": stage.parameters,
                "memory_bytes": _memory_data(stage.memory),
            }
            for stage in plan.stages
        ],
        "flops_per_token": plan.flops_per_token,
        "flops": plan.flops_per_token * plan.tokens,
        "mfu": plan.mfu,
        "mfu_is_given": plan.mfu_is_given,
        "tokens_per_second": plan.tokens_per_second,
        "gpu_hours": plan.gpu_hours,
        "step_seconds": plan.run.time.total,
        "step_parts_seconds": plan.run.time.parts(),
        "links": [asdict(use) for use in plan.run.time.links],
        "length": {**asdict(plan.length), "total_seconds": plan.length.total_seconds},
        "swings": [asdict(swing) for swing in plan.swings],
        "calibrated": [] if rates.calibration is None else rates.calibration.measured(),
        "published": _published_data(plan),
        "checkpoint": asdict(plan.checkpoints),
        "suggestions": [_candidate_data(one, plan) for one in plan.suggestions],
        "would_fit": [_candidate_data(one, plan) for one in plan.remedies],
        "assumed": list(machine.assumed),
    }


def _memory_data(memory: Memory) -> dict[str, int]:
    return {**asdict(memory), "total": memory.total}


def _candidate_data(one: Candidate, plan: Plan) -> dict[str, Any]:
    return {
        "settings": one.settings(),
        "changes": one.changes(plan.run),
        "memory_bytes": _memory_data(one.memory),
        "mfu": one.mfu,
        "step_seconds": one.time.total,
        "shares": one.time.shares(),
    }


def _published_data(plan: Plan) -> dict[str, Any] | None:
    run = plan.published
    if run is None:
        return None
    return {
        "name": run.name,
        "gpu_hours": run.gpu_hours,
        "steps": run.steps,
        "tokens": run.tokens,
        "tokens_per_second_per_gpu": run.tokens_per_second_per_gpu,
        "mfu": run.implied_mfu(plan.cfg.model, plan.vocab),
    }
