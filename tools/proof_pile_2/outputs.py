# SPDX-License-Identifier: Apache-2.0
"""Output shards: `FOLDER/ROUTE/NAME.jsonl.zst`, and the report that says they are whole.

A shard's files are written under hidden names, brought to the disk and renamed; its report follows and is
what makes it count. So at any moment a shard is there with its report, or will be made again."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import orjson
import zstandard

from megatron.neox_arguments.errors import UserError
from tools.proof_pile_2.reports import Report, write_json
from tools.proof_pile_2.shards import StageShard

REPORTS = "reports"
SUFFIX = ".jsonl.zst"
_LEVEL = 3


class _OutputFile:
    """One compressed file under its hidden name; counts and hashes what goes to the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = open(self.temporary, "wb")  # noqa: SIM115 - closed by finish or abandon
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
        self._digest = hashlib.sha256()
        self.bytes = 0

    def write(self, line: bytes) -> None:
        """Add a line."""
        self._out(self._compressor.compress(line))

    def _out(self, data: bytes) -> None:
        if data:
            self._file.write(data)
            self._digest.update(data)
            self.bytes += len(data)

    def finish(self) -> dict[str, Any]:
        """Bring all of it to the disk and give the file its name."""
        self._out(self._compressor.flush())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.temporary, self.path)
        return {"bytes": self.bytes, "sha256": self._digest.hexdigest()}

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self.temporary.unlink(missing_ok=True)


class ShardWriter:
    """Writes one shard into the routes that its documents take; a file is there only if a document is."""

    def __init__(self, folder: Path, name: str, routes: Sequence[str]) -> None:
        self.folder, self.name, self.routes = folder, name, tuple(routes)
        self._files: dict[str, _OutputFile] = {}

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.abandon()

    def write(self, route: str, line: bytes) -> None:
        """Add a document's line."""
        if route not in self._files:
            assert route in self.routes, f"route {route!r} is not among those of the stage"
            self._files[route] = _OutputFile(output_path(self.folder, route, self.name))
        self._files[route].write(line)

    def finish(self, fingerprint: str, report: Report) -> None:
        """The files take their names, files that an earlier run left are removed, and the report is
        written."""
        report_path(self.folder, self.name).unlink(missing_ok=True)
        outputs = {route: file.finish() for route, file in sorted(self._files.items())}
        self._files = {}
        for route in self.routes:
            if route not in outputs:
                output_path(self.folder, route, self.name).unlink(missing_ok=True)
            else:
                sync(self.folder / route)
        value = {"fingerprint": fingerprint, "outputs": outputs, "report": report.as_json()}
        write_json(report_path(self.folder, self.name), value)


def output_path(folder: Path, route: str, name: str) -> Path:
    """Where a shard's documents of one route are."""
    return folder / route / f"{name}{SUFFIX}"


def report_path(folder: Path, name: str) -> Path:
    """Where a shard's report is: apart from the documents, so that a route's folder holds nothing else."""
    return folder / REPORTS / f"{name}.json"


def sync(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finished_report(folder: Path, name: str, fingerprint: str | None = None) -> Report | None:
    """A finished shard's report; None where the shard is not there, not whole, or has another fingerprint."""
    try:
        value = orjson.loads(report_path(folder, name).read_bytes())
        if fingerprint is not None and value["fingerprint"] != fingerprint:
            return None
        for route, output in value["outputs"].items():
            if output_path(folder, route, name).stat().st_size != output["bytes"]:
                return None
        return Report.from_json(value["report"])
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return None


def finished_names(folder: Path) -> Iterator[str]:
    """Names of all shards that have a report, in no order."""
    if (folder / REPORTS).is_dir():
        for entry in os.scandir(folder / REPORTS):
            if entry.name.endswith(".json") and not entry.name.startswith("."):
                yield entry.name.removesuffix(".json")


def remove_shard(folder: Path, name: str, routes: Sequence[str]) -> None:
    """Remove a shard's report, then its documents."""
    report_path(folder, name).unlink(missing_ok=True)
    for route in routes:
        output_path(folder, route, name).unlink(missing_ok=True)


def remove_partial_files(folder: Path, routes: Sequence[str]) -> None:
    """Remove what a killed run left under hidden names."""
    for place in (folder, folder / REPORTS, *(folder / route for route in routes)):
        if place.is_dir():
            for path in place.glob(".*.partial"):
                path.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A disk that refuses becomes a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--output {folder}: cannot be written ({error.strerror or error}); make room, and start the "
            "same "
            "command again: what is finished is kept"
        ) from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one run at a time writes a folder. Errors: `UserError` where another does, or it cannot be
    made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115 - closed below, and with it unlocked
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written ({error.strerror}); choose another") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--output {folder}: another run is writing it; wait for it, or choose another"
            ) from None
        yield


def stage_shards(folder: Path, route: str, names: Iterable[str]) -> Iterator[StageShard]:
    """What a finished stage wrote into one route, as shards of the same names; a shard without a document
    there is left out."""
    for name in names:
        value = orjson.loads(report_path(folder, name).read_bytes())
        if route in value["outputs"]:
            output = value["outputs"][route]
            yield StageShard(name, output_path(folder, route, name), output["sha256"], output["bytes"])
