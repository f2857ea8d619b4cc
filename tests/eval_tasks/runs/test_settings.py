# SPDX-License-Identifier: Apache-2.0
"""What a results folder was made with: the same goes on, a change is refused by name or begins again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval_tasks.results.samples import SampleWriter
from eval_tasks.runs.settings import Settings, keep_settings
from megatron.neox_arguments.errors import ConfigError, UserError

MODEL = {"sha256": "aa", "backend": "hf", "dtype": None, "seed": 0}
MATH = {"items": 4, "k": 1, "stop": ["x"]}
SAT = {"items": 2, "k": 16}


def kept(folder: Path, overwrite: bool = False, model: Any = MODEL, **tasks: Any) -> None:
    keep_settings(folder, Settings(model, tasks or {"math": MATH, "sat": SAT}), overwrite)


def write_samples(folder: Path) -> None:
    for task in ("math", "sat"):
        for kind in ("samples", "verdicts", "votes"):
            (folder / f"{kind}_{task}.jsonl").write_text("{}\n")


def names(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.jsonl")}


def test_the_same_settings_go_on_and_other_tasks_join(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    kept(folder, math=MATH)
    kept(folder, math=MATH)
    kept(folder, sat=SAT)
    assert json.loads((folder / "run.json").read_text())["tasks"] == {"math": MATH, "sat": SAT}


def test_a_model_that_was_moved_is_the_same(tmp_path: Path) -> None:
    kept(tmp_path, model={**MODEL, "name": "old"})
    kept(tmp_path, model={**MODEL, "name": "new"})
    server = {"url": "http://x/v1", "backend": "openai"}
    kept(tmp_path / "other", model={**server, "name": "old"})
    with pytest.raises(ConfigError, match="name=new: was old here"):
        kept(tmp_path / "other", model={**server, "name": "new"})


def test_another_model_is_called_by_its_name(tmp_path: Path) -> None:
    model = {**MODEL, "name": "llemma"}
    keep_settings(tmp_path, Settings(model, {"math": MATH}, {"checkpoint": "old/llemma"}), False)
    changed = Settings({**model, "sha256": "bb"}, {"math": MATH}, {"checkpoint": "new/llemma"})
    with pytest.raises(ConfigError, match=r"CHECKPOINT=new/llemma: has other files .*with, old/llemma \(aa"):
        keep_settings(tmp_path, changed, False)


def test_each_change_is_named(tmp_path: Path) -> None:
    kept(tmp_path)
    write_samples(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ConfigError) as caught:
        kept(tmp_path, model={**MODEL, "dtype": "float32"}, math={**MATH, "k": 2, "limit": 3}, sat=SAT)
    said = [str(problem) for problem in caught.value.problems]
    assert [text.partition(";")[0] for text in said] == [
        "dtype=float32: was none here", "math: k=2: was 1 here", "math: limit=3: was none here",
    ]  # fmt: skip
    assert all("--overwrite" in text for text in said)
    assert (tmp_path / "run.json").read_bytes() == before
    assert len(names(tmp_path)) == 6


def test_overwrite_begins_changed_tasks_again(tmp_path: Path) -> None:
    kept(tmp_path)
    write_samples(tmp_path)
    kept(tmp_path, overwrite=True)
    assert len(names(tmp_path)) == 6
    kept(tmp_path, overwrite=True, math={**MATH, "k": 2})
    assert names(tmp_path) == {"samples_sat", "verdicts_sat", "votes_sat"}
    assert json.loads((tmp_path / "run.json").read_text())["tasks"] == {"math": {**MATH, "k": 2}, "sat": SAT}
    kept(tmp_path, overwrite=True, model={**MODEL, "sha256": "bb"}, math=MATH)
    assert names(tmp_path) == set()
    assert json.loads((tmp_path / "run.json").read_text())["tasks"] == {"math": MATH}


def test_samples_that_are_being_written_are_not_removed(tmp_path: Path) -> None:
    kept(tmp_path)
    write_samples(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    with (
        SampleWriter(tmp_path, "sat"),
        pytest.raises(UserError, match=r"samples_sat\.jsonl: another process writes"),
    ):
        kept(tmp_path, overwrite=True, math={**MATH, "k": 2}, sat={**SAT, "k": 2})
    assert len(names(tmp_path)) == 6
    assert (tmp_path / "run.json").read_bytes() == before


def test_where_the_problems_are_from_is_kept_for_each_task(tmp_path: Path) -> None:
    def told(data: dict[str, str], **tasks: Any) -> Any:
        keep_settings(tmp_path, Settings(MODEL, tasks, {"url": "u", "data": data}), False)
        return json.loads((tmp_path / "run.json").read_text())["told"]

    told({"math": "a.jsonl"}, math=MATH)
    assert told({"sat": "b.jsonl"}, sat=SAT) == {"url": "u", "data": {"math": "a.jsonl", "sat": "b.jsonl"}}
    assert told({}, math=MATH)["data"] == {"sat": "b.jsonl"}  # the hub's now, and they are the same


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"is not empty and has no run\.json"):
            kept(tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 9}', '{"format": 1, "model": 3}'])
def test_a_broken_record_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json"):
        kept(tmp_path, overwrite=True)
    assert (tmp_path / "run.json").read_text() == content
