# SPDX-License-Identifier: Apache-2.0
"""The data of the page: an index of all items, and chunks of whole items, as scripts that hand it over.

Scripts, because a page opened from a file may load scripts and may not fetch. They hold JSON in ASCII,
without <, and no text of a model is ever the name of a field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron.neox_arguments.whole_files import write_whole
from tools.explorer_parts import states
from tools.explorer_parts.gather import Item, Run
from tools.explorer_parts.records import finite
from tools.explorer_parts.sources import Results

CHUNK_BYTES = 1 << 19
TITLE_CHARACTERS = 160
_PROOF_FIELDS = ("problem", "statement")
_ITEM_FIELDS = ("reference", "level", "subject", "choices")


def as_script(call: str, *arguments: object) -> str:
    """`explorer.store.call(…);` with the arguments as JSON in ASCII; < is escaped, so that no tag ends it."""
    texts = (json.dumps(each, separators=(",", ":"), allow_nan=False) for each in arguments)
    return f"explorer.store.{call}({','.join(texts)});\n".replace("<", "\\u003c")


class Writer:
    """Writes items as they come, in chunks of about `CHUNK_BYTES`, and the index at the end.

    `most_samples` is how many samples of an item and model the page holds; None: all.
    """

    def __init__(self, folder: Path, models: Sequence[str], most_samples: int | None) -> None:
        self._folder = folder
        self._models = models
        self._most_samples = most_samples
        self._chunk: list[dict[str, Any]] = []
        self._chunk_bytes = self._data_bytes = 0
        self._starts: list[int] = []
        self._subjects: dict[str, int] = {}
        self._tasks: dict[str, int] = {}
        self._columns: dict[str, list[Any]] = {
            name: [] for name in ("task", "id", "title", "level", "subject")
        }
        self._by_model: dict[str, list[list[int]]] = {
            name: [[] for _ in models] for name in ("states", "right", "judged", "samples")
        }

    @property
    def items(self) -> int:
        """How many items were added."""
        return len(self._columns["id"])

    @property
    def samples(self) -> int:
        """How many samples and proofs those have."""
        return sum(map(sum, self._by_model["samples"]))

    def add(self, item: Item) -> None:
        """Adds an item; the models' numbers are places in `models`."""
        runs = [item.runs.get(number) for number in range(len(self._models))]
        content = _content(item, runs, self._most_samples)
        bytes_of_it = len(json.dumps(content))
        if self._chunk and self._chunk_bytes + bytes_of_it > CHUNK_BYTES:
            self._write_chunk()
        if not self._chunk:
            self._starts.append(self.items)
        self._chunk.append(content)
        self._chunk_bytes += bytes_of_it
        self._index(item, content, runs)

    def _index(self, item: Item, content: Mapping[str, Any], runs: Sequence[Run | None]) -> None:
        subject = content.get("subject")
        row = {
            "task": self._tasks.setdefault(item.task, len(self._tasks)),
            "id": item.id,
            "title": one_line(content["problem"] or _claim(content.get("statement") or "", item.id)),
            "level": content.get("level"),
            "subject": None if subject is None else self._subjects.setdefault(subject, len(self._subjects)),
        }
        for name, value in row.items():
            self._columns[name].append(value)
        for model, run in enumerate(runs):
            for name, value in _summary(run).items():
                self._by_model[name][model].append(value)

    def _write_chunk(self) -> None:
        chunk = len(self._starts) - 1
        text = as_script("receiveChunk", chunk, self._chunk)
        (self._folder / f"items-{chunk:05}.js").write_text(text, encoding="ascii")
        self._data_bytes += len(text)
        self._chunk, self._chunk_bytes = [], 0

    def finish(
        self,
        title: str,
        files: Mapping[str, Sequence[str]],
        kinds: Mapping[str, str],
        results: Sequence[Results],
    ) -> None:
        """Writes the rest. `files`: those of each model; `kinds`: samples or proofs, by task."""
        if self._chunk:
            self._write_chunk()
        by_model = {each.model: each for each in results}
        index = {
            "title": title,
            "models": [
                {"name": n, "sources": list(files.get(n, ())), "settings": _settings(by_model.get(n))}
                for n in self._models
            ],
            "tasks": [
                {
                    "name": task, "kind": kinds[task],
                    "results": [_measures(by_model.get(model), task) for model in self._models],
                }
                for task in self._tasks
            ],
            "subjects": list(self._subjects),
            "chunk_starts": self._starts,
            "data_bytes": self._data_bytes,
            "items": self._columns,
            **self._by_model,
        }  # fmt: skip
        write_whole(self._folder / "index.js", as_script("receiveIndex", index))


def _content(item: Item, runs: Sequence[Run | None], most_samples: int | None) -> dict[str, Any]:
    """An item as the page reads it: what all its samples share, then the runs."""
    first = next(run for run in runs if run is not None)
    content: dict[str, Any] = {"problem": None}
    if first.samples:
        content = {"problem": first.samples[0]["problem"]}
        content |= {name: first.samples[0][name] for name in _ITEM_FIELDS}
    elif first.proof is not None:
        content = {name: first.proof[name] for name in _PROOF_FIELDS}
    content["runs"] = [None if run is None else _run(run, most_samples) for run in runs]
    return content


def _run(run: Run, most_samples: int | None) -> dict[str, Any]:
    if run.proof is not None:
        return {"proof": {name: value for name, value in run.proof.items() if name not in _PROOF_FIELDS}}
    kept = run.samples[:most_samples]
    shared = ("problem", *_ITEM_FIELDS)
    return {
        "samples": [{name: value for name, value in sample.items() if name not in shared} for sample in kept],
        "vote": run.vote,
        "left_out": len(run.samples) - len(kept),
    }


def _summary(run: Run | None) -> dict[str, int]:
    """A run's state, and how many of its samples are right, are judged, and are there."""
    if run is None:
        return {"states": 0, "right": 0, "judged": 0, "samples": 0}
    if run.proof is not None:
        proved = run.proof["proved"]
        counts = {"right": int(proved is True), "judged": int(proved is not None), "samples": 1}
        return {"states": states.of_proof(run.proof), **counts}
    verdicts = [sample.get("correct") for sample in run.samples]
    counts = {"right": verdicts.count(True), "judged": len(verdicts) - verdicts.count(None)}
    return {"states": states.of_samples(run.samples, run.vote), **counts, "samples": len(verdicts)}


def one_line(text: str) -> str:
    """The beginning of a text on one line; it ends in … where it was cut."""
    text = " ".join(
        re.sub(r"\[asy\].*?(\[/asy\]|$)", " ", text[: 8 * TITLE_CHARACTERS], flags=re.DOTALL).split()
    )
    return text if len(text) <= TITLE_CHARACTERS else text[:TITLE_CHARACTERS].rstrip() + "…"


def _claim(statement: str, name: str) -> str:
    """A theorem without what stands before its claim: imports, the keyword, its own name."""
    found = re.search(rf"\b(?i:theorem|lemma|example)\s+{re.escape(name)}(?![\w'])\s*:?", statement)
    return statement[found.end() :] if found else statement


def _pairs(fields: Mapping[str, Any], prefix: str = "") -> Iterable[list[Any]]:
    """[name, value] of each plain value, `a.b` of one within another."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _pairs(value, f"{prefix}{name}.")
        elif value is not None:
            plain = isinstance(value, (str, bool, int)) or finite(value) is not None
            yield [f"{prefix}{name}", value if plain else json.dumps(value)]


def _published(figures: Mapping[str, Any]) -> list[list[Any]]:
    """[model, [[measure, fraction], …]] of model → {measure: fraction, source}."""
    return [
        [model, [[name, value] for name, value in row.items() if finite(value) is not None]]
        for model, row in figures.items()
        if isinstance(row, Mapping)
    ]


def _settings(results: Results | None) -> list[list[Any]] | None:
    return None if results is None or not results.settings else list(_pairs(results.settings))


def _measures(results: Results | None, task: str) -> dict[str, Any] | None:
    """A task of results.json as the page reads it: pairs of names and measures, and of models and what was
    published of them."""
    measured = None if results is None else results.tasks.get(task)
    if not isinstance(measured, Mapping):
        return None
    metrics = measured.get("metrics") or {}
    published = measured.get("published")
    return {
        "items": measured.get("items"),
        "comparable": measured.get("comparable"),
        "metrics": [
            [name, {key: finite(value.get(key)) for key in ("value", "low", "high")}]
            for name, value in metrics.items()
            if isinstance(value, Mapping)
        ],
        "published": _published(published) if isinstance(published, Mapping) else [],
    }
