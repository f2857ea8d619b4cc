# SPDX-License-Identifier: Apache-2.0
"""Pictures of a results folder: accuracies beside published ones, and what more samples bring."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval_tasks.results.tables import main_measure
from megatron.monitoring.plots import GRID, INK, PALETTE, draw_legend, plain_axes, write_figure

_MARKS = ("o", "s", "D", "^", "v", "P", "X")


def draw_results(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draws `accuracy.png` and `samples_<task>.png` of each task with several samples.

    Raises:
        UserError: the disk refuses.
    """
    tasks: Mapping[str, Any] = content["tasks"]
    shares = {name: fields for name, fields in tasks.items() if "accuracy" in fields["metrics"]}
    drawn = [_draw_accuracy(shares, folder / "accuracy.png")] if shares else []
    for name, fields in shares.items():
        if fields["samples_per_item"] > 1:
            drawn.append(_draw_curves(name, fields, folder / f"samples_{name}.png"))
    return drawn


def _draw_accuracy(tasks: Mapping[str, Any], path: Path) -> Path:
    """One row a task: its interval, and a mark for each published model."""
    figure, axes = plain_axes("Accuracy beside published figures", "right items (%)", "")
    figure.set_size_inches(9, 1.8 + 0.6 * len(tasks))
    models = list(dict.fromkeys(model for fields in tasks.values() for model in fields["published"] or {}))
    places = list(range(len(tasks)))[::-1]
    for place, (at, fields) in zip(places, enumerate(tasks.values()), strict=True):
        measure = main_measure(fields)
        own = fields["metrics"][measure]
        value, low, high = (100 * own[name] for name in ("value", "low", "high"))
        axes.errorbar(
            value, place, xerr=[[value - low], [high - value]], fmt="o", markersize=9, color=PALETTE[0],
            elinewidth=2.4, capsize=4, zorder=3, label="here, with its interval" if at == 0 else None,
        )  # fmt: skip
        for number, model in enumerate(models):
            published = (fields["published"] or {}).get(model, {}).get(measure)
            if published is not None:
                axes.plot(
                    100 * published, place, linestyle="none", marker=_MARKS[number % len(_MARKS)],
                    markersize=7,
                    markerfacecolor="white", markeredgecolor=PALETTE[1 + number % (len(PALETTE) - 1)],
                    markeredgewidth=1.6, zorder=2,
                )  # fmt: skip
    for number, model in enumerate(models):
        axes.plot(
            [], [], linestyle="none", marker=_MARKS[number % len(_MARKS)], markerfacecolor="white",
            markeredgecolor=PALETTE[1 + number % (len(PALETTE) - 1)], markeredgewidth=1.6, label=model,
        )  # fmt: skip
    axes.set_yticks(places, [_label(name, fields) for name, fields in tasks.items()], color=INK)
    axes.set_ylim(-0.6, len(tasks) - 0.4)
    axes.set_xlim(left=0)
    handles, labels = axes.get_legend_handles_labels()  # matplotlib puts marks with intervals last
    axes.legend(
        [handles[-1], *handles[:-1]], [labels[-1], *labels[:-1]], frameon=False, labelcolor=INK, fontsize=9,
        loc="upper left", bbox_to_anchor=(1.01, 1.0),
    )  # fmt: skip
    if any(fields["comparable"] is not True for fields in tasks.values()):
        axes.set_xlabel("right items (%)      * not measured as published; results.md says why", color=INK)
    return write_figure(figure, path)


def _label(name: str, fields: Mapping[str, Any]) -> str:
    star = "" if fields["comparable"] is True else "*"
    return f"{fields.get('title', name)}\n{main_measure(fields)}{star}"


def _draw_curves(name: str, fields: Mapping[str, Any], path: Path) -> Path:
    figure, axes = plain_axes(
        f"{fields.get('title', name)}: what more samples bring", "samples an item, k", "items (%)"
    )
    for color, (kind, words) in zip(
        PALETTE, (("maj", "majority vote"), ("pass", "any is right")), strict=False
    ):
        points = sorted(
            (int(metric.partition("@")[2]), value)
            for metric, value in fields["metrics"].items()
            if metric.startswith(f"{kind}@")
        )
        if not points:
            continue
        ks = [k for k, _ in points]
        axes.plot(
            ks,
            [100 * value["value"] for _, value in points],
            color=color,
            marker="o",
            linewidth=1.8,
            label=words,
        )
        axes.fill_between(
            ks, [100 * value["low"] for _, value in points], [100 * value["high"] for _, value in points],
            color=color, alpha=0.15, linewidth=0,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylim(bottom=0)
    for mark in (fields["published"] or {}).items():
        value = mark[1].get(f"maj@{fields['samples_per_item']}")
        if value is not None:
            axes.axhline(100 * value, color=GRID, linewidth=1.6, zorder=1)
            axes.annotate(
                f"{mark[0]}, published", (1.0, 100 * value), xycoords=("axes fraction", "data"), ha="right",
                va="bottom", fontsize=8, color=INK,
            )  # fmt: skip
    draw_legend(axes)
    return write_figure(figure, path)
