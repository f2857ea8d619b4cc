# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run from its `metrics.jsonl`: loss per source and learning rate over iterations.

As a command: `python -m megatron.monitoring.plots RUN_DIR`, with the run's `save` or `log_dir`.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed, and none is opened
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from megatron.monitoring.jsonl import FILE_NAME, RunHistory, read_history
from megatron.neox_arguments.errors import UserError, exit_on_user_error

# Okabe and Ito's palette, which stays distinct for colour-blind readers; then line styles tell sources apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
LINE_STYLES = ("-", "--", ":", "-.")
TRAIN_COLOR = "#8a8f98"
INK, GRID = "#2b2f36", "#e4e6ea"

Series = list[tuple[int, float]]


def draw_run(run: Path, out_dir: Path) -> list[Path]:
    """Draws `loss.png` and `learning_rate.png` into `out_dir`, each whole or not at all; returns their paths.

    `run` is the record or the folder of a run, as `find_record` takes it.

    Raises:
        UserError: the record is missing or holds no step and no evaluation yet.
    """
    record = find_record(run)
    history = read_history(record)
    losses, rates = train_series(history, "loss"), train_series(history, "lr")
    drawn: list[Path] = []
    if losses or history.evaluations:
        drawn.append(write_figure(_loss_figure(history, losses), out_dir / "loss.png"))
    if rates:
        drawn.append(write_figure(_rate_figure(rates), out_dir / "learning_rate.png"))
    if not drawn:
        raise UserError(f"{record}: no iteration is recorded yet; draw after the first log line")
    return drawn


def train_series(history: RunHistory, name: str) -> Series:
    """(iteration, value) of one number of the log lines, in order, without those that were not finite."""
    return [
        (iteration, record[name])
        for iteration, record in sorted(history.steps.items())
        if record.get(name) is not None
    ]


def smoothed(series: Series) -> Series:
    """Centred running median over about a fortieth of the run: noise goes, bends stay where they are."""
    reach = len(series) // 80
    if reach == 0:
        return series
    values = [value for _, value in series]
    return [
        (iteration, statistics.median(values[max(0, at - reach) : at + reach + 1]))
        for at, (iteration, _) in enumerate(series)
    ]


def _loss_figure(history: RunHistory, train: Series) -> Figure:
    figure, axes = _axes("Loss per source", "loss (nats per token)")
    shown: list[float] = []
    if train:
        smooth = smoothed(train)
        if smooth is not train:
            axes.plot(*zip(*train, strict=True), color=TRAIN_COLOR, alpha=0.25, linewidth=0.8)
        axes.plot(*zip(*smooth, strict=True), color=TRAIN_COLOR, linewidth=1.6, label="training blend")
        shown += [value for _, value in smooth]
    validation, test = history.losses_by_source("valid"), history.losses_by_source("test")
    for number, source in enumerate(dict.fromkeys([*validation, *test])):
        color = PALETTE[number % len(PALETTE)]
        style = LINE_STYLES[number // len(PALETTE) % len(LINE_STYLES)]
        if series := validation.get(source):
            few = len(series) <= 25
            axes.plot(
                *zip(*series, strict=True), color=color, linestyle=style, linewidth=1.8,
                marker="o" if few else None, markersize=4, label=f"{source} {_change(series)}",
            )  # fmt: skip
            shown += [value for _, value in series]
        if series := test.get(source):
            label = f"{source}, test {series[-1][1]:.3f}"
            axes.plot(
                *series[-1], color=color, marker="D", markersize=7, markerfacecolor="white",
                markeredgewidth=1.6, linestyle="none", label=label,
            )  # fmt: skip
            shown.append(series[-1][1])
    if shown:
        _limit(axes, shown, [value for _, value in train])
    draw_legend(axes)
    return figure


def _change(series: Series) -> str:
    first, last = series[0][1], series[-1][1]
    return f"{last:.3f}" if len(series) == 1 else f"{first:.3f} → {last:.3f}"


def _limit(axes: Any, shown: list[float], raw: list[float]) -> None:
    """Shows every smoothed and every held-out loss; single spikes of the raw ones do not flatten the rest."""
    ordered = sorted(raw)
    cut = len(ordered) // 100
    values = [*shown, *ordered[cut : len(ordered) - cut]]
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)


def _rate_figure(rates: Series) -> Figure:
    figure, axes = _axes("Learning rate", "learning rate")
    axes.plot(*zip(*rates, strict=True), color=PALETTE[0], linewidth=1.8)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    return figure


def _axes(title: str, unit: str) -> tuple[Figure, Any]:
    figure, axes = plain_axes(title, "iteration", unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure, axes


def plain_axes(title: str, x_label: str, y_label: str) -> tuple[Figure, Any]:
    """An empty figure with one pair of axes, as all pictures here have them."""
    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", color=INK, fontsize=13, fontweight="bold", pad=12)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.margins(x=0.02)
    return figure, axes


def draw_legend(axes: Any) -> None:
    """The names of curves, beside them where they are many."""
    entries = len(axes.get_legend_handles_labels()[0])
    if entries <= 8:
        axes.legend(labelcolor=INK, fontsize=9, facecolor="white", edgecolor="white", framealpha=0.85)
    else:  # beside the curves, where it can be long
        axes.legend(
            frameon=False, labelcolor=INK, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), ncols=1
        )


def write_figure(figure: Figure, path: Path) -> Path:
    """Writes a PNG, whole or not at all.

    Raises:
        UserError: the disk refuses.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, format="png", facecolor="white")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: {error.strerror}; give another folder with --out") from error
    return path


def find_record(run_dir: Path) -> Path:
    """The `metrics.jsonl` of a run, given its `log_dir`, its `save`, or the file itself.

    Raises:
        UserError: there is none.
    """
    for candidate in (run_dir, run_dir / FILE_NAME, run_dir / "logs" / FILE_NAME):
        if candidate.is_file():
            return candidate
    raise UserError(f"{run_dir}: no {FILE_NAME} here nor in logs/; give a run's save or log_dir folder")


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    """Draws one run and says where the pictures lie."""
    parser = argparse.ArgumentParser(
        prog="python -m megatron.monitoring.plots",
        description="Draw loss per source and learning rate of a run.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the run's save or log_dir folder")
    parser.add_argument("--out", type=Path, help="folder of the pictures (default: beside the record)")
    options = parser.parse_args(arguments)
    record = find_record(options.run_dir)
    for path in draw_run(record, options.out or record.parent):
        print(path)


if __name__ == "__main__":
    main()
