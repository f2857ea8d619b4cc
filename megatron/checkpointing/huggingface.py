# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face model folder: its configuration as ours and back, its tensors, its other files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from megatron.checkpointing.record import CheckpointRecord
from megatron.neox_arguments.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Shards of 5 GB: the size Hugging Face's own `save_pretrained` long had.
MAX_SHARD_BYTES = 5 * 10**9
# Files of the base model that travel with a checkpoint, so that the export has them.
TRAVELLING = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object, or says what is wrong with the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"--input={path.parent}: no {path.name} there; give a Hugging Face model folder"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object; download it again")
    return content


def _rotary(config: dict[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """The rotary base and scaling, from transformers 4's keys or transformers 5's `rope_parameters`."""
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    base = float(parameters.pop("rope_theta", config.get("rope_theta", 10000.0)))
    kind = parameters.pop("rope_type", parameters.pop("type", "default"))
    if kind == "default":
        return base, None
    if kind not in ("linear", "llama3"):
        raise UserError(f"rope_type={kind}: rotary scaling is linear or llama3 here; use another base model")
    return base, {"type": kind, **parameters}


def model_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Translates a Llama's config.json into the model keys of a run configuration.

    Raises:
        UserError: the model is not a Llama, or has something a Llama here has not; all differences.
    """
    differences = []
    if config.get("model_type") != "llama":
        differences.append(f"model_type={config.get('model_type')}: only llama is converted")
    expected = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}
    for key, value in expected.items():
        if config.get(key, value) != value:
            differences.append(f"{key}={config[key]}: {value} is what a Llama here has")
    if differences:
        raise UserError("config.json: " + "\nerror: config.json: ".join(differences))
    heads = config["num_attention_heads"]
    base, scaling = _rotary(config)
    keys = {
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "num_attention_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "intermediate_size": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "max_position_embeddings": config.get("max_position_embeddings", 2048),
        "norm": "rmsnorm",
        "rms_norm_epsilon": config.get("rms_norm_eps", 1e-6),
        "no_weight_tying": not config.get("tie_word_embeddings", False),
        "rotary_emb_base": base,
    }
    if scaling is not None:
        keys["rotary_scaling"] = scaling
    return keys


def config_of(record: CheckpointRecord, base_config: dict[str, Any]) -> dict[str, Any]:
    """The config.json of an export: the base model's, with what this checkpoint knows better.

    The rotary base is written in both places where readers look for it (`rope_theta`, transformers 4,
    vLLM and llama.cpp; `rope_parameters`, transformers 5).
    """
    model = record.model
    config = dict(base_config) or {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    config.update(
        num_hidden_layers=model["num_layers"],
        hidden_size=model["hidden_size"],
        num_attention_heads=model["num_attention_heads"],
        num_key_value_heads=model["num_kv_heads"],
        head_dim=model["head_dim"],
        intermediate_size=model["intermediate_size"],
        vocab_size=record.vocab_size,
        rms_norm_eps=model["rms_norm_epsilon"],
        tie_word_embeddings=not model["no_weight_tying"],
        hidden_act="silu",
        attention_bias=False,
        mlp_bias=False,
        rope_theta=model["rotary_emb_base"],
        max_position_embeddings=model["max_position_embeddings"],
    )
    config.pop("torch_dtype", None)
    config["dtype"] = record.dtype
    scaling = model.get("rotary_scaling")
    parameters = {"rope_type": "default", "rope_theta": model["rotary_emb_base"]}
    if scaling:
        parameters.update(
            {("rope_type" if k == "type" else k): v for k, v in scaling.items() if v is not None}
        )
        config["rope_scaling"] = {k: v for k, v in parameters.items() if k != "rope_theta"}
    else:
        config["rope_scaling"] = None
    config["rope_parameters"] = parameters
    return config


def _shards_of(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise UserError(
                    f"{folder / INDEX}: names {name!r}, which is not in this folder; download it again"
                )
        return [folder / name for name in names]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    raise UserError(
        f"--input={folder}: neither {WEIGHTS} nor {INDEX} there; save the model as safetensors first"
    )


class HuggingFaceTensors:
    """Tensors of a model folder by name, read when asked for."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Any] = {}
        for shard in _shards_of(folder):
            try:
                file = safe_open(shard, framework="pt")
            except Exception as error:  # safetensors raises its own type for damaged headers
                raise UserError(
                    f"{shard}: not a whole safetensors file ({error}); download it again"
                ) from None
            self._files.update(dict.fromkeys(file.keys(), file))

    @property
    def names(self) -> set[str]:
        return set(self._files)

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor


def write_weights(folder: Path, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Writes safetensors: one file, or shards of at most 5 GB with an index."""
    shards: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    total_bytes = pending_bytes = 0

    def flush() -> None:
        save_file(pending, folder / f".shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        size_bytes = tensor.numel() * tensor.element_size()
        if pending and pending_bytes + size_bytes > MAX_SHARD_BYTES:
            flush()
            pending_bytes = 0
        pending[name] = tensor.contiguous()
        pending_bytes += size_bytes
        total_bytes += size_bytes
    flush()
    if len(shards) == 1:
        (folder / ".shard-0").rename(folder / WEIGHTS)
        return
    weight_map = {}
    for number, names in enumerate(shards):
        file_name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f".shard-{number}").rename(folder / file_name)
        weight_map.update(dict.fromkeys(names, file_name))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def copy_travelling(source: Path, target: Path) -> None:
    """Copies the files of a base model that travel with its weights."""
    target.mkdir(parents=True, exist_ok=True)
    for name in TRAVELLING:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
