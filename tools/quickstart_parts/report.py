# SPDX-License-Identifier: Apache-2.0
"""What the quickstart shows at the end: bits per byte as a table, a verdict and a picture; samples."""

from __future__ import annotations

import json
import os
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.neox_arguments.errors import UserError

MODELS = ("base", "contracted", "trained")


@dataclass(frozen=True)
class Measured:
    """Bits per byte of the three models: `values[model][source]`, and the labels of the models."""

    labels: dict[str, str]
    values: dict[str, dict[str, float]]
    documents: dict[str, int]
    dtype: str

    @property
    def sources(self) -> list[str]:
        return list(self.values["trained"])

    def best_untrained(self, source: str) -> float:
        return min(self.values["base"][source], self.values["contracted"][source])

    def change(self, source: str) -> float:
        """The trained model against the better of the two others; -0.05 is 5% fewer bits."""
        return self.values["trained"][source] / self.best_untrained(source) - 1


def read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); remove it and run the same command again"
        ) from None
    return content


def read_measured(folder: Path) -> Measured:
    """Reads FOLDER/{base,contracted,trained}.json as tools/bits_per_byte.py writes them.

    Raises:
        UserError: one is missing or damaged.
    """
    reports = {model: read_json(folder / f"{model}.json") for model in MODELS}
    try:
        base, contracted, trained = (reports[model]["rotary_base"] for model in MODELS)
        return Measured(
            labels={
                "base": f"base model, rotary base {base:,.0f}",
                "contracted": f"contracted to {contracted:,.0f}, untrained",
                "trained": f"trained {reports['trained']['iteration']} steps at {trained:,.0f}",
            },
            values={
                model: {name: float(source["bits_per_byte"]) for name, source in report["sources"].items()}
                for model, report in reports.items()
            },
            documents={name: source["documents"] for name, source in reports["trained"]["sources"].items()},
            dtype=reports["trained"]["dtype"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder}: a report is damaged ({error!r}); remove it and run the same command again"
        ) from None


def table(measured: Measured) -> str:
    """The figures, a line a model, a column a source."""
    width = max(len(label) for label in [*measured.labels.values(), "trained against the better of the two"])
    columns = [max(8, len(source)) for source in measured.sources]

    def line(label: str, cells: Sequence[str]) -> str:
        aligned = (cell.rjust(column) for cell, column in zip(cells, columns, strict=True))
        return "  ".join([label.ljust(width), *aligned])

    counts = ", ".join(f"{count} {name}" for name, count in measured.documents.items())
    lines = [
        f"bits per byte of held-out documents ({counts}; {measured.dtype}), fewer is better",
        line("", measured.sources),
    ]
    for model in MODELS:
        cells = [f"{measured.values[model][source]:.4f}" for source in measured.sources]
        lines.append(line(measured.labels[model], cells))
    changes = [f"{measured.change(source):+.1%}" for source in measured.sources]
    lines.append(line("trained against the better of the two", changes))
    return "\n".join(lines)


def shortfalls(measured: Measured) -> list[str]:
    """Sources on which the trained model is not below both others, in words."""
    return [
        f"{source}: {measured.values['trained'][source]:.4f} after training is not below "
        f"{measured.best_untrained(source):.4f} before"
        for source in measured.sources
        if not measured.values["trained"][source] < measured.best_untrained(source)
    ]


def draw(measured: Measured, path: Path) -> None:
    """The table as bars from zero, grouped by source, each with its figure."""
    from matplotlib.figure import Figure

    from megatron.monitoring.plots import GRID, INK, PALETTE, TRAIN_COLOR

    colors = dict(zip(MODELS, ("#b9bec7", TRAIN_COLOR, PALETTE[0]), strict=True))
    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    bar = 0.25
    for offset, model in enumerate(MODELS):
        places = [number + (offset - 1) * (bar + 0.03) for number in range(len(measured.sources))]
        heights = [measured.values[model][source] for source in measured.sources]
        axes.bar(places, heights, width=bar, color=colors[model], label=measured.labels[model])
        for place, height, source in zip(places, heights, measured.sources, strict=True):
            is_trained = model == "trained"
            text = f"{height:.3f}" + (f"\n{measured.change(source):+.1%}" if is_trained else "")
            axes.annotate(
                text, (place, height), xytext=(0, 4), textcoords="offset points", ha="center", va="bottom",
                color=INK, fontsize=10, fontweight="bold" if is_trained else "normal",
            )  # fmt: skip
    axes.set_title(
        "Bits per byte of held-out documents", loc="left", color=INK, fontsize=13, fontweight="bold", pad=12
    )
    axes.set_xticks(range(len(measured.sources)), measured.sources, fontsize=11)
    axes.set_ylabel("bits per byte, fewer is better", color=INK)
    axes.set_ylim(0, 1.32 * max(max(of_model.values()) for of_model in measured.values.values()))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.legend(loc="upper left", ncols=3, frameon=False, labelcolor=INK, fontsize=9)
    temporary = path.with_name(path.name + ".tmp")
    try:
        figure.savefig(temporary, format="png", facecolor="white")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror}); make room and run again") from None


def training_speed(metrics: Path) -> float | None:
    """The median of the log lines' tokens/s; None where there is no line."""
    from megatron.monitoring.jsonl import read_history

    rates = [step["tokens_per_second"] for step in read_history(metrics).steps.values()]
    return statistics.median(rate for rate in rates if rate is not None) if rates else None


def samples(folder: Path, labels: Mapping[str, str]) -> str:
    """What each model wrote, as generate.py printed it."""
    parts = []
    for model in MODELS:
        text = (folder / f"{model}.txt").read_text(encoding="utf-8", errors="replace").strip()
        parts.append(f"{labels[model]}:\n{textwrap.indent(text, '  │ ', lambda _: True)}")
    return "\n".join(parts)
