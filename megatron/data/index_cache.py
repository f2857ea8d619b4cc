# SPDX-License-Identifier: Apache-2.0
"""Indices of the data order on disk: built once, then memory-mapped by every rank."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.distributed

Arrays = dict[str, npt.NDArray[Any]]


def _nobody_to_wait_for() -> None:
    return


@dataclass(frozen=True)
class Peers:
    """The ranks that build the same indices, and how they wait for each other."""

    rank: int = 0
    local_rank: int = 0
    wait: Callable[[], object] = _nobody_to_wait_for

    @classmethod
    def of_this_run(cls) -> Peers:
        """All ranks of the process group, or this process alone."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return cls()
        rank = torch.distributed.get_rank()
        return cls(rank, int(os.environ.get("LOCAL_RANK", rank)), torch.distributed.barrier)


@dataclass
class IndexCache:
    """Named arrays under a key that says all they depend on.

    Rank 0 builds what is missing; where ranks see another disk, the first of each node builds there; a rank
    that still finds nothing (an unwritable folder, no folder at all) builds in its own memory, with a notice.
    Every rank must ask for the same keys in the same order."""

    folder: Path | None
    peers: Peers
    notices: list[str] = field(default_factory=list)

    def get(self, name: str, key: Mapping[str, object], build: Callable[[], Arrays]) -> Arrays:
        """The arrays of `key`, read-only where they come from the disk; `name` begins the names of their
        files.
        """
        if self.folder is None:
            return build()
        described = json.dumps(key, sort_keys=True)
        stem = f"{name}-{hashlib.sha256(described.encode()).hexdigest()[:32]}"
        built: Arrays | None = None
        for builds in (self.peers.rank == 0, self.peers.local_rank == 0 and self.peers.rank != 0):
            try:
                if builds and self._load(stem) is None:
                    built = build()
                    self._save(stem, described, built)
            finally:
                self.peers.wait()  # after an error too: the others wait for this rank
        arrays = self._load(stem)
        if arrays is None:
            arrays = built if built is not None else build()
        return arrays

    def _load(self, stem: str) -> Arrays | None:
        assert self.folder is not None
        try:
            members = json.loads((self.folder / f"{stem}.json").read_text(encoding="utf-8"))["arrays"]
            return {
                m: np.load(self.folder / f"{stem}-{m}.npy", mmap_mode="r", allow_pickle=False)
                for m in members
            }
        except (
            OSError,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
        ):  # missing, or damaged from outside: built again
            return None

    def _save(self, stem: str, described: str, arrays: Arrays) -> None:
        assert self.folder is not None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for member, array in arrays.items():
                with self._replacing(f"{stem}-{member}.npy") as path, open(path, "wb") as file:
                    np.save(file, array, allow_pickle=False)
            content = {"key": json.loads(described), "arrays": list(arrays)}
            with self._replacing(f"{stem}.json") as path:  # last: it says that the others are there
                path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        except OSError as error:
            self.notices.append(
                f"data_cache_path={self.folder}: cannot be written ({error.strerror or error}); "
                "each rank builds the indices in its own memory"
            )

    @contextlib.contextmanager
    def _replacing(self, name: str) -> Any:
        """A path to write to, which takes the place of `name` at the end."""
        assert self.folder is not None
        descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=self.folder)
        os.close(descriptor)
        try:
            yield Path(temporary)
            os.chmod(temporary, 0o644)
            os.replace(temporary, self.folder / name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
