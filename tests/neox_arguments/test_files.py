# SPDX-License-Identifier: Apache-2.0
"""Files and folders a run needs: each one missing, and none reported where all are there."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from megatron.neox_arguments import RunConfig, load_config

from .files import only_problem, problems, small


@pytest.fixture
def complete(tmp_path: Path) -> dict[str, str | None]:
    """Changes to the small run with which every file is there."""
    for name in ("train_text_document", "valid_text_document"):
        for suffix in (".bin", ".idx"):
            (tmp_path / f"{name}{suffix}").touch()
    (tmp_path / "tokenizer.model").touch()
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "latest").touch()
    return {
        "train_data_paths": f"[{tmp_path}/train_text_document]",
        "valid_data_paths": f"[{tmp_path}/valid_text_document]",
        "vocab_file": f"{tmp_path}/tokenizer.model",
        "load": f"{tmp_path}/base",
        "save": f"{tmp_path}/a/new/folder",
    }


def test_a_complete_run_loads(tmp_path: Path, complete: dict[str, str | None]) -> None:
    _, notices = load_config([small(tmp_path, **complete)])
    assert notices == []
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("name", "key", "said"),
    [
        ("train_text_document.bin", "train_data_paths", "there is no .bin file"),
        ("valid_text_document.idx", "valid_data_paths", "there is no .idx file"),
        ("tokenizer.model", "vocab_file", "there is no such file"),
        ("base/latest", "load", "no file `latest`"),
    ],
)
def test_each_file_missing(
    tmp_path: Path, complete: dict[str, str | None], name: str, key: str, said: str
) -> None:
    (tmp_path / name).unlink()
    problem = only_problem(small(tmp_path, **complete), check_files=True)
    assert problem.key == key
    assert said in problem.constraint
    assert "small.yml:" in problem.where


def test_urls_stay_as_they_are_and_need_their_package(
    tmp_path: Path, complete: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = {"load": "s3://bucket/base", "s3_path": "s3://bucket/run/"}
    file = small(tmp_path, **{**complete, **urls})
    cfg, _ = load_config([file])
    assert (cfg.checkpoint.load, cfg.checkpoint.s3_path) == ("s3://bucket/base", "s3://bucket/run")
    cfg.freeze(tmp_path / "frozen.json")
    assert RunConfig.thaw(tmp_path / "frozen.json") == cfg

    def without_s3fs(protocol: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", without_s3fs)
    found = problems(file, check_files=True)
    assert [problem.key for problem in found] == ["load", "s3_path"]
    assert all("pip install -r requirements/requirements-s3.txt" in problem.remedy for problem in found)


@pytest.mark.parametrize("key", ["train_data_paths", "vocab_file"])
def test_each_key_missing(tmp_path: Path, complete: dict[str, str | None], key: str) -> None:
    problem = only_problem(small(tmp_path, **{**complete, key: None}), check_files=True)
    assert (problem.key, problem.constraint) == (key, "is not set")


def test_a_name_with_its_ending_is_put_right(tmp_path: Path, complete: dict[str, str | None]) -> None:
    for given in ("train_text_document.bin", "train"):
        complete["train_data_paths"] = f"[{tmp_path}/{given}]"
        problem = only_problem(small(tmp_path, **complete), check_files=True)
        assert problem.remedy == f"use {tmp_path}/train_text_document"


def test_a_hugging_face_folder_is_recognised(tmp_path: Path, complete: dict[str, str | None]) -> None:
    (tmp_path / "base" / "latest").rename(tmp_path / "base" / "config.json")
    problem = only_problem(small(tmp_path, **complete), check_files=True)
    assert "hf-to-neox" in problem.remedy


def test_a_first_run_may_load_from_where_it_will_save(
    tmp_path: Path, complete: dict[str, str | None]
) -> None:
    complete["load"] = complete["save"]
    assert problems(small(tmp_path, **complete), check_files=True) == []


def test_saving_below_a_file(tmp_path: Path, complete: dict[str, str | None]) -> None:
    complete["save"] = f"{tmp_path}/tokenizer.model/run"
    problem = only_problem(small(tmp_path, **complete), check_files=True)
    assert (problem.key, "is a file" in problem.constraint) == ("save", True)


def test_saving_where_nothing_can_be_written(
    tmp_path: Path, complete: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron.neox_arguments.files.os.access", lambda path, mode: False)
    problem = only_problem(small(tmp_path, **complete), check_files=True)
    assert (problem.key, "cannot be written" in problem.constraint) == ("save", True)


def test_data_path_counts_as_data(tmp_path: Path, complete: dict[str, str | None]) -> None:
    complete |= {"train_data_paths": None, "valid_data_paths": None}
    path = small(tmp_path, **complete, data_path=f"{tmp_path}/train_text_document")
    assert problems(path, check_files=True) == []
    (tmp_path / "train_text_document.idx").unlink()
    assert only_problem(path, check_files=True).key == "data_path"
