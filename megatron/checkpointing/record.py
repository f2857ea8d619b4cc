# SPDX-License-Identifier: Apache-2.0
"""`checkpoint.json`: what a checkpoint is, in words a person and a program can read.

The tensors lie beside it in megatron-core's format; `base/` holds the files of the Hugging Face model
it came from (its configuration and tokenizer), which travel with it so that it can be exported.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from megatron.neox_arguments.config import ModelConfig
from megatron.neox_arguments.errors import UserError, shown
from megatron.neox_arguments.whole_files import write_whole

RECORD = "checkpoint.json"
BASE_FILES = "base"
FORMAT_VERSION = 1

# What two checkpoints of one model must share. The rotary base and scaling may change: that is period
# contraction, and it is logged. The form of the norm and lengths change the function, not a tensor's shape.
_SHAPE_KEYS = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "no_weight_tying",
    "use_qkv_bias",
    "qk_norm",
    "norm_position",
)


@dataclass(frozen=True)
class CheckpointRecord:
    """The content of checkpoint.json."""

    iteration: int
    sequences_seen: int
    tokens_seen: int
    model: dict[str, Any]
    vocab_size: int
    padded_vocab_size: int
    tokenizer_fingerprint: str
    dtype: str
    layout: dict[str, int]
    has_optimizer: bool
    rotary_history: list[dict[str, Any]] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] | None = None  # the order of sequences_seen, as SequenceOrder describes it
    recovery: dict[str, Any] = field(default_factory=dict)  # the trainer's ledger of what went wrong
    has_manifest: bool = False  # set when manifest.json is written, after all else
    format_version: int = FORMAT_VERSION

    @property
    def rotary_base(self) -> float:
        """The rotary base these weights were trained with."""
        return float(self.model["rotary_emb_base"])

    def write(self, folder: Path) -> None:
        write_whole(folder / RECORD, json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")

    @staticmethod
    def read(folder: Path) -> CheckpointRecord:
        """Reads a checkpoint's record.

        Raises:
            UserError: the file is missing, damaged or of a later format.
        """
        path = folder / RECORD
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            names = {f.name for f in fields(CheckpointRecord)}
            record = CheckpointRecord(**{key: value for key, value in content.items() if key in names})
            ModelConfig.model_validate(record.model)
        except FileNotFoundError:
            raise UserError(
                f"load={folder}: no {RECORD} there, so this is not a checkpoint of ours; "
                "convert a Hugging Face model with tools/convert_checkpoint.py hf-to-neox"
            ) from None
        except (ValueError, AttributeError, TypeError) as error:
            why = " ".join(repr(error).split())  # on one line
            raise UserError(f"load={folder}: {RECORD} is damaged ({why}); load an older checkpoint") from None
        if record.format_version > FORMAT_VERSION:
            raise UserError(
                f"load={folder}: format {record.format_version} is newer than {FORMAT_VERSION}, which this "
                "program reads; update it"
            )
        return record

    def refuse_other_shape(self, folder: Path, model: ModelConfig, vocab_size: int) -> None:
        """Compares the run's model with this one.

        Raises:
            UserError: they differ in shape; every differing key is listed.
        """
        own = ModelConfig.model_validate(self.model)
        problems = [
            f"{key}={shown(getattr(model, key))}: the checkpoint {folder} has {shown(getattr(own, key))}; "
            f"set {key}: {shown(getattr(own, key))}"
            for key in _SHAPE_KEYS
            if getattr(model, key) != getattr(own, key)
        ]
        if vocab_size != self.vocab_size:
            problems.append(
                f"vocab_size={vocab_size}: the checkpoint {folder} has {self.vocab_size}; "
                "use the tokenizer it was made with"
            )
        if problems:
            raise UserError("\n".join(problems))
