# SPDX-License-Identifier: Apache-2.0
"""tools/inspect_checkpoint.py: what it says is what transformers finds in the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.checkpointing import convert
from megatron.checkpointing.record import CheckpointRecord
from tests.llamas import save_hf_llama
from tools import inspect_checkpoint


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Hugging Face model and its checkpoint here."""
    place = tmp_path_factory.mktemp("inspected")
    hf = save_hf_llama(place / "hf")
    convert.hf_to_neox(hf, place / "neox", 2)
    return hf, place / "neox"


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """(exit status, what was printed)."""
    status = 0
    try:
        inspect_checkpoint.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        status = int(ended.code or 0)
    captured = capsys.readouterr()
    return status, captured.out or captured.err


def test_json_has_the_norms_that_transformers_model_has(
    both: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    state = AutoModelForCausalLM.from_pretrained(both[0]).state_dict()
    for path in both:
        status, text = said(capsys, path, "--json")
        content = json.loads(text)
        assert status == 0
        assert content["tensors"].keys() == state.keys()
        for name, tensor in state.items():
            entry = content["tensors"][name]
            assert (entry["shape"], entry["dtype"]) == (list(tensor.shape), "float32")
            assert entry["norm"] == pytest.approx(torch.linalg.vector_norm(tensor.double()).item(), rel=1e-9)
            assert entry["largest"] == pytest.approx(tensor.abs().max().item())
        assert content["model"]["rotary_emb_base"] == 100000.0
        assert content["tokenizer"]["vocab_size"] == 256


def test_text_says_what_a_checkpoint_is(both: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    step = both[1] / "global_step0"
    record = CheckpointRecord.read(step)
    history = [{"iteration": 0, "from": 1e6, "to": 100000.0}]
    changed = {**record.__dict__, "tokens_seen": 12_345_678, "rotary_history": history}
    try:
        CheckpointRecord(**changed).write(step)
        status, text = said(capsys, both[1])
    finally:
        record.write(step)
    assert status == 0
    for part in (
        "checkpoint of this program", "3 layers, hidden 64, 4 heads, 2 KV heads of 16", "own output layer",
        "rotary base  100,000", "1,000,000 → 100,000 at iteration 0", "12,345,678 tokens",
        "written at   TP 2, PP 1, DP 1", "HFTokenizer, 256 ids", "model.layers.2.mlp.down_proj.weight",
    ):  # fmt: skip
        assert part in text


def test_quick_reads_no_weights(both: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said(capsys, both[0], "--quick")
    assert status == 0
    assert "lm_head.weight" in text
    assert "norm " not in text.split("\n\n")[1]


def test_equal_models_in_two_formats(both: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said(capsys, *both)
    assert status == 0
    assert text == "30 tensors are equal; all tensors are equal\n"


def spoilt(hf: Path, folder: Path, change: Any) -> Path:
    """A copy whose tensors were changed."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(hf, folder)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_differences_are_named(
    both: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        state["model.norm.weight"][5] += 0.25
        state["lm_head.weight"] = state["lm_head.weight"][:200].contiguous()
        state["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
        state["model.layers.2.mlp.up_proj.weight"] = state["model.layers.2.mlp.up_proj.weight"].bfloat16()
        state["adapter"] = state.pop("model.embed_tokens.weight")

    other = spoilt(both[0], tmp_path / "other", change)
    config = json.loads((other / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 10000.0
    (other / "config.json").write_text(json.dumps(config))
    status, text = said(capsys, both[1], other, "--json")
    content = json.loads(text)
    assert status == 1
    assert content["configuration"] == {"rotary_emb_base": [100000.0, 10000.0]}
    assert content["only_first"] == ["model.embed_tokens.weight"]
    assert content["only_second"] == ["adapter"]
    assert content["other_shape"] == {"lm_head.weight": [[256, 64], [200, 64]]}
    differing = content["differing"]
    assert differing["model.norm.weight"] == ["float32", "float32", pytest.approx(0.25, rel=1e-6)]
    assert differing["model.layers.1.mlp.up_proj.weight"] == ["float32", "float32", "inf"]
    assert differing["model.layers.2.mlp.up_proj.weight"][:2] == ["float32", "bfloat16"]
    assert content["equal"] == 30 - 5
    status, text = said(capsys, both[1], other)
    assert status == 1
    assert "model.norm.weight: differs by at most 0.25" in text
    assert text.rstrip().endswith("tensors DIFFER")


def test_what_is_no_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said(capsys, tmp_path)
    assert (status, text.startswith("error: ")) == (2, True)
    status, text = said(capsys, tmp_path / "nowhere")
    assert (status, "does not exist" in text) == (2, True)
