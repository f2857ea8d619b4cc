# SPDX-License-Identifier: Apache-2.0
"""GGUF files, read by transformers: quantised values become float32, which is what they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron.checkpointing.lazy import LazyTensor
from megatron.checkpointing.sources import Hints, Source, find_tokenizer
from megatron.neox_arguments.errors import UserError

_NOT_OF_THE_MODEL = ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version")


def _files_in(path: Path) -> list[Path]:
    return [path] if path.suffix == ".gguf" else sorted(path.glob("*.gguf"))


def is_gguf(path: Path) -> bool:
    """A .gguf file, or a folder with such files and no others of a model."""
    return bool(_files_in(path)) and not any(path.glob("*.safetensors*"))


def open_gguf(path: Path, hints: Hints) -> Source:
    """A GGUF file or the folder that holds it. All weights are in memory, in float32.

    The tokenizer is not taken from the file: transformers leaves out pre-tokenizers that it does not know,
    and gives other ids than the model was trained with. It is `--tokenizer`, or lies beside the file.

    Raises:
        UserError: the file is damaged, or one of several.
    """
    files = _files_in(path)
    if len(files) > 1:
        raise UserError(f"--input={path}: holds {len(files)} GGUF files; give one file that is a whole model")
    tokenizer = find_tokenizer(hints, files[0].parent)
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(files[0].parent), gguf_file=files[0].name, dtype=torch.float32
        )
    except Exception as error:  # transformers, gguf and numpy each raise their own for a damaged file
        why = str(error).strip().split("\n")[0]
        raise UserError(
            f"{files[0]}: is not a whole GGUF file that transformers reads ({why}); download it again"
        ) from None
    config: dict[str, Any] = model.config.to_dict()
    for key in _NOT_OF_THE_MODEL:
        config.pop(key, None)
    # A GGUF holds it in float32, where 1e-5 reads 9.999999747e-06.
    config["rms_norm_eps"] = float(str(np.float32(config["rms_norm_eps"])))
    config["dtype"] = "float32"
    tensors = {name: LazyTensor.of(tensor.detach()) for name, tensor in model.state_dict().items()}
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    return Source("GGUF", path, config, tensors, tokenizer, ("dtype: a GGUF's values are kept in float32",))
