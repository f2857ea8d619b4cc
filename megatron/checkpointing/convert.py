# SPDX-License-Identifier: Apache-2.0
"""Models of others → here, and here → Hugging Face: both walk the one table of mapping.py."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from megatron.checkpointing import export_files, folders, huggingface, manifest, mapping, tensors
from megatron.checkpointing.lazy import LazyTensor, Splitter, join
from megatron.checkpointing.record import BASE_FILES, CheckpointRecord
from megatron.checkpointing.safetensors_file import bytes_of
from megatron.checkpointing.sources import Hints, Source, open_source, tokenizer_type
from megatron.neox_arguments.config import ModelConfig
from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.whole_files import write_whole
from megatron.tokenizer import Tokenizer, build_tokenizer, pad_vocab

# What transformers needs to know of a tokenizer.model that comes alone, as from Meta.
_SENTENCEPIECE_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "add_eos_token": False,
    "legacy": True,
}


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


def _model_config(keys: dict[str, Any]) -> ModelConfig:
    return ModelConfig(seq_length=keys["max_position_embeddings"], **keys)


def _refuse_other_tensors(source: Source, expected: set[str]) -> None:
    found = set(source.tensors)
    missing, unknown = sorted(expected - found), sorted(found - expected)
    # Old exports carry a table that is computed here, and tied models may repeat the embedding.
    unknown = [
        name for name in unknown if not name.endswith("rotary_emb.inv_freq") and name != "lm_head.weight"
    ]
    found_wrong = [
        f"tensors {what}: {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        for what, names in (("missing", missing), ("unknown", unknown))
        if names
    ]
    if found_wrong:
        raise UserError(
            f"--input={source.folder}: {'; '.join(found_wrong)}; take weights and configuration from one "
            "model"
        )


_WEIGHTS = (torch.float32, torch.bfloat16, torch.float16)


def _refuse_other_dtypes(source: Source) -> None:
    for name, tensor in source.tensors.items():
        if tensor.outline.dtype not in _WEIGHTS:
            dtype = str(tensor.outline.dtype).removeprefix("torch.")
            raise UserError(
                f"--input={source.folder}: {name} is {dtype}, and weights are float32, bfloat16 or float16; "
                "take the model before it was quantised"
            )


def _refuse_untied_output(source: Source) -> None:
    """A tied model's output layer is its embedding; what is stored beside it must be a copy."""
    output = source.tensors.get("lm_head.weight")
    if output is None or not source.config.get("tie_word_embeddings"):
        return
    embedding = source.tensors["model.embed_tokens.weight"]
    if output.outline.shape != embedding.outline.shape or not torch.equal(output.read(), embedding.read()):
        raise UserError(
            f"--input={source.folder}: tie_word_embeddings is true, but lm_head.weight is not the embedding; "
            "set it to false in config.json to keep both, or remove lm_head.weight"
        )


def _refuse_other_shapes(source: Source, keys: dict[str, Any]) -> None:
    """What the table cannot see: it takes whatever width the tensors have."""
    hidden, ffn = keys["hidden_size"], keys["intermediate_size"]
    queries, key_rows = (keys[heads] * keys["head_dim"] for heads in ("num_attention_heads", "num_kv_heads"))
    expected = {
        "embed_tokens.weight": (keys["vocab_size"], hidden),
        "lm_head.weight": (keys["vocab_size"], hidden),
        "q_proj.weight": (queries, hidden),
        "k_proj.weight": (key_rows, hidden),
        "v_proj.weight": (key_rows, hidden),
        "o_proj.weight": (hidden, queries),
        "gate_proj.weight": (ffn, hidden),
        "up_proj.weight": (ffn, hidden),
        "down_proj.weight": (hidden, ffn),
    }
    for name, tensor in source.tensors.items():
        shape = expected.get(".".join(name.split(".")[-2:]), tuple(tensor.outline.shape))
        if tuple(tensor.outline.shape) != shape:
            raise UserError(
                f"--input={source.folder}: {name} is {list(tensor.outline.shape)}, by its configuration "
                f"{list(shape)}; take both from one model"
            )


def _joined(source: Source, keys: dict[str, Any], geometry: mapping.Geometry) -> dict[str, LazyTensor]:
    """The tensors as they are here, by their names here, in the order of the table.

    Raises:
        UserError: the source has other tensors than its configuration says, or of other shapes.
    """
    if keys["num_layers"] > len(source.tensors):  # before a table of them all is made
        raise UserError(
            f"--input={source.folder}: num_hidden_layers={keys['num_layers']:,}, but it holds "
            f"{len(source.tensors)} tensors; take weights and configuration from one model"
        )
    rows = list(mapping.table(geometry))
    _refuse_other_tensors(source, {name for row in rows for name in row.theirs})
    _refuse_other_shapes(source, keys)
    _refuse_other_dtypes(source)
    _refuse_untied_output(source)
    return {
        row.ours: join(
            [_finite(source, name) for name in row.theirs], functools.partial(_join_row, row, geometry)
        )
        for row in rows
    }


def _finite(source: Source, name: str) -> LazyTensor:
    """The tensor, refused when it is read and holds what no training gets over."""

    def look(tensor: torch.Tensor) -> torch.Tensor:
        # A finite sum is quicker to see; a sum may also overflow.
        if tensor.is_meta or tensor.sum(dtype=torch.float32).isfinite() or tensor.isfinite().all():
            return tensor
        raise UserError(
            f"--input={source.folder}: {name} holds NaN or infinity; take a checkpoint from before that"
        )

    return source.tensors[name].map(look)


def _dtypes(tensors_: Sequence[LazyTensor]) -> list[str]:
    """Their dtypes by name, the most frequent first."""
    counts = collections.Counter(str(tensor.outline.dtype).removeprefix("torch.") for tensor in tensors_)
    return [name for name, _ in counts.most_common()]


def _join_row(row: mapping.Row, geometry: mapping.Geometry, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return row.join(parts, geometry)


def _tokenizer_of(source: Source, vocab_size: int) -> Tokenizer:
    tokenizer = build_tokenizer(tokenizer_type(source.tokenizer), source.tokenizer)
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{source.tokenizer}: has {tokenizer.vocab_size:,} ids, the model {vocab_size:,}; give the "
            "model's own tokenizer, or resize the model's embeddings"
        )
    return tokenizer


def hf_to_neox(
    source_path: Path, output: Path, tensor_parallel_size: int, hints: Hints | None = None
) -> tuple[CheckpointRecord, Source]:
    """Writes OUTPUT/global_step0, OUTPUT/latest and OUTPUT/model.yml from a model of any known format.

    The checkpoint loads in any layout; `tensor_parallel_size` is checked against the model's shape and
    written into model.yml. Weights keep their dtype.

    Raises:
        UserError: the model is not one that is converted, or a folder cannot be read or written.
    """
    refuse_existing(output)
    source = open_source(source_path, hints)
    keys = huggingface.model_keys(source.config)
    model = _model_config(keys)
    vocab_size = int(keys["vocab_size"])
    tokenizer = _tokenizer_of(source, vocab_size)
    padded = pad_vocab(vocab_size, 1, tensor_parallel_size)
    ours = _joined(source, keys, mapping.Geometry.of(model, vocab_size, padded))
    dtypes = _dtypes(list(ours.values()))
    if len(dtypes) > 1:
        notice = f"dtype: its tensors are {' and '.join(dtypes)}; each keeps its own"
        source = dataclasses.replace(source, notices=(*source.notices, notice))
    record = CheckpointRecord(
        iteration=0,
        sequences_seen=0,
        tokens_seen=0,
        model=model.model_dump(mode="json"),
        vocab_size=vocab_size,
        padded_vocab_size=padded,
        tokenizer_fingerprint=tokenizer.fingerprint,
        dtype=dtypes[0],
        layout={
            "model_parallel_size": tensor_parallel_size,
            "pipe_parallel_size": 1,
            "data_parallel_size": 1,
        },
        has_optimizer=False,
    )

    def write(unfinished: Path) -> None:
        step = unfinished / folders.step_name(0)
        step.mkdir()
        tensors.write_model(step, ours)
        vocab_file = _write_base(step / BASE_FILES, source, tokenizer)
        record.write(step)
        manifest.seal(step)
        folders.mark_latest(unfinished, 0)
        tokenizer_keys = {"tokenizer_type": tokenizer.name, "vocab_file": vocab_file}
        _write_model_yaml(unfinished / "model.yml", output, keys, tokenizer_keys, tensor_parallel_size)

    _write_whole(output, write)
    return record, source


def _write_whole(output: Path, write: Callable[[Path], None]) -> None:
    """Has a folder written under a hidden name, and gives it its own when it is whole."""
    unfinished = _fresh_sibling(output)
    try:
        write(unfinished)
        if output.exists():
            output.rmdir()  # it is empty: refuse_existing has looked
        os.replace(unfinished, output)
    except OSError as error:
        raise UserError(
            f"--output={output}: writing failed ({error.strerror}); nothing was left there"
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_base(base: Path, source: Source, tokenizer: Tokenizer) -> str:
    """The files that travel with the checkpoint; returns the name of the tokenizer's."""
    if source.companions is not None:
        huggingface.copy_travelling(source.companions, base)
    base.mkdir(exist_ok=True)
    name = "tokenizer.json" if source.tokenizer.suffix == ".json" else "tokenizer.model"
    for file in tokenizer.files:
        shutil.copyfile(file, base / (name if file == source.tokenizer else file.name))
    if not (base / "config.json").is_file():
        config = {"eos_token_id": tokenizer.eod_id, **source.config}
        write_whole(base / "config.json", _json(config))
    if name == "tokenizer.model" and not (base / "tokenizer_config.json").is_file():
        write_whole(base / "tokenizer_config.json", _json(_SENTENCEPIECE_CONFIG))
    return name


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
    """Writes a Hugging Face folder from a checkpoint: safetensors, configuration, tokenizer, model card.

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

    def write(unfinished: Path) -> None:
        huggingface.write_weights(unfinished, exported_tensors(folder, record))
        write_all_but_weights(folder, record, unfinished, output.resolve().name)

    _write_whole(output, write)
    return folder


def write_all_but_weights(folder: Path, record: CheckpointRecord, output: Path, name: str) -> None:
    """The configuration, tokenizer and model card of an export called `name`, into a folder that is there."""
    base = folder / BASE_FILES
    huggingface.copy_travelling(base, output)
    base_config = huggingface.read_json(base / "config.json") if (base / "config.json").is_file() else {}
    config = huggingface.config_of(record, base_config)
    write_whole(output / "config.json", _json(config))
    export_files.write_companions(output, name, record, config)


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def exported_tensors(folder: Path, record: CheckpointRecord) -> dict[str, LazyTensor]:
    """A checkpoint's tensors by Hugging Face's names, in the order of the table."""
    model = ModelConfig(**record.model)
    geometry = mapping.Geometry.of(model, record.vocab_size, record.padded_vocab_size)
    stored, splitter = tensors.open_model(folder), Splitter()
    exported: dict[str, LazyTensor] = {}
    for row in mapping.table(geometry):
        parts = splitter.split(stored[row.ours], functools.partial(_split_row, row, geometry))
        exported.update(zip(row.theirs, parts, strict=True))
    return exported


def _split_row(row: mapping.Row, geometry: mapping.Geometry, whole: torch.Tensor) -> list[torch.Tensor]:
    return row.split(whole, geometry)


def digest_of(folder: Path) -> str:
    """A digest of a Hugging Face folder's tensors: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(huggingface.open_tensors(folder).items()):
        digest.update(f"{name} {tensor.outline.dtype} {tuple(tensor.outline.shape)}".encode())
        digest.update(bytes_of(tensor.read()))
    return digest.hexdigest()
