# SPDX-License-Identifier: Apache-2.0
"""The generated page and schema are fresh, and the schema judges files as the loader does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron.neox_arguments.config import fields
from megatron.neox_arguments.spellings import NO_EFFECT, TRANSLATIONS, canonical
from tools import make_config_docs

from .files import CONFIGS, PUBLISHED_7B, PUBLISHED_34B, PUBLISHED_DATA

_TYPES: dict[str, Any] = {
    "null": type(None), "boolean": bool, "integer": int, "number": (int, float), "string": str,
    "array": list, "object": dict,
}  # fmt: skip


def _is(value: Any, name: str) -> bool:
    return isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _valid(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """The part of JSON Schema that the file uses, written from its specification."""
    if "$ref" in schema:
        node: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            node = node[part]
        return _valid(value, node, root)
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    bounds = isinstance(value, int | float) and not isinstance(value, bool)
    return (
        (not types or any(_is(value, name) for name in types))
        and ("enum" not in schema or any(value == one and _alike(value, one) for one in schema["enum"]))
        and ("const" not in schema or (value == schema["const"] and _alike(value, schema["const"])))
        and ("anyOf" not in schema or any(_valid(value, one, root) for one in schema["anyOf"]))
        and not (bounds and value < schema.get("minimum", value))
        and not (bounds and value > schema.get("maximum", value))
        and not (bounds and "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"])
        and not (bounds and "exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"])
        and (
            not isinstance(value, list) or all(_valid(item, schema.get("items", {}), root) for item in value)
        )
        and (not isinstance(value, dict) or _members(value, schema, root))
    )


def _alike(one: Any, other: Any) -> bool:
    return isinstance(one, bool) == isinstance(other, bool)


def _members(value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any]) -> bool:
    for key, inner in value.items():
        found = [schema["properties"][key]] if key in schema.get("properties", {}) else []
        patterns = schema.get("patternProperties", {})
        found += [one for pattern, one in patterns.items() if re.search(pattern, key)]
        if not found and schema.get("additionalProperties", True) is False:
            return False
        if not all(_valid(inner, one, root) for one in found):
            return False
    return all(name in value for name in schema.get("required", []))


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """The schema as it is committed."""
    loaded: dict[str, Any] = json.loads((CONFIGS / "schema.json").read_text(encoding="utf-8"))
    return loaded


def test_generated_files_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, make_config_docs.__file__, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_stale_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, schema_file = tmp_path / "docs" / "configuration.md", tmp_path / "schema.json"
    for name, value in {"ROOT": tmp_path, "DOCS": page, "SCHEMA": schema_file}.items():
        monkeypatch.setattr(make_config_docs, name, value)
    for arguments, status in ((["--check"], 1), ([], 0), (["--check"], 0)):
        monkeypatch.setattr(sys, "argv", ["make_config_docs.py", *arguments])
        assert make_config_docs.main() == status
    page.write_text(page.read_text().replace("Peak learning rate", "Learning rate"))
    assert make_config_docs.main() == 1
    assert "Learning rate" in page.read_text()


def test_every_key_is_on_the_page_with_its_sentence() -> None:
    page = make_config_docs.DOCS.read_text(encoding="utf-8")
    for _, name, info in fields():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` | ")]
        assert info.description is not None
        assert info.description in row
    for key in {*canonical(), *TRANSLATIONS, *NO_EFFECT}:
        assert f"`{key}`" in page
    for row_ in NO_EFFECT.values():
        assert row_.reason in page


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yml")))
def test_shipped_files_follow_the_schema(schema: dict[str, Any], name: str) -> None:
    text = (CONFIGS / name).read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    assert _valid(yaml.safe_load(text), schema, schema)


@pytest.mark.parametrize("text", [PUBLISHED_7B, PUBLISHED_34B, PUBLISHED_DATA])
def test_published_files_follow_the_schema(schema: dict[str, Any], text: str) -> None:
    assert _valid(yaml.safe_load(text), schema, schema)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("num-layers: 3", True),
        ("num_layers: null", True),
        ("num_layers: 0", False),
        ("num-layers: three", False),
        ("num_layer: 3", False),
        ("zero_optimization: {overlap-comm: true}", True),
        ("zero_optimization: {stage: 2}", False),
        ("zero_optimization: {stag: 1}", False),
        ("zero_optimization: {cpu_offload: true}", False),
        ("optimizer: {type: Adam, params: {lr: 0.1}}", True),
        ("optimizer: {params: {lr: 0}}", False),
        ("optimizer: {type: sgd}", False),
        ("precision: fp16", False),
        ("precision: float32", True),
        ("fp16: {enabled: true}", False),
        ("gpt_j_residual: true", False),
        ("train-data-weights: [1, -1]", False),
        ("rotary_scaling: {type: linear, factor: 2}", True),
        ("rotary_scaling: {factor: 2}", False),
    ],
)
def test_the_schema_judges(schema: dict[str, Any], text: str, valid: bool) -> None:
    assert _valid(yaml.safe_load(text), schema, schema) is valid
