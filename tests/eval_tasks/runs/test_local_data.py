# SPDX-License-Identifier: Apache-2.0
"""Local data: what the options say, what a file holds, and that nothing wrong in it passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_tasks.runs.local_data import LocalFile, local_files
from megatron.neox_arguments.errors import UserError
from tests.eval_tasks.runs.files import write_rows

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def test_options_name_a_task_and_its_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a=b.jsonl", [{"text": "?"}])
    files, problems = local_files([f"llemma_math={path}"], ["llemma_math.problem=text"], ["llemma_math"])
    assert not problems
    assert files == {"llemma_math": LocalFile(path, {"problem": "text"})}


@pytest.mark.parametrize(("data", "fields", "said"), [
    (["llemma_math"], [], "is not TASK=FILE.jsonl"),
    (["llemma_sat={file}"], [], "llemma_sat is not among --tasks"),
    (["llemma_math=absent.jsonl"], [], "no such file"),
    (["llemma_math={file}"], ["llemma_math.problem"], "is not TASK.FIELD=NAME"),
    (["llemma_math={file}"], ["llemma_math.text=problem"], "fields are problem, reference"),
    ([], ["llemma_math.problem=text"], "llemma_math has no --data"),
])  # fmt: skip
def test_wrong_options_are_said(data: list[str], fields: list[str], said: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "?"}])
    _, problems = local_files([text.format(file=path) for text in data], fields, ["llemma_math"])
    assert [said in str(problem) for problem in problems] == [True]


@given(st.lists(st.dictionaries(st.text(), JSON, max_size=3), min_size=1, max_size=4))
def test_rows_are_read_as_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    assert LocalFile(path).rows() == rows


@given(st.binary(max_size=60))
def test_any_bytes_are_rows_or_an_error_with_the_place(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "rows.jsonl"
    path.write_bytes(content)
    try:
        assert all(isinstance(row, dict) for row in LocalFile(path).rows())
    except UserError as error:
        assert str(error).startswith(f"{path}:")


def test_names_can_be_exchanged(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "rows.jsonl", [{"problem": "four", "reference": "2 + 2?", "subject": "sums"}]
    )
    (row,) = LocalFile(path, {"problem": "reference", "reference": "problem"}).rows()
    assert row == {"problem": "2 + 2?", "reference": "four", "subject": "sums"}
    (row,) = LocalFile(path, {"problem": "reference", "reference": "subject", "subject": "problem"}).rows()
    assert row == {"problem": "2 + 2?", "reference": "sums", "subject": "four"}


@pytest.mark.parametrize(("usual", "value", "is_used"), [
    ("reference", 7, True), ("reference", None, False), ("problem", None, False), ("choices", None, False),
    ("level", 5, True), ("level", "Level ?", True), ("level", "hard", False), ("level", [5], False),
    ("subject", "Algebra", True), ("subject", 5, False), ("subject", " ", False),
])  # fmt: skip
def test_a_told_field_is_used_or_refused(usual: str, value: Any, is_used: bool, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"own": value}])
    if is_used:
        assert LocalFile(path, {usual: "own"}).rows() == [{"own": value, usual: value}]
        return
    with pytest.raises(UserError, match=rf"rows\.jsonl:1: own=.*: is no {usual}"):
        LocalFile(path, {usual: "own"}).rows()


def test_halves_of_surrogate_pairs_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question":"bad \\ud800 text","answer":"#### 5"}\n')
    assert LocalFile(path).rows() == [{"question": "bad ? text", "answer": "#### 5"}]


def test_a_told_field_must_be_there(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "?"}, {"txt": "?"}])
    with pytest.raises(UserError, match=r"rows\.jsonl:2: has no field text.*the problem; it has txt"):
        LocalFile(path, {"problem": "text"}).rows()
    with pytest.raises(UserError, match="cannot be read"):
        LocalFile(tmp_path).rows()
