# SPDX-License-Identifier: Apache-2.0
"""Models that are not there or cannot be read are told in one line, with their place."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from eval_tasks.runs.backends import (
    ModelChoice,
    choice_problems,
    folder_digest,
    identity,
    open_hf,
    output_problems,
    precision_of,
)
from megatron.checkpointing import manifest
from megatron.neox_arguments.errors import UserError
from tests.llamas import save_hf_llama


def choice(checkpoint: str) -> ModelChoice:
    return ModelChoice(checkpoint, "hf", None, batch_size=1, seed=0)


def test_a_path_is_no_name_at_the_hub(tmp_path: Path) -> None:
    for name in ("../nothere", "./nothere", str(tmp_path / "nothere"), "nothere/"):
        (problem,) = choice_problems(choice(name), 1)
        assert str(problem).startswith(f"CHECKPOINT={name}: no such folder")
    assert [str(problem) for problem in choice_problems(choice("EleutherAI/llemma_7b"), 1)] == []
    (problem,) = choice_problems(choice(str(tmp_path)), 1)
    assert "holds no model" in str(problem)


@pytest.mark.parametrize(("name", "content"), [
    ("model.safetensors", None), ("config.json", b"{"), ("config.json", b'{"model_type": "llama", "vocab_size": "x"}'),
    ("tokenizer.json", b'{"version": 7}'),
])  # fmt: skip
def test_a_broken_model_is_told_in_one_line(name: str, content: bytes | None, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs requirements/requirements-eval.txt")
    folder = save_hf_llama(tmp_path / "hf")
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(UserError) as caught:
        open_hf(choice(str(folder)))
    assert str(caught.value).startswith(
        f"{path if content is None else folder}: transformers cannot read it ("
    )
    assert "\n" not in str(caught.value)


def large_file(folder: Path, middle: bytes = b"") -> Path:
    """A model of 8 MiB in which what differs lies in the middle."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    content = bytearray(8 << 20)
    content[4 << 20 : (4 << 20) + len(middle)] = middle
    (folder / "model.safetensors").write_bytes(content)
    return folder


def digest(folder: Path, known: Any = None) -> tuple[str, Any]:
    return folder_digest(folder, known or {}, lambda _: None)


def test_a_model_is_known_by_all_of_its_bytes(tmp_path: Path) -> None:
    same = digest(large_file(tmp_path / "a"))[0], digest(large_file(tmp_path / "b"))[0]
    assert same[0] == same[1]
    assert digest(large_file(tmp_path / "c", b"x"))[0] != same[0]
    found = identity(choice(str(tmp_path / "a")), {}, lambda _: None)[0]
    assert found == {"name": "a", "sha256": same[0]}


def test_files_are_read_again_when_they_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read, describe = large_file(tmp_path / "a"), [], manifest.describe

    def noted(path: Path) -> manifest.FileEntry:
        read.append(path.name)
        return describe(path)

    monkeypatch.setattr(manifest, "describe", noted)
    first, known = digest(folder)
    assert sorted(read) == ["config.json", "model.safetensors"]
    assert digest(folder, json.loads(json.dumps(known))) == (first, known)
    assert len(read) == 2
    path = large_file(folder, b"x") / "model.safetensors"
    os.utime(path, ns=(0, known[str(path)][1] + 1))
    os.utime(folder / "config.json", ns=(0, known[str(folder / "config.json")][1]))
    assert digest(folder, known)[0] != first
    assert read[2:] == ["model.safetensors"]


def test_a_sealed_checkpoint_is_known_by_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "global_step1"
    folder.mkdir()
    (folder / "checkpoint.json").write_text("{}")
    (folder / "weights").write_bytes(b"abc")
    unsealed = digest(folder)[0]
    manifest.seal(folder)
    sealed = digest(folder)[0]
    assert sealed != unsealed  # checkpoint.json says now that there is a manifest
    os.utime(folder / "weights", ns=(0, (folder / "manifest.json").stat().st_mtime_ns + 1))
    assert digest(folder)[0] == sealed  # touched: read, and the same
    (folder / "weights").write_bytes(b"abd")
    os.utime(folder / "weights", ns=(0, (folder / "manifest.json").stat().st_mtime_ns + 1))
    assert digest(folder)[0] != sealed
    os.utime(folder / "weights", ns=(0, 0))
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"manifest\.json is not what was written"):
        digest(folder)


def test_results_do_not_lie_in_the_models_folder(tmp_path: Path) -> None:
    model = choice(str(large_file(tmp_path / "a")))
    for output in ("a", "a/results", "b/../a/x/y"):
        (problem,) = output_problems(model, tmp_path / output)
        assert "lies in the folder of a model" in str(problem)
    assert not list(output_problems(model, tmp_path / "results"))
    (tmp_path / "save" / "global_step1").mkdir(parents=True)
    (tmp_path / "save" / "global_step1" / "checkpoint.json").write_text("{}")
    native = ModelChoice(str(tmp_path / "save"), "native", None, batch_size=1, seed=0)
    assert list(output_problems(native, tmp_path / "save" / "global_step1" / "results"))
    assert not list(output_problems(native, tmp_path / "save" / "results"))


def test_a_servers_address_is_no_part_of_its_model() -> None:
    first, second = (
        ModelChoice("llemma", "openai", None, batch_size=1, seed=0, base_url=f"http://127.0.0.1:{port}/v1")
        for port in (8000, 8001)
    )
    assert identity(first, {}, print) == identity(second, {}, print) == ({"name": "llemma"}, {})


def test_the_precision_is_that_of_the_option_or_of_the_files(tmp_path: Path) -> None:
    folder = large_file(tmp_path / "a")
    assert precision_of(choice(str(folder))) == "bfloat16"
    (folder / "config.json").write_text('{"dtype": "float32"}')
    assert precision_of(choice(str(folder))) == "float32"
    asked = ModelChoice(str(folder), "hf", "float16", batch_size=1, seed=0)
    assert precision_of(asked) == "float16"
    (folder / "config.json").write_text("[]")
    assert precision_of(choice(str(folder))) is None
