# SPDX-License-Identifier: Apache-2.0
"""Llamas that GPT-NeoX and its Llemma branch trained: DeepSpeed's sequential checkpoints.

A pipeline's modules are numbered: 0 is the embedding, 2 … L+1 are the layers, L+3 the final norm, L+4 the
output layer. With pipeline stages each lies in `layer_NN-model_MM-model_states.pt` (MM counts tensor parallel
ranks); without (`pipe_parallel_size: 0`, as Llemma was trained) all lie in `mp_rank_MM_model_states.pt` under
`module`, named `sequential.NN.…`.

Queries, keys and values are one matrix. For each query head it has the head's D rows of queries, then
D * G / H rows of the keys, then as many of the values; key heads are these rows put end to end. With G = H
that is q, k and v of each head in turn. The Llemma branch stored grouped queries so.

Legend: H query heads, G key heads, D head dimension, C hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron.checkpointing.lazy import LazyTensor, Splitter, join
from megatron.checkpointing.sources import Hints, Source, find_tokenizer, tokenizer_type
from megatron.checkpointing.torch_file import TorchFile
from megatron.neox_arguments import load_config
from megatron.neox_arguments.config import ModelConfig
from megatron.neox_arguments.errors import UserError
from megatron.tokenizer import build_tokenizer

_LAYER_FILE = re.compile(r"^layer_(\d+)-model_(\d+)-model_states\.pt$")
_RANK_FILE = re.compile(r"^mp_rank_(\d+)_model_states\.pt$")
_STEP = re.compile(r"^global_step\d+$")
# Names in a layer, at Hugging Face, and the dimension that is cut over ranks (None: all ranks have it).
_LAYER: dict[str, tuple[str, int | None]] = {
    "input_layernorm.scale": ("input_layernorm.weight", None),
    "attention.dense.weight": ("self_attn.o_proj.weight", 1),
    "post_attention_layernorm.scale": ("post_attention_layernorm.weight", None),
    "mlp.w1.weight": ("mlp.gate_proj.weight", 0),
    "mlp.w3.weight": ("mlp.up_proj.weight", 0),
    "mlp.w2.weight": ("mlp.down_proj.weight", 1),
}
_QKV = "attention.query_key_value.weight"
_TABLE = "attention.rotary_emb.inv_freq"  # computed here
# A rank's file also has the state of numpy's generator: an array, by the two names that numpy gave its maker.
_reconstruct = np.zeros(1, np.uint32).__reduce__()[0]
_NUMPY_ARRAYS: list[Any] = [
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
]

Modules = dict[int, list[dict[str, LazyTensor]]]


def _step_folder(path: Path) -> Path | None:
    """The folder with the tensors: `path`, or the one in it that `latest` names."""
    if not path.is_dir():
        return None
    if any(_LAYER_FILE.match(file.name) or _RANK_FILE.match(file.name) for file in path.iterdir()):
        return path
    if (path / "latest").is_file():
        name = (path / "latest").read_text(encoding="utf-8", errors="replace").strip()
        if _STEP.match(name) and (path / name).is_dir() and not (path / name / "checkpoint.json").exists():
            return _step_folder(path / name)
    return None


def _step_folders(path: Path) -> list[str]:
    """Names of the checkpoints in a folder, whether `latest` names one or not."""
    if not path.is_dir():
        return []
    entries = (entry for entry in path.iterdir() if _STEP.match(entry.name))
    return sorted(entry.name for entry in entries if _step_folder(entry) == entry)


def is_gpt_neox(path: Path) -> bool:
    """A checkpoint, or a folder that holds some."""
    return _step_folder(path) is not None or bool(_step_folders(path))


def _ranks_complete(folder: Path, ranks: dict[int, Path], what: str) -> list[Path]:
    missing = sorted(set(range(max(ranks) + 1)) - set(ranks))
    if missing:
        raise UserError(f"--input={folder}: {what} of rank {missing[0]:02d} is missing; copy it again")
    return [ranks[rank] for rank in sorted(ranks)]


def _modules(folder: Path) -> Modules:
    """The tensors of each numbered module, of each tensor parallel rank."""
    layers: dict[int, dict[int, Path]] = {}
    ranks: dict[int, Path] = {}
    for file in folder.iterdir():
        if match := _LAYER_FILE.match(file.name):
            layers.setdefault(int(match.group(1)), {})[int(match.group(2))] = file
        elif match := _RANK_FILE.match(file.name):
            ranks[int(match.group(1))] = file
    if layers:
        return {
            number: [
                TorchFile(file).tensors() for file in _ranks_complete(folder, files, f"layer_{number:02d}")
            ]
            for number, files in sorted(layers.items())
        }
    modules: Modules = {}
    for file in _ranks_complete(folder, ranks, "mp_rank"):
        by_module: dict[int, dict[str, LazyTensor]] = {}
        for name, tensor in TorchFile(file, _NUMPY_ARRAYS).tensors(["module"]).items():
            prefix, _, rest = name.partition(".")
            number, _, key = rest.partition(".")
            if prefix != "sequential" or not number.isdigit():
                raise UserError(f"{file}: has {name}, which is not of a sequential GPT-NeoX model")
            by_module.setdefault(int(number), {})[key] = tensor
        for module, tensors in by_module.items():
            modules.setdefault(module, []).append(tensors)
    return dict(sorted(modules.items()))


def _model_of(folder: Path, hints: Hints) -> tuple[ModelConfig, Path | None]:
    """The model keys and the tokenizer's file of the run's YAML files."""
    paths = [hints.config] if hints.config is not None else []
    for place in (folder / "configs", folder.parent / "configs"):
        if not paths and place.is_dir():  # GPT-NeoX copies the run's files there
            paths = sorted([*place.glob("*.yml"), *place.glob("*.yaml")])
    if not paths:
        raise UserError(
            f"--input={folder}: a GPT-NeoX checkpoint without its configuration; give the run's YAML "
            "file with --config"
        )
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(f"--config={missing[0]}: does not exist; give the YAML file of the run")
    cfg, _ = load_config(paths, check_files=False)
    vocab_file = cfg.tokenizer.vocab_file
    return cfg.model, Path(vocab_file) if vocab_file is not None else None


def _replicated(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """What all ranks have. Where they drifted apart, the mean, which is what GPT-NeoX's exporters write."""
    if parts[0].is_meta or all(torch.equal(parts[0], part) for part in parts[1:]):
        return parts[0]
    return torch.stack([part.float() for part in parts]).mean(0).to(parts[0].dtype)


def _whole(parts: list[LazyTensor], cut: int | None) -> LazyTensor:
    if len(parts) == 1:
        return parts[0]
    if cut is None:
        return join(parts, _replicated)
    return join(parts, lambda tensors: torch.cat(list(tensors), dim=cut))


def _split_qkv(weight: torch.Tensor, model: ModelConfig) -> list[torch.Tensor]:
    """q [H * D, C], k and v [G * D, C]."""
    key_rows = model.head_dim * model.num_kv_heads // model.num_attention_heads
    rows_HXC = weight.view(model.num_attention_heads, model.head_dim + 2 * key_rows, weight.size(-1))
    parts = rows_HXC.split([model.head_dim, key_rows, key_rows], dim=1)
    return [part.reshape(-1, weight.size(-1)) for part in parts]


def _renamed(modules: Modules, model: ModelConfig, vocab_size: int) -> dict[str, LazyTensor]:
    """All tensors, whole, by Hugging Face's names; what is unknown keeps its name, to be refused later."""
    after = model.num_layers + 2
    outside: dict[tuple[int, str], tuple[str, int | None]] = {
        (0, "word_embeddings.weight"): ("model.embed_tokens.weight", 0),
        (after + 1, "norm.scale"): ("model.norm.weight", None),
        (after + 2, "final_linear.weight"): ("lm_head.weight", 0),
    }
    tensors: dict[str, LazyTensor] = {}
    splitter = Splitter()
    for number, ranks in modules.items():
        for name in ranks[0]:
            is_layer = 2 <= number < after
            prefix = f"model.layers.{number - 2}."
            known = _LAYER.get(name) if is_layer else outside.get((number, name))
            parts = [rank[name] for rank in ranks]
            if is_layer and name == _QKV:
                qkv = splitter.split(_whole(parts, 0), lambda weight: _split_qkv(weight, model))
                tensors.update({f"{prefix}self_attn.{x}_proj.weight": qkv[i] for i, x in enumerate("qkv")})
            elif known is not None:
                tensors[prefix + known[0] if is_layer else known[0]] = _whole(parts, known[1])
            elif name != _TABLE:
                tensors[f"module {number} {name}"] = parts[0]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):  # rows of padding
        if name in tensors and tensors[name].outline.size(0) > vocab_size:
            tensors[name] = tensors[name].map(lambda weight: weight[:vocab_size])
    return tensors


def open_gpt_neox(path: Path, hints: Hints) -> Source:
    """A run's save folder or one global_stepN folder.

    The configuration is `--config`, or `configs/*.yml` in the folder or beside it; the tokenizer
    `--tokenizer`, a file in one of these folders, or what lies where `vocab_file` of the configuration is.

    Raises:
        UserError: files are missing or damaged, or it is no Llama that is converted.
    """
    folder = _step_folder(path)
    if folder is None:
        names = _step_folders(path)
        raise UserError(f"--input={path}: `latest` names none of its checkpoints; give {path / names[-1]}")
    model, vocab_file = _model_of(folder, hints)
    if model.head_dim * model.num_kv_heads % model.num_attention_heads:
        raise UserError(f"num_kv_heads={model.num_kv_heads}: GPT-NeoX has no such layout; check --config")
    named = [vocab_file.parent] if vocab_file is not None and vocab_file.is_file() else []
    tokenizer_file = find_tokenizer(hints, folder, path, *named)
    vocab_size = build_tokenizer(tokenizer_type(tokenizer_file), tokenizer_file).vocab_size
    try:
        tensors = _renamed(_modules(folder), model, vocab_size)
    except (RuntimeError, IndexError, KeyError) as error:
        raise UserError(f"--config: does not describe the tensors in {folder} ({error})") from None
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.intermediate_size,
        "vocab_size": vocab_size,
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.rms_norm_epsilon,
        "rope_theta": model.rotary_emb_base,
        "tie_word_embeddings": not model.no_weight_tying,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }
    notices = (
        "norm: GPT-NeoX computes x / (rms + eps), Llama x / sqrt(mean(x^2) + eps), which is what model.yml "
        "says; set norm: rmsnorm_neox to go on with GPT-NeoX's",
    )
    return Source("GPT-NeoX", folder, config, tensors, tokenizer_file, notices)
