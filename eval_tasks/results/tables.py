# SPDX-License-Identifier: Apache-2.0
"""results.md: the measures of a folder beside the published figures, and why they may not be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.whole_files import write_whole

# Metrics that are no shares.
NO_SHARES = ("bits_per_byte", "byte_perplexity")


def value_words(metric: str, value: Mapping[str, Any]) -> str:
    """`26.2% [20.9, 32.0]`, or `0.8512 [0.8401, 0.8620]` of what is no share; the bare value where there is
    no interval."""
    factor, form, unit = (1, "{:.4f}", "") if metric in NO_SHARES else (100, "{:.1f}", "%")
    shown, low, high = (form.format(factor * value[name]) for name in ("value", "low", "high"))
    return f"{shown}{unit}" if value.get("interval") == "none" else f"{shown}{unit} [{low}, {high}]"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; bars in cells are escaped."""
    lines = [list(head), ["---"] * len(head), *(list(row) for row in rows)]
    return [
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
        for line in lines
    ]


def write_markdown(path: Path, content: Mapping[str, Any]) -> None:
    """Writes results.md from what results.json holds.

    Raises:
        UserError: the disk refuses.
    """
    tasks: Mapping[str, Any] = content["tasks"]
    lines = ["# Results", ""]
    if content.get("model"):
        lines += [*markdown_table(["model", ""], [[str(k), str(v)] for k, v in content["model"].items()]), ""]
    lines += [
        "In brackets: intervals at 95% over items (bootstrap, or Wilson's where few are right or wrong); "
        "none where there is one item, or all are alike.",
        "",
    ]
    rows = [_row(name, fields, metric) for name, fields in tasks.items() for metric in main_metrics(fields)]
    lines += markdown_table(["task", "items", "samples", "measure", "here"], rows)
    lines += ["", "## Beside published figures", "", *_published(tasks)]
    for name, fields in tasks.items():
        lines += _details(name, fields)
    try:
        write_whole(path, "\n".join(lines) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another folder") from None


def main_metrics(fields: Mapping[str, Any]) -> list[str]:
    """What stands in the first table: all but the curves' inner points."""
    last = str(fields["samples_per_item"])
    return [name for name in fields["metrics"] if "@" not in name or name.partition("@")[2] == last]


def _row(name: str, fields: Mapping[str, Any], metric: str) -> list[str]:
    value = value_words(metric, fields["metrics"][metric])
    items = fields.get("unfinished") or f"{fields['items']:,}"
    return [name, items, str(fields["samples_per_item"]), metric, value]


def _published(tasks: Mapping[str, Any]) -> list[str]:
    known = {name: fields for name, fields in tasks.items() if fields["published"]}
    if not known:
        return ["Nothing was published for these tasks."]
    models = list(dict.fromkeys(model for fields in known.values() for model in fields["published"]))
    rows = []
    for name, fields in known.items():
        metric = main_measure(fields)
        here = f"{100 * fields['metrics'][metric]['value']:.1f}"
        cells = [_published_cell(fields["published"].get(model, {}), metric) for model in models]
        verdict = "yes" if fields["comparable"] is True else f"no: {fields['comparable']}"
        rows.append([name, metric, here, *cells, verdict])
    sources = dict.fromkeys(
        row["source"] for fields in known.values() for row in fields["published"].values()
    )
    head = ["task", "measure, in %", "here", *models, "comparable"]
    return [*markdown_table(head, rows), "", f"Published: {'; '.join(sources)}."]


def main_measure(fields: Mapping[str, Any]) -> str:
    """What the paper reports of a task: accuracy, or the vote of all samples."""
    voted = f"maj@{fields['samples_per_item']}"
    return voted if voted in fields["metrics"] else "accuracy"


def _published_cell(values: Mapping[str, Any], metric: str) -> str:
    """The figure in percent; of a vote with another number of samples, with that."""
    if metric in values:
        return f"{100 * values[metric]:.1f}"
    voted = [name for name in values if name.startswith("maj@")] if metric.startswith("maj@") else []
    return f"{100 * values[voted[0]]:.1f} ({voted[0]})" if voted else ""


def _details(name: str, fields: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    if fields.get("grader_disagreements"):
        count = fields["grader_disagreements"]
        lines += ["", f"{name}: the two graders disagree on {count:,} samples: `disagreements_{name}.jsonl`."]
    curves = [metric for metric in fields["metrics"] if "@" in metric]
    if curves:
        by_k = sorted({int(metric.partition("@")[2]) for metric in curves})
        rows = [[str(k), *(_cell(fields, f"{kind}@{k}") for kind in ("maj", "pass"))] for k in by_k]
        lines += [
            "",
            f"## {name}, by the number of samples",
            "",
            *markdown_table(["k", "maj@k", "pass@k"], rows),
        ]
    for kind in ("level", "subject"):
        groups = fields.get(f"by_{kind}")
        if groups:
            rows = [
                [group, f"{own['items']:,}", value_words("accuracy", own)] for group, own in groups.items()
            ]
            lines += ["", f"## {name}, by {kind}", "", *markdown_table([kind, "items", "accuracy"], rows)]
    return lines


def _cell(fields: Mapping[str, Any], metric: str) -> str:
    return value_words(metric, fields["metrics"][metric]) if metric in fields["metrics"] else ""
