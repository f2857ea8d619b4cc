# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face model folder: its configuration as ours and back, its tensors, its other files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron.checkpointing.lazy import LazyTensor
from megatron.checkpointing.record import CheckpointRecord
from megatron.checkpointing.safetensors_file import open_safetensors, write_safetensors
from megatron.checkpointing.sources import Hints, Source, find_tokenizer
from megatron.checkpointing.torch_file import TorchFile
from megatron.neox_arguments.config import ModelConfig
from megatron.neox_arguments.errors import UserError, shown
from megatron.neox_arguments.model import FAMILIES

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


@dataclass(frozen=True)
class Family:
    """How one `model_type` of Hugging Face writes its config.json.

    `fixed` are keys that it may have with this value alone, `silent` what transformers takes where a key is
    not there (its configuration classes; a test compares them). What the network of a family is, the model
    keys say: FAMILIES in neox_arguments/model.py.
    """

    architecture: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    silent: Mapping[str, Any] = field(default_factory=dict)


# Where all classes of transformers agree; num_key_value_heads null is num_attention_heads.
_SILENT: dict[str, Any] = {
    "max_position_embeddings": 2048,
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "sliding_window": None,
}
FAMILY_CONFIGS: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}),
    "mistral": Family(
        "MistralForCausalLM",
        silent={"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        {"use_sliding_window": False},
        {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        {"use_sliding_window": False, "attention_bias": False},
        {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
    ),
    "olmo2": Family("Olmo2ForCausalLM", {"attention_bias": False}, {"rms_norm_eps": 1e-5}),
}
_FIXED_IN_ALL: dict[str, Any] = {"hidden_act": "silu", "quantization_config": None}
_SIZES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
}
# What each kind of rotary scaling reads; transformers ignores other keys beside them, and so is done here.
_SCALING: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _rotary(config: dict[str, Any]) -> tuple[float, dict[str, Any] | None, list[str]]:
    """The rotary base, the scaling, and what is not carried of the two.

    transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 both in `rope_parameters`.
    """
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    base = float(parameters.pop("rope_theta", config.get("rope_theta", 10000.0)))
    kind = parameters.pop("rope_type", parameters.pop("type", "default"))
    share = parameters.pop("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    differences = []
    if share != 1:
        differences.append(f"partial_rotary_factor={share}: 1.0, whole heads, is what is turned here")
    if kind not in _SCALING:
        differences.append(
            f"rope_type={kind}: rotary scaling is linear or llama3 here; use another base model"
        )
    keys = _SCALING.get(kind, ())
    differences += [f"rope_parameters.{key}: is missing" for key in keys if key not in parameters]
    scaling = {"type": kind, **{key: parameters[key] for key in keys if key in parameters}}
    return base, scaling if keys else None, differences


def _attention_span(config: dict[str, Any]) -> list[str]:
    """What keeps a token from seeing all tokens before it; `config` with what the file is silent about."""
    differences = []
    kinds = sorted(set(config.get("layer_types") or ()) - {"full_attention"})
    if kinds:
        differences.append(f"layer_types={', '.join(kinds)}: full_attention is what every layer here has")
    window, longest = config["sliding_window"], config["max_position_embeddings"]
    if "use_sliding_window" not in config and window is not None and window < longest:
        differences.append(
            f"sliding_window={window}: is under max_position_embeddings={longest}, and every token here sees "
            "all tokens before it; a later version of the model without a window is converted"
        )
    return differences


def model_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Translates a config.json into the model keys of a run configuration.

    Raises:
        UserError: the model is of another family, or has something that is not built; all differences.
    """
    name = config.get("model_type")
    family = FAMILY_CONFIGS.get(str(name))
    differences = []
    if family is None:
        differences.append(f"model_type={name}: only {', '.join(FAMILY_CONFIGS)} are converted")
        family = FAMILY_CONFIGS["llama"]
    said = {**_SILENT, **_FIXED_IN_ALL, **family.fixed, **family.silent, **config}
    for key, value in {**_FIXED_IN_ALL, **family.fixed}.items():
        if said[key] != value:
            differences.append(f"{key}={shown(said[key])}: {shown(value)} is what a model here has")
    differences += _attention_span(said)
    base, scaling, rotary_differences = _rotary(config)
    differences += rotary_differences
    if name in FAMILY_CONFIGS:  # others may have other names for them
        differences += [f"{key}: is missing" for key in _SIZES.values() if config.get(key) is None]
    if differences:
        raise UserError("\n".join(f"config.json: {difference}" for difference in differences))
    heads = config["num_attention_heads"]
    keys = {
        **{ours: config[theirs] for ours, theirs in _SIZES.items()},
        "num_kv_heads": said["num_key_value_heads"] or heads,
        "head_dim": said["head_dim"] or config["hidden_size"] // heads,
        "max_position_embeddings": said["max_position_embeddings"],
        "norm": "rmsnorm",
        "rms_norm_epsilon": said["rms_norm_eps"],
        **FAMILIES[str(name)],
        "no_weight_tying": not said["tie_word_embeddings"],
        "rotary_emb_base": base,
    }
    if scaling is not None:
        keys["rotary_scaling"] = scaling
    return keys


def _of_family(model: ModelConfig, base_config: dict[str, Any]) -> dict[str, Any]:
    """The base model's config.json, if it is of this network's family; else one that says the family."""
    families = model.families
    if not families:
        raise UserError("checkpoint.json: the model is of no family of Hugging Face, and cannot be exported")
    name = base_config.get("model_type")
    if name not in families:  # trained from scratch, or beside the files of another model
        name = families[0]
        base_config = {key: base_config[key] for key in _SPECIAL_TOKENS if key in base_config}
    family = FAMILY_CONFIGS[name]
    config = {**base_config, "model_type": name, "architectures": [family.architecture], **family.fixed}
    if "sliding_window" in family.silent:
        config["sliding_window"] = None
    return config


def config_of(record: CheckpointRecord, base_config: dict[str, Any]) -> dict[str, Any]:
    """The config.json of an export: the base model's, with what this checkpoint knows better.

    The rotary base is written in both places where readers look for it (`rope_theta`, transformers 4,
    vLLM and llama.cpp; `rope_parameters`, transformers 5).
    """
    model = ModelConfig.model_validate(record.model)
    config = _of_family(model, base_config)
    config.update(
        num_hidden_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        intermediate_size=model.intermediate_size,
        vocab_size=record.vocab_size,
        rms_norm_eps=model.rms_norm_epsilon,
        tie_word_embeddings=not model.no_weight_tying,
        hidden_act="silu",
        rope_theta=model.rotary_emb_base,
        max_position_embeddings=model.max_position_embeddings,
    )
    config.pop("torch_dtype", None)
    config["dtype"] = record.dtype
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": model.rotary_emb_base}
    config["rope_scaling"] = None
    if (scaling := model.rotary_scaling) is not None:
        config["rope_scaling"] = {
            "rope_type": scaling.type,
            **{key: getattr(scaling, key) for key in _SCALING[scaling.type]},
        }
        parameters.update(config["rope_scaling"])
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
