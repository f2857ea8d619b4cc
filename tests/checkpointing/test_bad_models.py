# SPDX-License-Identifier: Apache-2.0
"""Models that others give away and that are not what they say: named, and nothing is written."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron.checkpointing import convert
from megatron.checkpointing.sources import open_source
from megatron.neox_arguments.errors import UserError
from tests.llamas import save_hf_llama

Tensors = dict[str, torch.Tensor]


def changed(tmp_path: Path, change: Callable[[Tensors], None] = lambda _: None, **config: Any) -> Path:
    """A small Llama with other tensors or another configuration."""
    folder = save_hf_llama(tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **config}))
    return folder


def refused(tmp_path: Path, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        convert.hf_to_neox(folder, tmp_path / "out", 1)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name], "nothing was written"
    return str(caught.value)


def test_a_tied_model_with_an_output_layer_of_its_own(tmp_path: Path) -> None:
    said = refused(tmp_path, changed(tmp_path, tie_word_embeddings=True))
    assert "tie_word_embeddings is true, but lm_head.weight is not the embedding" in said


def test_a_tied_model_that_repeats_the_embedding_is_taken(tmp_path: Path) -> None:
    def repeat(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    convert.hf_to_neox(changed(tmp_path, repeat, tie_word_embeddings=True), tmp_path / "out", 1)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float64])
def test_what_is_no_weight(tmp_path: Path, dtype: torch.dtype) -> None:
    def cast(tensors: Tensors) -> None:
        name = "model.layers.1.mlp.up_proj.weight"
        tensors[name] = tensors[name].to(dtype)

    said = refused(tmp_path, changed(tmp_path, cast))
    assert f"up_proj.weight is {str(dtype).removeprefix('torch.')}" in said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite(tmp_path: Path, value: float) -> None:
    def break_one(tensors: Tensors) -> None:
        tensors["model.norm.weight"][3] = value

    assert "model.norm.weight holds NaN or infinity" in refused(tmp_path, changed(tmp_path, break_one))


def test_large_weights_whose_sum_overflows_are_taken(tmp_path: Path) -> None:
    def enlarge(tensors: Tensors) -> None:
        tensors["model.norm.weight"].fill_(3e38)

    convert.hf_to_neox(changed(tmp_path, enlarge), tmp_path / "out", 1)


def test_more_layers_than_anyone_has(tmp_path: Path) -> None:
    said = refused(tmp_path, changed(tmp_path, num_hidden_layers=200_000_000_000))
    assert "num_hidden_layers=200,000,000,000, but it holds" in said


def test_missing_tensors_are_counted(tmp_path: Path) -> None:
    def remove(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".layers.1." in name]:
            del tensors[name]

    said = refused(tmp_path, changed(tmp_path, remove))
    assert "and 4 more" in said
    assert "unknown" not in said


def test_mixed_dtypes_are_said_and_kept(tmp_path: Path) -> None:
    def mix(tensors: Tensors) -> None:
        for name in tensors:
            if "norm" not in name:
                tensors[name] = tensors[name].bfloat16()

    record, source = convert.hf_to_neox(changed(tmp_path, mix), tmp_path / "out", 1)
    assert record.dtype == "bfloat16"
    assert any("bfloat16 and float32" in notice for notice in source.notices)
    convert.neox_to_hf(tmp_path / "out", tmp_path / "back")
    assert convert.digest_of(tmp_path / "back") == convert.digest_of(tmp_path / "hf")


def test_another_family_is_refused_once(tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gpt2", "n_layer": 2}')
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    assert refused(tmp_path, folder).count("\n") == 0


def test_a_gpt_neox_folder_without_latest(tmp_path: Path) -> None:
    folder = tmp_path / "neox"
    (folder / "global_step5").mkdir(parents=True)
    (folder / "global_step5" / "mp_rank_00_model_states.pt").touch()
    with pytest.raises(UserError, match=r"`latest` names none .* give .*global_step5"):
        open_source(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_nothing_stays_there(tmp_path: Path, small_disk: Path) -> None:
    hf = save_hf_llama(tmp_path / "hf", hidden_size=128)
    with pytest.raises(UserError, match="No space left on device"):
        convert.hf_to_neox(hf, small_disk / "out", 1)
    assert list(small_disk.iterdir()) == []
    convert.hf_to_neox(hf, tmp_path / "neox", 1)
    with pytest.raises(UserError, match="No space left on device"):
        convert.neox_to_hf(tmp_path / "neox", small_disk / "out")
    assert list(small_disk.iterdir()) == []
