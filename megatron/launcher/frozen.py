# SPDX-License-Identifier: Apache-2.0
"""The configuration on its way from the launcher to the ranks: one file, named and checked by its sha256.

Ranks are given the path, never the configuration itself (one argument is limited to 131,071 bytes), and the
hash travels apart from the file, so that a rank that reads another file, or half of one, stops.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.whole_files import write_whole

HASH_VARIABLE = "DEEPY_CONFIG_SHA256"


@dataclass(frozen=True)
class FrozenConfig:
    """Where the configuration lies, and the sha256 of that file in hexadecimal."""

    path: Path
    sha256: str


def frozen_as(cfg: RunConfig, folder: Path) -> FrozenConfig:
    """Where `freeze` would put the configuration in `folder`, and its hash; nothing is written."""
    sha256 = hashlib.sha256(cfg.frozen_bytes()).hexdigest()
    return FrozenConfig(folder.resolve() / f"{sha256[:16]}.json", sha256)


def folder_of(save: Path) -> Path:
    """The folder of the frozen configurations of a run."""
    return save / "run_configs"


def freeze(cfg: RunConfig) -> FrozenConfig:
    """Writes the configuration as `run_configs/<first 16 of the hash>.json` in `save`.

    A `.sha256` lies beside it. The same configuration gives the same file. A run without `save` gets a
    temporary folder.

    Raises:
        UserError: the folder cannot be written.
    """
    save = cfg.checkpoint.save
    folder = folder_of(save) if save is not None else Path(tempfile.mkdtemp(prefix="deepy-"))
    frozen = frozen_as(cfg, folder)
    cfg.freeze(frozen.path)
    try:
        # As `sha256sum -c` reads it.
        write_whole(frozen.path.with_suffix(".sha256"), f"{frozen.sha256}  {frozen.path.name}\n")
    except OSError as error:
        raise UserError(f"save={save}: {error.strerror} ({frozen.path}); choose another folder") from error
    return frozen


def read_frozen(path: Path, environment: Mapping[str, str]) -> RunConfig:
    """Reads the file in a rank or a batch script; `environment` holds the hash where a launcher started it.

    The hash must also be the one in the file's name, and in the `.sha256` beside it.

    Raises:
        UserError: the file is missing, or is not what the launcher wrote.
    """
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; `save` must lie on a disk that all machines share"
        ) from error
    for expected, where in _expected(path, environment):
        if not found.startswith(expected):
            raise UserError(
                f"{path}: its sha256 is {found}, and {where} says {expected}: it was changed after it was "
                "frozen; start the run again from its YAML files"
            )
    return RunConfig.thaw(path)


def _expected(path: Path, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What the sha256 of `path` must begin with, and where that is said."""
    if HASH_VARIABLE in environment:
        yield environment[HASH_VARIABLE], "the launcher"
    if re.fullmatch(r"[0-9a-f]{16}", path.stem):
        yield path.stem, "its name"
    beside = path.with_suffix(".sha256")
    try:
        words = beside.read_text(encoding="utf-8", errors="replace").split()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{beside}: {error.strerror}; start the run again from its YAML files") from error
    yield (words[0] if words else "nothing"), str(beside)
