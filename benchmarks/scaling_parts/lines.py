# SPDX-License-Identifier: Apache-2.0
"""A straight line through measured points, and a page of it: JSON, Markdown and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import page


@dataclass(frozen=True)
class Line:
    """`intercept + slope x`, with the largest share by which a point lies off it."""

    intercept: float
    slope: float
    largest_deviation: float

    def at(self, x: float) -> float:
        return self.intercept + self.slope * x


def fit(x: Sequence[float], y: Sequence[float]) -> Line:
    """Least squares of relative distances, so that small points count as much as large ones."""
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    rows = np.stack([np.ones_like(xs), xs], axis=1) / ys[:, None]
    (intercept, slope), *_ = np.linalg.lstsq(rows, np.ones_like(ys), rcond=None)
    deviations = np.abs(intercept + slope * xs - ys) / ys
    return Line(float(intercept), float(slope), float(deviations.max()))


@dataclass
class Page:
    """What one command measured. `columns` name the keys of `rows` in the table, `x` and `ys` those drawn."""

    title: str
    x: str
    x_label: str
    ys: dict[str, str]  # key of a row → name of its curve
    y_label: str
    columns: dict[str, str]
    notes: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    found: list[str] = field(default_factory=list)  # what the figures say, in words
    is_logarithmic: bool = False

    def lines(self) -> dict[str, Line]:
        """The line through each curve, where there are enough points for one."""
        found = {}
        for key in self.ys:
            points = [(row[self.x], row[key]) for row in self.rows if row.get(key)]
            if len(points) >= 3:
                found[key] = fit(*zip(*points, strict=True))
        return found

    def markdown(self, machine: dict[str, Any], picture: str) -> str:
        cells = [[row.get(key) for key in self.columns] for row in self.rows]
        parts = [
            f"# {self.title}\n",
            page.origin(machine),
            f"{' '.join(self.notes)}\n",
            page.table(list(self.columns.values()), cells),
            f"![{self.title}]({picture})\n",
        ]
        for key, line in self.lines().items():
            parts.append(
                f"{self.ys[key]}: {line.intercept:.4g} + {line.slope:.4g} x; the point farthest off the line "
                f"is {line.largest_deviation:.1%} off.\n"
            )
        return "\n".join([*parts, *(f"{sentence}\n" for sentence in self.found)])

    def draw(self, path: Path) -> None:
        from megatron.monitoring.plots import PALETTE, draw_legend, plain_axes, write_figure

        figure, axes = plain_axes(self.title, self.x_label, self.y_label)
        lines = self.lines()
        for number, (key, name) in enumerate(self.ys.items()):
            points = [(row[self.x], row[key]) for row in self.rows if row.get(key)]
            color = PALETTE[number % len(PALETTE)]
            axes.plot(*zip(*points, strict=True), color=color, marker="o", linestyle="none", label=name)
            if key in lines:
                xs = np.geomspace(points[0][0], points[-1][0], 200)
                axes.plot(xs, [lines[key].at(x) for x in xs], color=color, linewidth=1.2, alpha=0.7)
        if self.is_logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
        else:
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
        draw_legend(axes)
        write_figure(figure, path)

    def write(self, machine: dict[str, Any], output: Path) -> None:
        """FILE.json, FILE.md and FILE.png."""
        content = {
            "machine": machine,
            "rows": self.rows,
            "lines": {key: asdict(line) for key, line in self.lines().items()},
            "found": self.found,
        }
        picture = output.with_suffix(".png")
        page.write(output, content, self.markdown(machine, picture.name))
        self.draw(picture)
