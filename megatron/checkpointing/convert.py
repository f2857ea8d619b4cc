# SPDX-License-Identifier: Apache-2.0
"""Hugging Face → here, and here → Hugging Face: both walk the one table of mapping.py."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from megatron.checkpointing import folders, huggingface, manifest, mapping, tensors
from megatron.checkpointing.record import BASE_FILES, CheckpointRecord
from megatron.neox_arguments.config import ModelConfig
from megatron.neox_arguments.errors import UserError
from megatron.tokenizer import Tokenizer, build_tokenizer, pad_vocab


def _fresh_sibling(target: Path) -> Path:
    """An empty folder beside `target`, to be renamed to it when everything is written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sibling = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
        shutil.rmtree(sibling, ignore_errors=True)
        sibling.mkdir()
    except OSError as error:
        raise UserError(
            f"--output={target}: cannot be written ({error.strerror}); choose another folder"
        ) from None
    return sibling


def refuse_existing(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--output={target}: is there already; choose a new folder, or remove it first")


def _tokenizer_of(folder: Path) -> tuple[Tokenizer, dict[str, str]]:
    """The folder's tokenizer and the two keys that name it in a run configuration."""
    for file_name, kind in (("tokenizer.json", "HFTokenizer"), ("tokenizer.model", "SPMTokenizer")):
        if (folder / file_name).is_file():
            keys = {"tokenizer_type": kind, "vocab_file": file_name}
            return build_tokenizer(kind, folder / file_name), keys
    raise UserError(
        f"--input={folder}: neither tokenizer.json nor tokenizer.model there; copy the tokenizer in"
    )


def _model_config(keys: dict[str, Any]) -> ModelConfig:
    return ModelConfig(seq_length=keys["max_position_embeddings"], **keys)


def _refuse_other_tensors(found: set[str], expected: set[str], folder: Path) -> None:
    missing, unknown = sorted(expected - found), sorted(found - expected)
    # Old exports carry a table that is computed here, and tied models may repeat the embedding.
    unknown = [
        name for name in unknown if not name.endswith("rotary_emb.inv_freq") and name != "lm_head.weight"
    ]
    if missing or unknown:
        raise UserError(
            f"--input={folder}: tensors missing: {', '.join(missing[:5]) or 'none'}; "
            f"unknown: {', '.join(unknown[:5]) or 'none'}; its config.json does not describe its weights"
        )


def hf_to_neox(source: Path, output: Path, tensor_parallel_size: int) -> CheckpointRecord:
    """Writes OUTPUT/global_step0, OUTPUT/latest and OUTPUT/model.yml from a Hugging Face model.

    The checkpoint loads in any layout; `tensor_parallel_size` is checked against the model's shape and
    written into model.yml. Weights keep their dtype.

    Raises:
        UserError: the model is not one that is converted, or a folder cannot be read or written.
    """
    keys = huggingface.model_keys(huggingface.read_json(source / "config.json"))
    model = _model_config(keys)
    tokenizer, tokenizer_keys = _tokenizer_of(source)
    vocab_size = int(keys["vocab_size"])
    padded = pad_vocab(vocab_size, 1, tensor_parallel_size)
    geometry = mapping.Geometry.of(model, vocab_size, padded)
    refuse_existing(output)
    theirs = huggingface.HuggingFaceTensors(source)
    rows = list(mapping.table(geometry))
    _refuse_other_tensors(theirs.names, {name for row in rows for name in row.theirs}, source)
    ours = {row.ours: row.join([theirs[name] for name in row.theirs], geometry) for row in rows}
    dtype = str(next(iter(ours.values())).dtype).removeprefix("torch.")
    record = CheckpointRecord(
        iteration=0,
        sequences_seen=0,
        tokens_seen=0,
        model=model.model_dump(mode="json"),
        vocab_size=vocab_size,
        padded_vocab_size=padded,
        tokenizer_fingerprint=tokenizer.fingerprint,
        dtype=dtype,
        layout={
            "model_parallel_size": tensor_parallel_size,
            "pipe_parallel_size": 1,
            "data_parallel_size": 1,
        },
        has_optimizer=False,
    )
    unfinished = _fresh_sibling(output)
    try:
        step = unfinished / folders.step_name(0)
        step.mkdir()
        tensors.write_model(step, ours)
        huggingface.copy_travelling(source, step / BASE_FILES)
        record.write(step)
        manifest.seal(step)
        folders.mark_latest(unfinished, 0)
        _write_model_yaml(unfinished / "model.yml", output, keys, tokenizer_keys, tensor_parallel_size)
        if output.exists():
            output.rmdir()  # it is empty: refuse_existing has looked
        os.replace(unfinished, output)
    except OSError as error:
        raise UserError(
            f"--output={output}: writing failed ({error.strerror}); nothing was left there"
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return record


def _write_model_yaml(
    path: Path, output: Path, keys: dict[str, Any], tokenizer_keys: dict[str, str], tensor_parallel_size: int
) -> None:
    base = output.resolve() / folders.step_name(0) / BASE_FILES
    content = dict(keys)
    content.update(
        make_vocab_size_divisible_by=1,
        model_parallel_size=tensor_parallel_size,
        tokenizer_type=tokenizer_keys["tokenizer_type"],
        vocab_file=str(base / tokenizer_keys["vocab_file"]),
        load=str(output.resolve()),
        finetune=True,
    )
    header = (
        "# The model keys of this checkpoint. Put it before your own files, and change there what you will:\n"
        f"#   python deepy.py train.py {output / 'model.yml'} your_run.yml\n"
    )
    path.write_text(header + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def neox_to_hf(source: Path, output: Path, iteration: int | None = None) -> Path:
    """Writes a Hugging Face folder from a checkpoint: safetensors, configuration, tokenizer.

    Returns the checkpoint folder that was read.

    Raises:
        UserError: there is no checkpoint, or `output` cannot be written.
    """
    folder = folders.find(source, iteration)
    if folder is None:
        raise UserError(
            f"--input={source}: no checkpoint there; give a run's save folder or one global_stepN folder"
        )
    record = CheckpointRecord.read(folder)
    refuse_existing(output)
    unfinished = _fresh_sibling(output)
    try:
        huggingface.write_weights(unfinished, exported_tensors(folder, record))
        base = folder / BASE_FILES
        huggingface.copy_travelling(base, unfinished)
        base_config = huggingface.read_json(base / "config.json") if (base / "config.json").is_file() else {}
        config = huggingface.config_of(record, base_config)
        folders.write_atomically(unfinished / "config.json", _json(config))
        if output.exists():
            output.rmdir()
        os.replace(unfinished, output)
    except OSError as error:
        raise UserError(
            f"--output={output}: writing failed ({error.strerror}); nothing was left there"
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _json(content: dict[str, Any]) -> str:
    import json

    return json.dumps(content, indent=2) + "\n"


def exported_tensors(folder: Path, record: CheckpointRecord) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields (Hugging Face name, tensor) of a checkpoint, in the order of the table."""
    model = ModelConfig(**record.model)
    geometry = mapping.Geometry.of(model, record.vocab_size, record.padded_vocab_size)
    for row in mapping.table(geometry):
        whole = tensors.read_model(folder, [row.ours])[row.ours]
        yield from zip(row.theirs, row.split(whole, geometry), strict=True)


def digest_of(folder: Path) -> str:
    """A digest of a Hugging Face folder's tensors: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    theirs = huggingface.HuggingFaceTensors(folder)
    for name in sorted(theirs.names):
        tensor = theirs[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
