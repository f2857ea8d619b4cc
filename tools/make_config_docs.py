# SPDX-License-Identifier: Apache-2.0
"""Writes docs/configuration.md and configs/schema.json from the configuration models.

`python tools/make_config_docs.py` writes them anew; with `--check` nothing is written, and the exit status is
1 where one of them is stale.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pydantic.fields import FieldInfo  # noqa: E402

from megatron.neox_arguments.config import concerns, fields  # noqa: E402
from megatron.neox_arguments.fields import Concern  # noqa: E402
from megatron.neox_arguments.spellings import (  # noqa: E402
    ALIASES,
    NO_EFFECT,
    TRANSLATIONS,
    NoEffect,
    aliases_of,
    blocks,
)

DOCS, SCHEMA = ROOT / "docs" / "configuration.md", ROOT / "configs" / "schema.json"

_INTRODUCTION = """\
<!-- Written by tools/make_config_docs.py from megatron/neox_arguments. Edit there, then run `make docs`. -->

# Configuration

A run is described by one or more YAML files:

```
./deepy.py train.py configs/llemma_7b.yml configs/proof_pile_2.yml --set train_iters=1000
```

- Files are merged from left to right and a later one wins; `--set key=value` comes last, its value read as
  YAML. A key that is set to two different values is reported, with both places. `null` takes an earlier value
  back.
- Keys stand side by side. `-` and `_` are the same, so `train-data-paths` is `train_data_paths`. A file may
  also be one `{ "key": value, … }` with comments, as GPT-NeoX writes it, and may use DeepSpeed's blocks; a
  dotted name below, such as `optimizer.params.lr`, is a key in a block, and also the way to `--set` it.
- Numbers are decimal, and `1e-4` is one; `0x10` is 16 and `1_000` is 1000. A key may stand once in a file.
- A key that is not known, or that asks for something that is not done, is an error. All errors of a run are
  shown at once, each with its key, its value, what must hold and what to do; the exit status is then 2.
  `python -m megatron.neox_arguments FILE…` checks a configuration and prints it merged, with every default.
- Editors with a YAML language server complete and check keys where a file begins with
  `# yaml-language-server: $schema=schema.json`.

| File in `configs/` | What it is |
|---|---|
| `llemma_7b.yml`, `llemma_34b.yml` | Llemma's two runs: network, optimizer, layout on 256 GPUs |
| `slurm.yml` | put after any of these, it holds what a site's SLURM wants to be told |
| `proof_pile_2.yml` | the data of both: sources, weights, validation and test sets |
| `local_cpu.yml` | put last, it shrinks any of these to a run of two CPU ranks, to try it on a laptop |

The batch is `train_batch_size = train_micro_batch_size_per_gpu x gradient_accumulation_steps x data parallel
ranks`, and data parallel ranks are all ranks divided by `model_parallel_size x pipe_parallel_size`. Give two
of the three keys, or the micro-batch alone.
"""

_TITLES = {
    "model": "The network",
    "parallel": "Parallelism, memory and communication",
    "precision": "Number formats",
    "acceleration": "Accelerators",
    "batch": "Batch",
    "optimizer": "Optimizer",
    "schedule": "Length of the run and learning rate",
    "data": "Data",
    "tokenizer": "Tokenizer",
    "checkpoint": "Checkpoints",
    "validation": "Validation",
    "logging": "Logging",
    "recovery": "Bad numbers, hanging and slow ranks",
    "launch": "Launch",
    "slurm": "SLURM",
}


def _extra(info: FieldInfo, name: str) -> Any:
    extra = info.json_schema_extra
    return extra.get(name) if isinstance(extra, dict) else None


def _literal(value: object) -> str:
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


# --- the JSON schema ---


def _resolved(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """`schema` without titles, without our own notes, and with references replaced by what they name."""
    if isinstance(schema, list):
        return [_resolved(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        schema = {**definitions[schema["$ref"].rpartition("/")[2]], **schema}
    dropped = {"$ref", "title", "aliases", "also", "derived"}
    plain = {
        key: _properties(value, definitions) if key == "properties" else _resolved(value, definitions)
        for key, value in schema.items()
        if key not in dropped
    }
    also = schema.get("also") or []
    if also and "enum" in plain:
        plain["enum"] = [*plain["enum"], *also]
    return plain


def _properties(properties: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _resolved(value, definitions) for name, value in properties.items()}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` or null, which takes back what an earlier file has set."""
    if any(one.get("type") == "null" for one in schema.get("anyOf", [])):
        return schema
    described: dict[str, Any] = {key: schema[key] for key in ("description", "default") if key in schema}
    inner = {key: value for key, value in schema.items() if key not in described}
    return {"anyOf": [inner, {"type": "null"}], **described}


@cache
def _field_schemas() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for model in concerns().values():
        schema = model.model_json_schema()
        for name, one in _properties(schema["properties"], schema.get("$defs", {})).items():
            if one.get("default", 0) is None:
                del one["default"]
            found[name] = _nullable(one)
    return found


def _spelled() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every spelling, dotted where it is in a block, with its schema; canonical names first."""
    own = _field_schemas()
    for name, schema in own.items():
        if name not in TRANSLATIONS:
            yield name, schema
    names = ALIASES | {alias: name for _, name, info in fields() for alias in aliases_of(info)}
    for alias, name in names.items():
        yield alias, {**own[name], "description": f"{own[name]['description']} Here: {name}."}
    for name, translation in TRANSLATIONS.items():
        described = own[name]["description"] + " " if name in own else ""
        yield name, _nullable({**translation.values, "description": described + translation.sentence})
    for name, row in NO_EFFECT.items():
        values = {"enum": list(row.accepts)} if row.accepts else {}
        yield name, {**values, "description": f"Has no effect here: {row.reason}."}


def _closed(description: str | None = None) -> dict[str, Any]:
    head = {"description": description} if description else {}
    return {**head, "type": ["object", "null"], "properties": {}, "patternProperties": {}} | {
        "additionalProperties": False
    }


def make_schema() -> str:
    """The JSON schema of a configuration file, for editors."""
    root = _closed()
    nodes = {"": root}
    for block in sorted(blocks()):
        parent, _, name = block.rpartition(".")
        nodes[block] = _closed("DeepSpeed's block of this name." if not parent else None)
        nodes[parent]["properties"][name] = nodes[block]
    for dotted, schema in _spelled():
        parent, _, name = dotted.rpartition(".")
        nodes[parent]["properties"][name] = schema
    for block, node in nodes.items():
        for name in list(node["properties"]):
            if "_" in name:
                path = "".join(f"/properties/{part}" for part in [*block.split("."), name] if part)
                node["patternProperties"][f"^{re.sub('_', '[-_]', name)}$"] = {"$ref": f"#{path}"}
    head = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Run configuration",
        "description": "Written by tools/make_config_docs.py; see docs/configuration.md.",
    }
    return json.dumps({**head, **root}, indent=1, ensure_ascii=False) + "\n"


# --- the page ---


def _type_words(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type_words(one) for one in schema["anyOf"] if one.get("type") != "null")
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if values:
        return ", ".join(_literal(value) for value in values)
    if schema.get("type") == "array":
        return f"list of {_type_words(schema.get('items', {}))}"
    if schema.get("type") == "object":
        return "mapping"
    if schema.get("format") == "path":
        return "path"
    words = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`", "string": "text"}
    word = words.get(str(schema.get("type")), "value")
    return f"{word}{_bounds(schema)}"


def _bounds(schema: Mapping[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and low == high:
        return f", only {low:g}"
    parts = [
        *([f"at least {low:g}"] if low is not None else []),
        *([f"over {above:g}"] if above is not None else []),
        *([f"at most {high:g}"] if high is not None else []),
        *([f"under {below:g}"] if below is not None else []),
    ]
    return f", {' and '.join(parts)}" if parts else ""


def _default_words(info: FieldInfo) -> str:
    derived = _extra(info, "derived")
    if info.is_required():
        return "**required**"
    if derived is not None:
        return str(derived)
    if info.default is None:
        return "none"
    return "empty" if info.default == () else _literal(info.default)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [_row(head), "|" + "---|" * len(head), *(_row(row) for row in rows), ""]


def _aliases(name: str, info: FieldInfo) -> str:
    found = aliases_of(info) + [alias for alias, to in ALIASES.items() if to == name]
    found += [key for key, row in TRANSLATIONS.items() if name in row.to and key != name]
    return ", ".join(f"`{alias}`" for alias in found)


def _concern_section(concern: str, model: type[Concern]) -> list[str]:
    schemas = _field_schemas()
    rows = [
        [
            f"`{name}`",
            _type_words(schemas[name]),
            _default_words(info),
            info.description or "",
            _aliases(name, info),
        ]
        for name, info in model.model_fields.items()
    ]
    head = ["Key", "Type", "Default", "What it is", "Other spellings"]
    return [f"## {_TITLES[concern]}", "", *_table(head, rows)]


def _accepted(row: NoEffect) -> str:
    return ", ".join(_literal(value) for value in row.accepts) or "any"


def make_page() -> str:
    """The reference page in Markdown."""
    lines = [_INTRODUCTION]
    for concern, model in concerns().items():
        lines += _concern_section(concern, model)
    lines += ["## Keys whose value has another shape", ""]
    rows = [
        [
            f"`{key}`",
            ", ".join(f"`{to}`" for to in row.to if to in _field_schemas()) or "nothing",
            row.sentence,
        ]
        for key, row in TRANSLATIONS.items()
        if key not in row.to
    ]
    lines += _table(["Key of GPT-NeoX or DeepSpeed", "Sets", "How"], rows)
    lines += [
        "## Keys that have no effect here",
        "",
        "They tuned the engine they were written for. They are accepted with the values below, because those",
        "ask for what is done here anyway or cannot change a result, and each run lists those it was given.",
        "With any other value they are errors.",
        "",
    ]
    rows = [[f"`{key}`", _accepted(row), row.reason] for key, row in NO_EFFECT.items()]
    lines += _table(["Key", "Accepted", "Why it has no effect"], rows)
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Write both files, or with --check compare them; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write docs/configuration.md and configs/schema.json.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file is stale")
    check = parser.parse_args().check
    status = 0
    for path, text in ((DOCS, make_page()), (SCHEMA, make_schema())):
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        name = path.relative_to(ROOT)
        if check:
            print(f"{name} is stale; run `make docs` and commit it", file=sys.stderr)
            status = 1
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {name}")
    return status


if __name__ == "__main__":
    sys.exit(main())
