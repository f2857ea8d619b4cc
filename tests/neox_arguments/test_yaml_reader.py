# SPDX-License-Identifier: Apache-2.0
"""YAML as it is read here, against PyYAML's own reading where the two must agree; nothing crashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megatron.neox_arguments import load_config
from megatron.neox_arguments.config import fields
from megatron.neox_arguments.spellings import spellings
from megatron.neox_arguments.yaml_reader import plain, read_file, read_text

from .files import PUBLISHED_7B, PUBLISHED_DATA, SMALL, load, problems, small, unhurried, written


def _read(text: str) -> dict[str, Any]:
    entries, wrong = read_text(text, "test")
    assert wrong == []
    return {entry.key: plain(entry.value) for entry in entries}


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-5", 1e-5),
        ("5E8", 5e8),
        ("+1.5e+3", 1500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("1_000", 1000),
        ("0x10", 16),
        ("-3", -3),
        ("0", 0),
        ("010", "010"),
        ("10:30", "10:30"),
        ("2023-10-16", "2023-10-16"),
        ("1e", "1e"),
        ("e4", "e4"),
        ("1.2.3", "1.2.3"),
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("'1e-4'", "1e-4"),
    ],
)
def test_scalars(scalar: str, value: object) -> None:
    read = _read(f"key: {scalar}")["key"]
    assert read == value
    assert type(read) is type(value)


def test_flow_mappings_with_comments_and_trailing_commas() -> None:
    assert _read('{ "a-b": 1, # one\n  "c": [2, 3,], }') == {"a_b": 1, "c": [2, 3]}


@pytest.mark.parametrize("text", [PUBLISHED_7B, PUBLISHED_DATA])
def test_published_files_read_as_pyyaml_reads_them(text: str) -> None:
    def underscored(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key.replace("-", "_"): underscored(inner) for key, inner in value.items()}

    assert _read(text) == underscored(yaml.safe_load(text))


def test_lines() -> None:
    entries, _ = read_text("a: 1\n\nb:\n  c: 2\n", "test.yml")
    assert [entry.where for entry in entries] == ["test.yml:1", "test.yml:3"]
    assert entries[1].value["c"].where == "test.yml:4"


@pytest.mark.parametrize(
    ("text", "said", "where"),
    [
        ("a: [1, 2\nb: 3\n", "is not YAML", "test:2"),
        ("a: 1\n\tb: 2\n", "use spaces in place of tabs", "test:2"),
        ("- 1\n- 2\n", "no `key: value` pairs", ""),
        ("word", "no `key: value` pairs", ""),
        ("a: 1\na: 1\n", "second time", "test:2"),
        ("a: 1\n3: 4\n", "not the name of a key", "test:2"),
        ("? [1]\n: 2\n", "not the name of a key", "test:1"),
        ("a: &x [*x]\n", "contains itself", "test:1"),
        ("&x\na: *x\n", "contains itself", ""),
        ("a: !!python/name:os.system x\n", "without a tag", "test:1"),
        ("a: !!int x\n", "not a number", "test:1"),
        ("a: &x {b: 1}\nc: {<<: *x}\n", "write each key out", "test:2"),
        ("a: 1\n---\nb: 2\n", "is not YAML", "test:2"),
        ("a: *b\n", "is not YAML", "test:1"),
        ("a: \x07\n", "is not YAML", ""),
        ("[" * 5000, "nested too deeply", ""),
    ],
)
def test_what_is_not_read(text: str, said: str, where: str) -> None:
    _, wrong = read_text(text, "test")
    assert len(wrong) == 1
    assert said in str(wrong[0])
    assert where in wrong[0].where


def test_anchors_are_read() -> None:
    assert _read("a: &n 32\nb: *n\nc: [*n, *n]") == {"a": 32, "b": 32, "c": [32, 32]}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yml").write_bytes(b"a: \xe9\n")
    (tmp_path / "bom.yml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert "not UTF-8" in str(read_file(tmp_path / "latin.yml")[1][0])
    assert "cannot be read" in str(read_file(tmp_path)[1][0])
    assert "cannot be read" in str(read_file(Path("a\0b"))[1][0])
    assert [entry.key for entry in read_file(tmp_path / "bom.yml")[0]] == ["a"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([*spellings(), "optimizer", "zero_optimization", "optimizer.params"]) | st.text()


def _loads_or_says_why(folder: Path, text: str) -> None:
    path = folder / "random.yml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    found = problems(small(folder), path, check_files=True)
    assert found  # the small run has no data
    assert all(problem.constraint and problem.remedy and str(problem) for problem in found)


@unhurried
@given(values=st.dictionaries(KEYS, JSON, max_size=6))
def test_any_mapping_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node = nested
        for parent in parents:
            inner = node.setdefault(parent, {})
            node = inner if isinstance(inner, dict) else {}
        node[leaf] = value
    _loads_or_says_why(tmp_path_factory.mktemp("any"), json.dumps(nested, ensure_ascii=False))


@unhurried
@given(text=st.text(st.sampled_from("abz_-:{}[],\"'#&*!?|>%@` \n\t0123.eE~<")) | st.text())
def test_any_text_loads_or_is_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    _loads_or_says_why(tmp_path_factory.mktemp("any"), text)


@unhurried
@given(text=st.text(), key=st.sampled_from(spellings()) | st.text())
def test_any_override_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, key: str, text: str
) -> None:
    path = small(tmp_path_factory.mktemp("any"))
    for override in (f"{key}={text}", text):
        assert all(problem.remedy for problem in problems(path, set_=[override]))


@unhurried
@given(st.data())
def test_dashes_and_underscores_are_equal(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("dashes")
    values = {**SMALL, "pipe_parallel_size": "2", "zero_optimization": "{reduce_bucket_size: 7, stage: 1}"}
    expected = load(
        written(folder, "plain.yml", "".join(f"{key}: {value}\n" for key, value in values.items()))
    )
    lines = []
    for key, value in values.items():
        dashed = "".join(data.draw(st.sampled_from("-_")) if char == "_" else char for char in key)
        lines.append(f"{dashed}: {value.replace('bucket_size', 'bucket-size')}\n")
    assert load(written(folder, "dashed.yml", "".join(lines))) == expected


@unhurried
@given(order=st.permutations(range(4)), values=st.lists(st.integers(1, 5), min_size=4, max_size=4))
def test_the_last_file_wins_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], values: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("order")
    files = [
        written(folder, f"{n}.yml", f"seed: {value}\nlog_interval: 3\n") for n, value in enumerate(values)
    ]
    cfg, notices = load_config([small(folder), *(files[n] for n in order)], check_files=False)
    assert cfg.data.seed == values[order[-1]]
    assert cfg.logging.log_interval == 3
    assert len(notices) == (1 if len(set(values)) > 1 else 0)


def test_every_default_is_a_value_that_may_be_written(tmp_path: Path) -> None:
    plain_types = (bool, int, float, str)
    defaults = {name: info.default for _, name, info in fields() if isinstance(info.default, plain_types)}
    text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in defaults.items())
    assert load(small(tmp_path), written(tmp_path, "defaults.yml", text)) == load(small(tmp_path))


def test_a_key_that_is_no_text_is_shown() -> None:
    _, found = read_text("? [a, b]\n: 1\n", "a.yml")
    assert [problem.key for problem in found] == ["[a, b]"]


def test_aliases_of_aliases_end() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    _, found = read_text("\n".join(lines), "a.yml")
    assert any("more than 100,000 values" in str(problem) for problem in found)


def test_a_nan_does_not_contradict_itself(tmp_path: Path) -> None:
    found = problems(small(tmp_path, adam_beta1=".nan"))
    assert found
    assert "contradicts" not in str(found)
