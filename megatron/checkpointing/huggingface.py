# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face model folder: its configuration as ours and back, its tensors, its other files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron.checkpointing.lazy import LazyTensor
from megatron.checkpointing.record import CheckpointRecord
from megatron.checkpointing.safetensors_file import open_safetensors, write_safetensors
from megatron.checkpointing.sources import Hints, Source, find_tokenizer
from megatron.checkpointing.torch_file import TorchFile
from megatron.neox_arguments.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_WEIGHTS = "pytorch_model.bin"
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
    except (FileNotFoundError, NotADirectoryError):
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


def _listed(folder: Path, index: str) -> list[Path]:
    """The files that an index names. They lie in the folder: a name is no path."""
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{folder / index}: has no weight_map of names; download it again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(
                f"{folder / index}: names {name!r}, which is not in this folder; download it again"
            )
    return [folder / name for name in names]


def open_tensors(folder: Path) -> dict[str, LazyTensor]:
    """The tensors of a model folder by name; safetensors are preferred to `.bin`.

    Raises:
        UserError: there are none, a file is damaged, or a `.bin` holds more than tensors.
    """
    readers: dict[str, Callable[[Path], dict[str, LazyTensor]]] = {
        WEIGHTS: open_safetensors,
        TORCH_WEIGHTS: lambda path: TorchFile(path).tensors(),
    }
    for name, open_file in readers.items():
        shards = []
        if (folder / (name + ".index.json")).is_file():
            shards = _listed(folder, name + ".index.json")
        elif (folder / name).is_file():
            shards = [folder / name]
        if shards:
            tensors: dict[str, LazyTensor] = {}
            for shard in shards:
                tensors.update(open_file(shard))
            return tensors
    raise UserError(
        f"--input={folder}: neither {WEIGHTS} nor {TORCH_WEIGHTS} there, and no index of shards; give the "
        "folder of a model"
    )


def open_huggingface(path: Path, hints: Hints) -> Source:
    """A Hugging Face model folder.

    Raises:
        UserError: files are missing or damaged.
    """
    config = read_json(path / "config.json")
    tensors = open_tensors(path)
    return Source("Hugging Face", path, config, tensors, find_tokenizer(hints, path), companions=path)


def write_weights(folder: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Writes safetensors, one tensor at a time: one file, or shards of at most 5 GB with an index.

    Raises:
        OSError: the folder cannot be written.
    """
    shards: list[dict[str, LazyTensor]] = [{}]
    shard_bytes = 0
    for name, tensor in tensors.items():
        if shards[-1] and shard_bytes + tensor.size_bytes > MAX_SHARD_BYTES:
            shards.append({})
            shard_bytes = 0
        shards[-1][name] = tensor
        shard_bytes += tensor.size_bytes
    if len(shards) == 1:
        write_safetensors(folder / WEIGHTS, shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file_name, shard)
        weight_map.update(dict.fromkeys(shard, file_name))
    total_bytes = sum(tensor.size_bytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def copy_travelling(source: Path, target: Path) -> None:
    """Copies the files of a base model that travel with its weights."""
    target.mkdir(parents=True, exist_ok=True)
    for name in TRAVELLING:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
