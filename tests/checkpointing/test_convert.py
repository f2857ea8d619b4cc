# SPDX-License-Identifier: Apache-2.0
"""Hugging Face → here → Hugging Face: the same keys and bytes; and bad input leaves everything as it was."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.checkpointing import convert, huggingface
from megatron.checkpointing.record import CheckpointRecord
from megatron.neox_arguments.errors import UserError
from tests.llamas import save_hf_llama

CASES: dict[str, dict[str, Any]] = {
    "mha": {"num_key_value_heads": 4},
    "gqa": {},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "bfloat16": {"dtype": "bfloat16"},
    "wide heads": {"head_dim": 32},
    "vocabulary that needs padding": {"vocab_size": 251},
    "llama 3.2": {
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "linear scaling": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "mistral": {"family": "mistral", "head_dim": 32},
    "qwen 2.5": {"family": "qwen2"},
    "qwen 2.5, tied": {"family": "qwen2", "tie_word_embeddings": True, "dtype": "bfloat16"},
    "qwen 3": {"family": "qwen3"},
    "qwen 3, tied": {"family": "qwen3", "tie_word_embeddings": True},
    "olmo 2": {"family": "olmo2"},
}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.read() for name, tensor in huggingface.open_tensors(folder).items()}


@pytest.mark.parametrize("tensor_parallel_size", [1, 2, 4])
@pytest.mark.parametrize("name", CASES)
def test_round_trip_is_bit_exact(tmp_path: Path, name: str, tensor_parallel_size: int) -> None:
    hf = save_hf_llama(tmp_path / "hf", **CASES[name])
    convert.hf_to_neox(hf, tmp_path / "neox", tensor_parallel_size)
    convert.neox_to_hf(tmp_path / "neox", tmp_path / "back")
    before, after = tensors_of(hf), tensors_of(tmp_path / "back")
    assert before.keys() == after.keys()
    for key in before:
        assert before[key].dtype == after[key].dtype
        assert torch.equal(before[key].view(torch.uint8), after[key].view(torch.uint8)), key


@pytest.mark.parametrize("name", CASES)
def test_the_configuration_comes_back(tmp_path: Path, name: str) -> None:
    """As transformers reads it; and model.yml, which is made of it, is a run without a mistake."""
    from transformers import AutoConfig

    from megatron.neox_arguments.loader import load_config

    case = {"max_position_embeddings": 96, "dtype": "float32", **CASES[name]}
    hf = save_hf_llama(tmp_path / "hf", **case)
    convert.hf_to_neox(hf, tmp_path / "neox", 1)
    convert.neox_to_hf(tmp_path / "neox", tmp_path / "back")
    before, after = AutoConfig.from_pretrained(hf), AutoConfig.from_pretrained(tmp_path / "back")
    assert type(before) is type(after)
    differing = {
        key: (value, getattr(after, key))
        for key, value in before.to_dict().items()
        if key not in ("_name_or_path", "dtype") and getattr(after, key, None) != value
    }
    assert differing == {}
    assert after.dtype == getattr(torch, case["dtype"])
    run = tmp_path / "run.yml"
    run.write_text("{seq_length: 32, train_iters: 5, lr: 0.001, micro_batch_size: 1, data_path: any}")
    cfg, _ = load_config([tmp_path / "neox" / "model.yml", run], check_files=False)
    record = CheckpointRecord.read(tmp_path / "neox" / "global_step0")
    record.refuse_other_shape(tmp_path, cfg.model, record.vocab_size)


def test_the_tokenizer_comes_back(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    hf = save_hf_llama(tmp_path / "hf")
    convert.hf_to_neox(hf, tmp_path / "neox", 1)
    convert.neox_to_hf(tmp_path / "neox", tmp_path / "back")
    text = "w3 w99 w7"
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "back")(text)["input_ids"]
        == (AutoTokenizer.from_pretrained(hf)(text)["input_ids"])
        == [3, 99, 7]
    )


def test_shards_have_an_index_and_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    hf = save_hf_llama(tmp_path / "hf")
    convert.hf_to_neox(hf, tmp_path / "neox", 1)
    monkeypatch.setattr(huggingface, "MAX_SHARD_BYTES", 100_000)
    convert.neox_to_hf(tmp_path / "neox", tmp_path / "back")
    index = json.loads((tmp_path / "back" / huggingface.INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert not (tmp_path / "back" / huggingface.WEIGHTS).exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    for name, tensor in tensors_of(hf).items():
        assert torch.equal(model.state_dict()[name], tensor)
    # and back in, from shards
    convert.hf_to_neox(tmp_path / "back", tmp_path / "again", 1)
    convert.neox_to_hf(tmp_path / "again", tmp_path / "third")
    assert convert.digest_of(tmp_path / "third") == convert.digest_of(hf)


def test_model_yml_loads_as_a_run(tmp_path: Path) -> None:
    from megatron.neox_arguments.loader import load_config

    hf = save_hf_llama(tmp_path / "hf")
    convert.hf_to_neox(hf, tmp_path / "neox", 2)
    run = tmp_path / "run.yml"
    run.write_text("{seq_length: 32, train_iters: 5, lr: 0.001, micro_batch_size: 1, data_path: any}")
    cfg, _ = load_config([tmp_path / "neox" / "model.yml", run], check_files=False)
    record = CheckpointRecord.read(tmp_path / "neox" / "global_step0")
    record.refuse_other_shape(tmp_path, cfg.model, 256)
    assert cfg.parallel.model_parallel_size == 2
    assert cfg.checkpoint.load == (tmp_path / "neox").resolve()


def break_config(**changes: Any) -> Any:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return apply


def truncate_weights(folder: Path) -> None:
    weights = folder / huggingface.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])


def index_outside(folder: Path) -> None:
    (folder / huggingface.INDEX).write_text('{"weight_map": {"lm_head.weight": "../../secret.safetensors"}}')


BROKEN: dict[str, tuple[Any, str]] = {
    "another family": (break_config(model_type="gpt2"), "model_type=gpt2: only llama, mistral, qwen2, qwen3"),
    "biases": (break_config(attention_bias=True), "attention_bias=true: false is what"),
    "another family's name": (break_config(model_type="qwen2"), "tensors missing: .*q_proj.bias"),
    "other scaling": (
        break_config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}),
        "rope_type=yarn",
    ),
    "more layers said than there": (break_config(num_hidden_layers=5), "tensors missing: model.layers.3"),
    "fewer layers said than there": (break_config(num_hidden_layers=2), "unknown: model.layers.2"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json there"),
    "config not JSON": (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
    "no weights": (lambda folder: (folder / huggingface.WEIGHTS).unlink(), "neither model.safetensors nor"),
    "truncated weights": (truncate_weights, "not a whole safetensors file"),
    "index that points outside": (index_outside, "which is not in this folder"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "neither tokenizer.json nor"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hf_llama(tmp_path_factory.mktemp("whole") / "hf")


@pytest.mark.parametrize("name", BROKEN)
def test_broken_input_is_refused_and_writes_nothing(tmp_path: Path, whole: Path, name: str) -> None:
    break_it, message = BROKEN[name]
    hf = tmp_path / "hf"
    shutil.copytree(whole, hf)
    break_it(hf)
    with pytest.raises(UserError, match=message):
        convert.hf_to_neox(hf, tmp_path / "neox", 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["hf"]


def test_an_existing_output_is_not_touched(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "neox").mkdir()
    (tmp_path / "neox" / "mine").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        convert.hf_to_neox(whole, tmp_path / "neox", 1)
    assert (tmp_path / "neox" / "mine").read_text() == "mine"


def test_a_wrong_row_of_the_table_shows(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the logits tests and --verify: keys before values swapped must not pass as equal."""
    from megatron.checkpointing import mapping, verify

    convert.hf_to_neox(whole, tmp_path / "neox", 1)
    convert.neox_to_hf(tmp_path / "neox", tmp_path / "right")
    right = verify.compare_logits(tmp_path / "neox", tmp_path / "right")
    assert right.is_equal, right.describe()
    swapped = [
        dataclasses.replace(row, split=lambda w, g: [(p := mapping._split_qkv(w, g))[0], p[2], p[1]])
        if "linear_qkv" in row.ours
        else row
        for row in mapping._LAYER
    ]
    monkeypatch.setattr(mapping, "_LAYER", swapped)
    convert.neox_to_hf(tmp_path / "neox", tmp_path / "wrong")
    wrong = verify.compare_logits(tmp_path / "neox", tmp_path / "wrong")
    assert not wrong.is_equal
    assert "DIFFERENT" in wrong.describe()
