# SPDX-License-Identifier: Apache-2.0
"""Figures that were published for Llemma's tasks, and whether a result may stand beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LLEMMA = "Azerbayev et al. 2023, arXiv:2310.10631"
DEEPSEEK_MATH = "Shao et al. 2024, arXiv:2402.03300"
# Llemma, section 3 and appendix: greedy, or nucleus sampling with top-p 0.95.
MAX_NEW_TOKENS = 1_024
TOP_P = 0.95
PRECISION = "bfloat16"


@dataclass(frozen=True)
class Figure:
    """Accuracy of a model in percent. `voted` is maj@k with the k of the task."""

    model: str
    greedy: float
    voted: float | None
    source: str


@dataclass(frozen=True)
class Figures:
    """All that was published for a task, and how it was voted; `samples` is None where it was not.
    `measure` is what the figures are of."""

    rows: tuple[Figure, ...]
    samples: int | None = None
    temperature: float | None = None
    measure: str = "accuracy"

    def as_fields(self) -> dict[str, Any]:
        """For results.json, in fractions as all values there: model → {measure, maj@k, source}."""
        fields: dict[str, Any] = {}
        for row in self.rows:
            values: dict[str, Any] = {self.measure: round(row.greedy / 100, 6)}
            if row.voted is not None:
                values[f"maj@{self.samples}"] = round(row.voted / 100, 6)
            fields.setdefault(row.model, {**values, "source": row.source})
        return fields


def _llemma(greedy: str, voted: str = "") -> tuple[Figure, ...]:
    """Code Llama 7B and 34B, Llemma 7B and 34B; votes of the last two."""
    models = ("Code Llama 7B", "Code Llama 34B", "Llemma 7B", "Llemma 34B")
    votes = [None, None, *(float(each) for each in voted.split())] if voted else [None] * 4
    values = [float(each) for each in greedy.split()]
    return tuple(Figure(*row, LLEMMA) for row in zip(models, values, votes, strict=True))


def _deepseek(greedy: float) -> tuple[Figure, ...]:
    return (Figure("DeepSeekMath-Base 7B", greedy, None, DEEPSEEK_MATH),)


# Llemma: tables 1 to 3 and the appendix. DeepSeekMath: table 2.
FIGURES = {
    "math": Figures(_llemma("4.5 12.2 18.0 25.0", "33.5 43.1") + _deepseek(36.2), 256, 0.6),
    "gsm8k": Figures(_llemma("10.5 29.6 36.4 51.5", "54.0 69.3") + _deepseek(64.2), 100, 0.6),
    "ocwcourses": Figures(_llemma("4.4 7.0 7.7 11.8", "14.3 18.4") + _deepseek(15.4), 100, 0.6),
    "mmlu_stem": Figures(_llemma("25.1 40.5 37.7 49.0", "49.9 59.7") + _deepseek(56.5), 16, 0.3),
    "sat": Figures(_llemma("9.4 40.6 53.1 71.9", "78.1 81.3") + _deepseek(84.4), 16, 0.3),
    # DeepSeekMath's table 3 gives Llemma other figures: 41.0 and 64.6 here, 18.6 and 26.3 on MATH.
    "gsm8k_python": Figures(_llemma("27.1 52.7 40.1 62.6")),
    "math_python": Figures(_llemma("17.2 23.5 21.5 27.1")),
    # Tactic search in Lean 4 on miniF2F's 244 test theorems, and whole proofs in Isabelle.
    "minif2f_lean": Figures(_llemma("20.49 22.13 26.23 25.82"), measure="proved"),
    "minif2f_isabelle": Figures(_llemma("17.6 18.0 22.1 21.3"), measure="proved"),
    "minif2f_isabelle_validation": Figures(_llemma("16.3 18.5 20.6 21.0"), measure="proved"),
}


def differences(
    figures: Figures, whole: int, items: int, samples: int, settings: Mapping[str, Any] | None
) -> list[str]:
    """Why a result may not stand beside the published ones; empty where it may.

    `settings` is what decided the samples: `temperature`, `top_p`, `max_new_tokens`, `precision` (None where
    it is not known), and `local_data`, a file that the problems came from; None where nobody knows.
    """
    found = []
    if items != whole:
        found.append(f"{items:,} of {whole:,} items")
    if samples > 1 and samples != figures.samples:
        published = f"{figures.samples} samples an item" if figures.samples else "greedy decoding"
        found.append(f"{samples} samples an item; published: {published}")
    if settings is None:
        return [*found, "how the samples were decoded is not recorded"]
    if settings.get("local_data"):
        found.append(f"problems of a local file, {settings['local_data']}")
    precision = settings.get("precision")
    if precision != PRECISION:
        found.append(f"precision {precision or 'not known'}; published: {PRECISION}")
    temperature = settings.get("temperature") or 0.0
    wanted = (figures.temperature or 0.0) if samples > 1 else 0.0
    if temperature != wanted:
        found.append(f"temperature {temperature:g}; published: {wanted:g}")
    if samples > 1 and settings.get("top_p", 1.0) != TOP_P:
        found.append(f"top-p {settings.get('top_p', 1.0):g}; published: {TOP_P:g}")
    if settings.get("max_new_tokens") != MAX_NEW_TOKENS:
        found.append(f"at most {settings.get('max_new_tokens')} new tokens; published: {MAX_NEW_TOKENS:,}")
    return found
