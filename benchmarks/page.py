# SPDX-License-Identifier: Apache-2.0
"""The page of a benchmark, FILE.md beside FILE.json: where the figures come from, and tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def text(
    title: str, machine: Mapping[str, Any], said: str, head: Sequence[str], rows: Iterable[Sequence[Any]]
) -> str:
    """A page of one table; `said` is what a reader must know of it."""
    return "\n".join([f"# {title}\n", origin(machine), f"{said}\n", table(head, rows)])


def origin(machine: Mapping[str, Any]) -> str:
    """A paragraph of what benchmarks/machine.py found: command, time, commit, hardware, driver, versions."""
    versions = {name: version for name, version in machine["versions"].items() if version != "not installed"}
    device = f"{machine['device']}, {machine['processor']}, {machine['threads']} thread(s)"
    if machine["nvidia-smi"]:
        device += f"; nvidia-smi: {machine['nvidia-smi']}; CUDA {machine['cuda']}, cuDNN {machine['cudnn']}"
    return (
        f"`{machine['command']}`, {machine['date']}, commit {machine['commit']}.\n\n"
        f"{device}. Python {machine['python']}, "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}.\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """In Markdown; numbers with as many places as they need."""
    lines = [head, ["---"] * len(head), *([cell(value) for value in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(value: Any) -> str:
    """A figure as a reader wants it."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def write(output: Path, content: Mapping[str, Any], markdown: str) -> None:
    """Writes both files; `output` may name either, or neither suffix."""
    output.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(markdown.rstrip() + "\n", encoding="utf-8")
