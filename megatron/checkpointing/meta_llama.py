# SPDX-License-Identifier: Apache-2.0
"""Llamas as Meta gives them away: `consolidated.NN.pth`, one for each of Meta's ranks, and `params.json`.

Each file holds its rank's part of every tensor, with the dimension that is cut joined in the order of the
ranks. Meta turns neighbouring pairs of a head's dimensions by the rotary angle, Hugging Face and we turn
dimension i with i + D/2, so the rows of queries and keys are put in another order.

Legend: H heads, D head dimension, C hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from megatron.checkpointing.huggingface import read_json
from megatron.checkpointing.lazy import LazyTensor, join
from megatron.checkpointing.sources import Hints, Source, find_tokenizer
from megatron.checkpointing.torch_file import TorchFile
from megatron.neox_arguments.errors import UserError

_SHARD = re.compile(r"^consolidated\.(\d\d)\.pth$")
# Meta's model.py: the rotary base where params.json has none (Llama 1 and 2).
_DEFAULT_ROTARY_BASE = 10000.0
# Names there, names at Hugging Face, and the dimension that is cut over Meta's ranks (None: not cut). Meta's
# ColumnParallelLinear cuts rows of the weight, RowParallelLinear columns.
_LAYER: dict[str, tuple[str, int | None]] = {
    "attention_norm.weight": ("input_layernorm.weight", None),
    "attention.wq.weight": ("self_attn.q_proj.weight", 0),
    "attention.wk.weight": ("self_attn.k_proj.weight", 0),
    "attention.wv.weight": ("self_attn.v_proj.weight", 0),
    "attention.wo.weight": ("self_attn.o_proj.weight", 1),
    "ffn_norm.weight": ("post_attention_layernorm.weight", None),
    "feed_forward.w1.weight": ("mlp.gate_proj.weight", 0),
    "feed_forward.w3.weight": ("mlp.up_proj.weight", 0),
    "feed_forward.w2.weight": ("mlp.down_proj.weight", 1),
}
_EMBEDDING, _OUTPUT = "tok_embeddings.weight", "output.weight"


def is_meta(path: Path) -> bool:
    return (path / "params.json").is_file() and any(path.glob("consolidated.*.pth"))


def _shards_of(folder: Path) -> list[dict[str, LazyTensor]]:
    """The tensors of each of Meta's ranks."""
    numbers = sorted(int(match.group(1)) for file in folder.iterdir() if (match := _SHARD.match(file.name)))
    if numbers != list(range(len(numbers))):
        missing = sorted(set(range(numbers[-1] + 1)) - set(numbers))
        raise UserError(f"--input={folder}: consolidated.{missing[0]:02d}.pth is missing; download it again")
    shards = [TorchFile(folder / f"consolidated.{number:02d}.pth").tensors() for number in numbers]
    for number, shard in enumerate(shards):
        differing = set(shard) ^ set(shards[0])
        if differing:
            raise UserError(
                f"{folder / f'consolidated.{number:02d}.pth'}: has other tensors than consolidated.00.pth "
                f"({sorted(differing)[0]}); all files must be of one model"
            )
    return shards


def _to_halves(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """From pairs of neighbours to pairs D/2 apart, in each head; [H * D, C]."""
    pairs_HD2C = weight.view(-1, head_dim // 2, 2, weight.size(-1))
    return pairs_HD2C.transpose(1, 2).reshape(weight.shape)


def _max_positions(params: dict[str, Any]) -> int:
    """Meta's files do not say it: it is told from what else sets the generations apart."""
    base = params.get("rope_theta", _DEFAULT_ROTARY_BASE)
    if base == 1e6:  # Code Llama, Rozière et al. 2023
        return 16384
    if base == 5e5:  # Llama 3
        return 8192
    return 2048 if params["norm_eps"] == 1e-6 else 4096  # Llama 1: 1e-6; Llama 2: 1e-5


def _config(folder: Path, params: dict[str, Any], shards: list[dict[str, LazyTensor]]) -> dict[str, Any]:
    if params.get("use_scaled_rope"):
        raise UserError(
            f"{folder / 'params.json'}: use_scaled_rope: the factor of Llama 3.1's rotary scaling is not in "
            "Meta's files; take the model's Hugging Face folder"
        )
    if params.get("moe_args") or params.get("moe"):
        raise UserError(f"{folder / 'params.json'}: is a mixture of experts, which is not converted")
    first = shards[0]
    gate = first.get("layers.0.feed_forward.w1.weight")
    output = first.get(_OUTPUT, first.get(_EMBEDDING))
    if gate is None or output is None or "layers.0.attention.wo.weight" not in first:
        raise UserError(f"{folder / 'consolidated.00.pth'}: has not the tensors of a Llama")
    wo = first["layers.0.attention.wo.weight"].outline
    if wo.size(1) * len(shards) != params["dim"]:
        raise UserError(
            f"--input={folder}: {len(shards)} consolidated files are there, but each holds 1 part in "
            f"{params['dim'] / wo.size(1):g}; download the model again"
        )
    is_cut = _OUTPUT in first or _embedding_cut(first, params["dim"], len(shards)) == 0
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": params["dim"],
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params.get("n_kv_heads") or params["n_heads"],
        # params.json has a rule for it, from which the tensors of some models differ.
        "intermediate_size": gate.outline.size(0) * len(shards),
        # params.json says -1 and means the tokenizer's.
        "vocab_size": output.outline.size(0) * (len(shards) if is_cut else 1),
        "max_position_embeddings": _max_positions(params),
        "rms_norm_eps": params["norm_eps"],
        "rope_theta": float(params.get("rope_theta", _DEFAULT_ROTARY_BASE)),
        "tie_word_embeddings": _OUTPUT not in first,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }


def _embedding_cut(shard: dict[str, LazyTensor], hidden_size: int, ranks: int) -> int:
    """Llama 1 and 2 cut the embedding by columns, Llama 3 by the rows of its vocabulary."""
    columns = shard[_EMBEDDING].outline.size(1)
    return 0 if columns == hidden_size and ranks > 1 else 1


def _whole(shards: list[dict[str, LazyTensor]], name: str, cut: int | None) -> LazyTensor:
    if cut is None or len(shards) == 1:
        return shards[0][name]

    def concatenated(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(parts), dim=cut)

    return join([shard[name] for shard in shards], concatenated)


def _renamed(
    shards: list[dict[str, LazyTensor]], params: dict[str, Any], config: dict[str, Any]
) -> dict[str, LazyTensor]:
    """All tensors, whole, by Hugging Face's names; what is unknown keeps its name, to be refused later."""
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    outside = {
        _EMBEDDING: ("model.embed_tokens.weight", _embedding_cut(shards[0], params["dim"], len(shards))),
        "norm.weight": ("model.norm.weight", None),
        _OUTPUT: ("lm_head.weight", 0),
    }
    tensors = {}
    for name in shards[0]:
        if name.endswith("rope.freqs"):  # a table that is computed here
            continue
        match = re.match(r"^layers\.(\d+)\.(.+)$", name)
        known = _LAYER.get(match.group(2)) if match else outside.get(name)
        if known is None:
            tensors[name] = shards[0][name]
            continue
        whole = _whole(shards, name, known[1])
        if name.endswith(("wq.weight", "wk.weight")):
            whole = whole.map(lambda weight: _to_halves(weight, head_dim))
        tensors[f"model.layers.{match.group(1)}.{known[0]}" if match else known[0]] = whole
    return tensors


def open_meta(path: Path, hints: Hints) -> Source:
    """A folder as downloaded from Meta. The tokenizer lies in it, or beside it (Llama 1 and 2).

    Raises:
        UserError: files are missing or damaged, or it is no Llama that is converted.
    """
    params = read_json(path / "params.json")
    missing = [key for key in ("dim", "n_layers", "n_heads", "norm_eps") if key not in params]
    if missing:
        raise UserError(f"{path / 'params.json'}: has no {', '.join(missing)}; download it again")
    shards = _shards_of(path)
    config = _config(path, params, shards)
    try:
        tensors = _renamed(shards, params, config)
    except (RuntimeError, IndexError) as error:
        raise UserError(
            f"{path / 'params.json'}: does not describe the tensors beside it ({error}); download it again"
        ) from None
    notices = (
        f"max_position_embeddings={config['max_position_embeddings']:,}: not in Meta's files; it follows "
        f"from the rotary base {config['rope_theta']:,.0f} and norm_eps {config['rms_norm_eps']}",
    )
    return Source("Meta", path, config, tensors, find_tokenizer(hints, path, path.parent), notices)
