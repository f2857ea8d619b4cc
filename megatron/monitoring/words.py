# SPDX-License-Identifier: Apache-2.0
"""Numbers as people read them: durations, bytes, token counts, and the log line made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from megatron.monitoring.metrics import EvalReport, StepReport

# A step's wait for its data is on the line above this share of the step; the record always has it.
_SHOWN_WAIT = 0.01


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 07 min`, `3 d 04 h`; `?` where it is not known."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def memory(count_bytes: float) -> str:
    """In GiB (2**30 bytes), or MiB below one."""
    if count_bytes < 2**30:
        return f"{count_bytes / 2**20:.0f} MiB"
    return f"{count_bytes / 2**30:.1f} GiB"


def amount(count: float) -> str:
    """`950`, `12.3 k`, `4.19 M`, `201 B`: three digits and a power of a thousand."""
    # 999.5 would round to "1000" of the smaller unit
    for limit, unit, scale in (
        (999.5, "", 1),
        (999.5e3, " k", 1e3),
        (999.5e6, " M", 1e6),
        (999.5e9, " B", 1e9),
    ):
        if abs(count) < limit:
            return f"{_three_digits(count / scale, whole=not unit)}{unit}"
    return f"{_three_digits(count / 1e12, whole=False)} T"


def _three_digits(value: float, whole: bool) -> str:
    if whole:
        return f"{value:.0f}"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}"


def step_line(report: StepReport, device: str) -> str:
    """The log line of training. `device` names what a rate is given per: `GPU`, or `rank` on CPU."""
    width = len(f"{report.train_iters:,}")
    mfu = "MFU –" if report.mfu is None else f"MFU {report.mfu:.1%}"
    if report.mfu is not None and report.mfu_causal is not None:
        mfu += f" ({report.mfu_causal:.1%} causal)"
    parts = [
        f"iteration {report.iteration:>{width},}/{report.train_iters:,}",
        f"loss {report.loss:.4f}",
        f"lr {report.lr:.3e}",
        f"grad norm {report.grad_norm:.3f}",
        f"{report.tokens_per_second:,.0f} tokens/s ({report.tokens_per_second_per_gpu:,.0f}/{device})",
        mfu,
        memory(report.memory_bytes),
        f"{amount(report.tokens_seen)} tokens seen",
        f"{duration(report.seconds_left)} left",
    ]
    if report.data_wait_seconds > _SHOWN_WAIT * report.step_seconds:
        parts.append(f"waits for data: {report.data_wait_seconds:.3f} s a step")
    if report.slowest_rank is not None and report.slowest_rank_ratio is not None:
        parts.append(f"slow: rank {report.slowest_rank} ({report.slowest_rank_ratio:.1f}x the median)")
    return " | ".join(parts)


def evaluation_line(report: EvalReport) -> str:
    """Losses per source on one line."""
    split = {"valid": "validation", "test": "test"}.get(report.split, report.split)
    losses = " | ".join(f"{source} {loss:.4f}" for source, loss in report.losses.items())
    return f"{split} at iteration {report.iteration:,} | loss per source: {losses or 'no source'}"


def event_line(kind: str, fields: Mapping[str, object]) -> str:
    """`checkpoint: iteration 500, path runs/a/global_step500`; a `message` stands alone."""
    if set(fields) == {"message"}:
        return f"{kind}: {fields['message']}"
    return f"{kind}: " + ", ".join(f"{key} {value}" for key, value in fields.items()) if fields else kind
