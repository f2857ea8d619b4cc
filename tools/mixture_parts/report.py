# SPDX-License-Identifier: Apache-2.0
"""What a study found: a table, JSON, a picture, and the YAML file for the long run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tools.mixture_parts.design import Array
from tools.mixture_parts.runs import Result
from tools.mixture_parts.settings import Study, write_text
from tools.mixture_parts.surface import Best, Surface, best_of, count_of_terms, fit, terms

PICTURE, REPORT, BEST_YAML = "mixture.png", "report.json", "best.yml"


def fitted(study: Study, results: Sequence[Result], model: str) -> tuple[Array, Array, Surface, Best]:
    """Points, values, surface and best mixture of the finished runs.

    Raises:
        UserError: they do not decide the surface.
    """
    points_PF = np.array([study.space.point(result.point.weights) for result in results])
    values_P = np.array([result.value for result in results])
    if not results:
        points_PF = np.zeros((0, len(study.space.free)))
    surface = fit(points_PF, values_P, model)
    return points_PF, values_P, surface, best_of(study.space, points_PF, surface, study.measure.maximise)


def perplexity_per_byte(bits_per_byte: float) -> float:
    """2 to the bits per byte."""
    return float(2.0**bits_per_byte)


def write_report(study: Study, results: Sequence[Result], model: str) -> dict[str, Any]:
    """Fits, and writes `report.json`, `mixture.png` and `best.yml`; returns the report.

    Raises:
        UserError: see `fitted`; or the disk refuses.
    """
    points_PF, values_P, surface, best = fitted(study, results, model)
    space = study.space
    weights = [round(weight, 6) for weight in space.weights(best.point_F)]
    interval = None
    if best.low_F is not None and best.high_F is not None:
        interval = {
            name: [float(low * space.rest), float(high * space.rest)]
            for name, low, high in zip(space.free_names, best.low_F, best.high_F, strict=True)
        }
    sign = -1 if study.measure.maximise else 1
    at = int(np.argmin(sign * values_P))
    content: dict[str, Any] = {
        "sources": list(space.names),
        "measure": study.measure.name,
        "maximise": study.measure.maximise,
        "model": model,
        "runs": [{**asdict(result.point), "value": result.value} for result in results],
        "coefficients": dict(
            zip(_term_names(space.free_names, model), surface.coefficients.tolist(), strict=True)
        ),
        "left_out_rmse": None if math.isnan(surface.left_out_rmse) else surface.left_out_rmse,
        "best_weights": dict(zip(space.names, weights, strict=True)),
        "best_weights_95": interval,
        "best_value": best.value,
        "best_value_95": best.value_interval,
        "best_measured": {"weights": list(results[at].point.weights), "value": float(values_P[at])},
    }
    if study.measure.command is None:
        content["best_perplexity_per_byte"] = perplexity_per_byte(best.value)
    write_text(study.output / REPORT, json.dumps(content, indent=1) + "\n")
    write_text(study.output / BEST_YAML, _yaml(study, content))
    draw(study, points_PF, values_P, surface, best)
    return content


def _term_names(names: Sequence[str], model: str) -> list[str]:
    products = [] if model == "linear" else [
        f"{first} x {second}" for at, first in enumerate(names) for second in names[at + 1 :]
    ]  # fmt: skip
    return [*names, *products]


def _yaml(study: Study, content: dict[str, Any]) -> str:
    """The mixture for the long run, after the user's own files."""
    weights = ", ".join(f"{weight:g}" for weight in content["best_weights"].values())
    lines = [
        f"# The best mixture of {len(content['runs'])} runs by {content['measure']}; the fitted surface "
        f"expects {content['best_value']:.4f}.",
        "# Put it after the configuration of the run. Order of the weights:",
        f"# {', '.join(content['sources'])}",
        f"train_data_weights: [{weights}]",
        "",
    ]
    return "\n".join(lines)


def in_words(study: Study, content: dict[str, Any]) -> str:
    """What the terminal shows."""
    lines = [f"{'source':<24}{'best share':>12}   95%"]
    for name, weight in content["best_weights"].items():
        both = (content["best_weights_95"] or {}).get(name)
        fixed = study.space.fixed[study.space.names.index(name)] is not None
        shown = "fixed" if fixed else "–" if both is None else f"{both[0]:.3f} to {both[1]:.3f}"
        lines.append(f"{name:<24}{weight:>12.4f}   {shown}")
    value = f"{content['measure']}: {content['best_value']:.4f} expected there"
    if content["best_value_95"] is not None:
        value += " ({:.4f} to {:.4f})".format(*content["best_value_95"])
    measured = content["best_measured"]
    lines.append(f"{value}; {measured['value']:.4f} was the best that was measured")
    if content["best_weights_95"] is None:
        lines.append(
            f"no uncertainty: {len(content['runs'])} runs decide "
            f"{count_of_terms(len(study.space.free), content['model'])} coefficients; "
            "add --points or --repeats"
        )
    elif content["left_out_rmse"] is not None:
        lines.append(
            f"a run left out is predicted from the others to within {content['left_out_rmse']:.4f} (RMSE)"
        )
    return "\n".join(lines)


def draw(study: Study, points_PF: Array, values_P: Array, surface: Surface, best: Best) -> Path:
    """The measure over the share of each source, the others in the proportions of the best mixture."""
    from megatron.monitoring.plots import LINE_STYLES, PALETTE, draw_legend, plain_axes, write_figure

    space = study.space
    low, high = space.bounds_F
    title = f"{study.measure.name} over the share of each source"
    figure, axes = plain_axes(title, "share of the source", study.measure.name)
    for number, name in enumerate(space.free_names):
        color, style = PALETTE[number % len(PALETTE)], LINE_STYLES[number // len(PALETTE) % len(LINE_STYLES)]
        trace = _trace(best.point_F, number, low, high)
        share = f"{best.point_F[number] * space.rest:.3f}"
        if best.low_F is not None and best.high_F is not None:
            share += f" ({best.low_F[number] * space.rest:.3f} to {best.high_F[number] * space.rest:.3f})"
        if len(trace):
            axes.plot(
                trace[:, number] * space.rest, terms(trace, surface.model) @ surface.coefficients,
                color=color, linestyle=style, linewidth=1.8, label=f"{name} {share}",
            )  # fmt: skip
        axes.plot(
            points_PF[:, number] * space.rest, values_P, color=color, marker="o", markersize=4, alpha=0.45,
            linestyle="none",
        )  # fmt: skip
        axes.plot(
            best.point_F[number] * space.rest, best.value, color=color, marker="D", markersize=7,
            markerfacecolor="white", markeredgewidth=1.6,
        )  # fmt: skip
    draw_legend(axes)
    return write_figure(figure, study.output / PICTURE)


def _trace(best_F: Array, number: int, low: Array, high: Array) -> Array:
    """Mixtures from no share of a source to all, as far as the bounds go (Cox's direction)."""
    others = np.delete(best_F, number)
    even = np.full(len(others), 1 / len(others))
    proportions = others / others.sum() if others.sum() > 1e-9 else even
    made = []
    for share in np.linspace(0, 1, 101):
        point = np.insert((1 - share) * proportions, number, share)
        if (point >= low - 1e-9).all() and (point <= high + 1e-9).all():
            made.append(point)
    return np.array(made).reshape(-1, len(best_F))
