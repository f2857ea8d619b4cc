# SPDX-License-Identifier: Apache-2.0
"""Few-shot prompts of published evaluations, word for word, each with its source and the sha256 of its text.

A prompt is `<name>.txt`; the JSON files beside them say where each comes from. The texts are data: they are
not corrected, since figures were measured with them as they are.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Prompt:
    """A text that stands before each problem, without a line end, and where it was published."""

    name: str
    text: str
    sha256: str
    source: str


@functools.cache
def sources() -> dict[str, dict[str, str]]:
    """name → {sha256, source, …} of every prompt."""
    entries: dict[str, dict[str, str]] = {}
    for path in sorted(FOLDER.glob("*.json")):
        entries |= json.loads(path.read_text(encoding="utf-8"))
    return entries


@functools.cache
def prompt(name: str) -> Prompt:
    """A prompt by its name.

    Raises:
        ValueError: its text is not the published one any more.
    """
    entry = sources()[name]
    content = (FOLDER / f"{name}.txt").read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != entry["sha256"]:
        raise ValueError(f"{name}.txt: sha256 is {sha256}, not {entry['sha256']}; restore the file")
    return Prompt(name, content.decode("utf-8"), sha256, entry["source"])
