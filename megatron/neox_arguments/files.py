# SPDX-License-Identifier: Apache-2.0
"""What must be there before a run starts: token files, tokenizer, checkpoint, writable folders."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from .config import RunConfig
from .errors import Problem
from .urls import missing_package


def check_files(cfg: RunConfig, wrong: Collection[str] = ()) -> list[Problem]:
    """Everything that `cfg` needs and that is not there; keys in `wrong` are left out."""
    found = [*_token_files(cfg), *_tokenizer(cfg), *_checkpoint(cfg), *_folders(cfg)]
    return [problem for problem in found if problem.key not in wrong]


def _token_files(cfg: RunConfig) -> Iterator[Problem]:
    data = cfg.data
    if data.data_path is None and not data.train_data_paths:
        remedy = "name token files that tools/preprocess_data.py wrote, or set data_path"
        yield Problem("train_data_paths", None, "is not set", remedy)
    listed = [
        (key, path) for key in ("train", "valid", "test") for path in getattr(data, f"{key}_data_paths")
    ]
    prefixes = [(f"{key}_data_paths", path) for key, path in listed]
    if data.data_path is not None:
        prefixes.append(("data_path", data.data_path))
    for key, prefix in prefixes:
        missing = [suffix for suffix in (".bin", ".idx") if not os.path.isfile(f"{prefix}{suffix}")]
        if missing:
            constraint = f"there is no {' and no '.join(missing)} file of this name"
            remedy = _other_prefix(prefix) or "make it with tools/preprocess_data.py"
            yield Problem(key, prefix, constraint, remedy)


def _other_prefix(prefix: Path) -> str | None:
    """What was probably meant: a name given with its ending, or without `_text_document`."""
    for other in (str(prefix).removesuffix(prefix.suffix), f"{prefix}_text_document"):
        if os.path.isfile(f"{other}.bin") and os.path.isfile(f"{other}.idx"):
            return f"use {other}"
    return None


def _tokenizer(cfg: RunConfig) -> Iterator[Problem]:
    vocab_file = cfg.tokenizer.vocab_file
    if vocab_file is None:
        remedy = "name the base model's tokenizer.model or tokenizer.json"
        yield Problem("vocab_file", None, "is not set", remedy)
    elif not os.path.exists(vocab_file):
        yield Problem(
            "vocab_file", vocab_file, "there is no such file", "take it from the base model's download"
        )


def _checkpoint(cfg: RunConfig) -> Iterator[Problem]:
    load = cfg.checkpoint.load
    for key, url in (("load", load), ("s3_path", cfg.checkpoint.s3_path)):
        missing = missing_package(url) if isinstance(url, str) else None
        if missing is not None:
            yield Problem(key, url, *missing)
    if load is None or load == cfg.checkpoint.save or isinstance(load, str):
        return
    if not os.path.isdir(load):
        remedy = "import the base model with tools/convert_checkpoint.py hf-to-neox, or correct the path"
        yield Problem("load", load, "there is no such folder", remedy)
    elif not os.path.isfile(load / "latest") and cfg.checkpoint.iteration is None:
        remedy = "name the folder that holds `latest`"
        if os.path.isfile(load / "config.json"):
            remedy = "it is a Hugging Face model: import it with tools/convert_checkpoint.py hf-to-neox"
        yield Problem("load", load, "holds no checkpoint: there is no file `latest` in it", remedy)


def _folders(cfg: RunConfig) -> Iterator[Problem]:
    folders = {
        "save": cfg.checkpoint.save,
        "log_dir": cfg.logging.log_dir,
        "tensorboard_dir": cfg.logging.tensorboard_dir,
        "data_cache_path": cfg.data.data_cache_path,
    }
    reported: list[Path] = []
    for key, folder in folders.items():
        if folder is None or any(parent in reported for parent in (folder, *folder.parents)):
            continue
        there = next(
            (path for path in (folder, *folder.absolute().parents) if os.path.exists(path)), Path("/")
        )
        if not os.path.isdir(there):
            reported.append(folder)
            yield Problem(key, folder, f"{there} is a file, not a folder", "choose another folder")
        elif not os.access(there, os.W_OK | os.X_OK):
            reported.append(folder)
            yield Problem(key, folder, f"{there} cannot be written to", "choose another folder")
    if cfg.launch.hostfile is not None and not os.path.isfile(cfg.launch.hostfile):
        yield Problem(
            "hostfile", cfg.launch.hostfile, "there is no such file", "correct the path, or remove it"
        )
