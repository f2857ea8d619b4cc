# SPDX-License-Identifier: Apache-2.0
"""A checkpoint opened to be read with: weights, tokenizer and record, without optimizer or data.

Legend: B sequences, S tokens, V ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from megatron.backend import Backend
from megatron.checkpointing import folders
from megatron.checkpointing.record import BASE_FILES, CheckpointRecord
from megatron.checkpointing.state import load_weights
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from megatron.model import BuiltModel, build
from megatron.model.layout_invariant import make_layout_invariant
from megatron.model.rotary import PeriodChange
from megatron.neox_arguments.checks import check_world
from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import ConfigError, UserError
from megatron.tokenizer import Tokenizer, build_tokenizer, pad_vocab


@dataclass(frozen=True)
class OpenedModel:
    """A model to read with, on the ranks of its backend."""

    folder: Path
    record: CheckpointRecord
    built: BuiltModel
    backend: Backend
    tokenizer: Tokenizer
    period: PeriodChange

    @torch.no_grad()
    def logits(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        """The logits after each token; [B, S, V], float32, V without padding, on every rank."""
        tokens_BS = tokens_BS.to(self.backend.device)
        positions_BS = torch.arange(tokens_BS.size(1), device=self.backend.device).expand_as(tokens_BS)
        logits_BSV = self.built.module(tokens_BS, positions_BS, None)
        logits_BSV = gather_from_tensor_model_parallel_region(logits_BSV)
        return logits_BSV[..., : self.record.vocab_size].float()


def tokenizer_of(folder: Path, record: CheckpointRecord) -> Tokenizer:
    """The tokenizer that lies beside a checkpoint.

    Raises:
        UserError: there is none, or it is not the one of the checkpoint.
    """
    eod = (record.run.get("tokenizer") or {}).get("eod_token")
    for file_name, kind in (("tokenizer.json", "HFTokenizer"), ("tokenizer.model", "SPMTokenizer")):
        path = folder / BASE_FILES / file_name
        if path.is_file():
            tokenizer = build_tokenizer(kind, path, eod)
            if record.tokenizer_fingerprint in ("", tokenizer.fingerprint):
                return tokenizer
    raise UserError(
        f"{folder / BASE_FILES}: has no tokenizer with fingerprint {record.tokenizer_fingerprint[:12]}; "
        "copy the tokenizer of the run there"
    )


def open_model(
    checkpoint: Path,
    backend: Backend,
    *,
    iteration: int | None = None,
    rotary_base: float | None = None,
    dtype: str | None = None,
    layout_invariant: bool = False,
) -> OpenedModel:
    """Opens a checkpoint to read with. `checkpoint` is a run's `save` folder or one global_stepN folder.

    `rotary_base` reads it with another rotary period than its own, `dtype` ("bfloat16", "float32") in
    another precision. TP follows `backend`; a pipeline is not supported for reading. With `layout_invariant`
    sums over ranks are in the order of one rank, slowly (`model/layout_invariant.py`).

    Raises:
        UserError: there is no checkpoint, it is damaged, or a pipeline was asked for.
    """
    if backend.pipeline_parallel_size != 1:
        raise UserError(
            "pipe_parallel_size: reading works without a pipeline; use model_parallel_size instead"
        )
    folder = folders.find(checkpoint, iteration)
    if folder is None:
        raise UserError(
            f"{checkpoint}: no checkpoint there; give a run's save folder or one global_stepN folder"
        )
    record = CheckpointRecord.read(folder)
    base = record.rotary_base if rotary_base is None else rotary_base
    cfg = _reading_config(record, backend, base, dtype or record.dtype)
    if problems := check_world(cfg, backend.world_size):
        raise ConfigError(problems)
    padded = pad_vocab(record.vocab_size, 1, backend.tensor_parallel_size)
    built = build(cfg, backend, record.vocab_size, padded, initialize=False, is_trained=False)
    load_weights(folder, built.module)
    built.module.eval()
    if layout_invariant:
        make_layout_invariant(built.module)
    period = PeriodChange(record.rotary_base, base)
    return OpenedModel(folder, record, built, backend, tokenizer_of(folder, record), period)


def _reading_config(record: CheckpointRecord, backend: Backend, rotary_base: float, dtype: str) -> RunConfig:
    """A run configuration with this model in it; what only training reads has any value."""
    return RunConfig.model_validate(
        {
            "model": {**record.model, "rotary_emb_base": rotary_base},
            "parallel": {"model_parallel_size": backend.tensor_parallel_size, "sequence_parallel": False},
            "precision": {"precision": {"float32": "fp32"}.get(dtype, dtype)},
            "batch": {"train_micro_batch_size_per_gpu": 1},
            "optimizer": {"lr": 1e-4},
            "schedule": {"train_iters": 1},
        }
    )
