# SPDX-License-Identifier: Apache-2.0
"""What a study is: the user's run, the mixtures to try, the measure; laid down once in `OUTPUT/mixture.json`,
so that every start of the same command works on the same points."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.loader import load_config
from megatron.neox_arguments.whole_files import write_whole
from tools.mixture_parts import design
from tools.mixture_parts.design import Array, Space

RECORD, POINTS = "mixture.json", "points"
# What each point has of its own.
OWN_KEYS = ("train_data_weights", "seed", "save", "s3_path", "log_dir", "tensorboard_dir")


@dataclass(frozen=True)
class Measure:
    """What a run is judged by: documents, or a command that leaves a number in a JSON file."""

    documents: str | None
    template: str
    documents_sha256: str
    max_documents: int | None
    max_tokens: int
    command: str | None
    metric: str | None
    maximise: bool

    @property
    def name(self) -> str:
        return "bits per byte" if self.command is None else str(self.metric)


@dataclass(frozen=True)
class Point:
    """One run: the shares of all sources, and the seed."""

    number: int
    weights: tuple[float, ...]
    seed: int

    @property
    def folder_name(self) -> str:
        return f"{self.number:03}"


@dataclass(frozen=True)
class Study:
    """A study and where it lies."""

    output: Path
    configs: tuple[Path, ...]
    directory: Path | None
    overrides: tuple[str, ...]
    space: Space
    points: tuple[Point, ...]
    measure: Measure
    base: RunConfig

    def folder(self, point: Point) -> Path:
        return self.output / POINTS / point.folder_name

    def overlay(self, point: Point) -> Path:
        """The YAML file that turns the user's run into this point's."""
        return self.folder(point) / "point.yml"

    def arguments(self, point: Point) -> list[str]:
        """What deepy.py is given for a point: the user's files, the point's own as the last."""
        directory = [] if self.directory is None else ["--conf_dir", str(self.directory)]
        sets = [part for text in self.overrides for part in ("--set", text)]
        files = [str(path) for path in self.configs]
        return [*directory, *files, str(self.overlay(point).resolve()), *sets]

    def config(self, point: Point, check_files: bool = True) -> RunConfig:
        """The run of a point.

        Raises:
            ConfigError: all that is wrong with it.
        """
        return load_config(
            [*(_located(self.directory, path) for path in self.configs), self.overlay(point)],
            overrides=self.overrides,
            check_files=check_files,
        )[0]

    def keys(self, point: Point) -> dict[str, Any]:
        """What differs from the user's run. Checkpoints and logs go to the point's folder, nowhere else."""
        return {
            "train_data_weights": [round(weight, 6) for weight in point.weights],
            "seed": point.seed,
            "save": str((self.folder(point) / "save").resolve()),
            "s3_path": None,
            "log_dir": None,
            "tensorboard_dir": None,
            "keep_last_n_checkpoints": 1,
        }

    def write_overlay(self, point: Point) -> None:
        """Writes the point's YAML file.

        Raises:
            UserError: the folder cannot be written.
        """
        lines = "# What differs from the other points; written by tools/mixture.py.\n"
        write_text(self.overlay(point), lines + yaml.safe_dump(self.keys(point), sort_keys=False))

    def fingerprint(self, point: Point) -> str:
        """Of everything that decides a point's value."""
        run = self.base.model_dump(mode="json")
        for concern in run.values():
            for key in OWN_KEYS:
                concern.pop(key, None)
        measure = {**asdict(self.measure), "documents": None}
        text = json.dumps([run, list(point.weights), point.seed, measure], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _located(directory: Path | None, path: Path) -> Path:
    if directory is None:
        return path
    return directory / (path if path.suffix in (".yml", ".yaml") else path.with_name(f"{path.name}.yml"))


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
        UserError: the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --output") from None


def space_of(base: RunConfig, fixed: Sequence[str], bounds: Sequence[str]) -> Space:
    """The allowed mixtures of a run's sources.

    Raises:
        UserError: an option is malformed or names no source.
    """
    names = tuple(base.data.data_names)
    if not base.data.train_data_paths:
        raise UserError("train_data_paths: is empty; a mixture is of the token files listed there")
    shares: dict[str, float] = {}
    for text in fixed:
        name, share = _named(text, "--fix", names)
        shares[name] = _share(share, f"--fix={text}")
    low, high = dict.fromkeys(names, 0.0), dict.fromkeys(names, 1.0)
    for text in bounds:
        name, both = _named(text, "--bounds", names)
        if name in shares:
            raise UserError(f"--bounds={text}: {name} has a fixed share; leave one of the two out")
        first, colon, last = both.partition(":")
        if not colon:
            raise UserError(f"--bounds={text}: give NAME=LOW:HIGH, such as web=0.2:0.7")
        low[name] = _share(first, f"--bounds={text}")
        high[name] = _share(last, f"--bounds={text}")
    return Space(names, tuple(shares.get(name) for name in names), tuple(low.values()), tuple(high.values()))


def _named(text: str, option: str, names: Sequence[str]) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or name not in names:
        raise UserError(f"{option}={text}: give NAME=…, with one of {', '.join(names)}")
    return name, value


def _share(text: str, option: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"{option}: {text!r} is no share; give a number from 0 to 1")
    return share


def points_of(points_PF: Array, space: Space, repeats: int, seed: int) -> tuple[Point, ...]:
    """The runs: each mixture `repeats` times, with seeds of their own, all mixtures before the next time."""
    made: list[Point] = []
    for repeat in range(repeats):
        for point in design.distinct(points_PF):
            weights = tuple(float(weight) for weight in np.round(space.weights(point), 6))
            made.append(Point(len(made), weights, seed + repeat))
    return tuple(made)


def laid_down(study: Study) -> None:
    """Writes the study's record, or finds that it is there already.

    Raises:
        UserError: the folder holds another study, or something else.
    """
    record = {
        "sources": list(study.space.names),
        "points": [asdict(point) for point in study.points],
        "fingerprints": [study.fingerprint(point) for point in study.points],
        "measure": asdict(study.measure),
    }
    content = json.loads(json.dumps(record))
    path = study.output / RECORD
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(f"{path}: cannot be read; give another --output") from None
        if {**before, "measure": None} != {**content, "measure": None}:
            raise UserError(
                f"--output={study.output}: holds a study of other runs, mixtures or measure; give another "
                "folder, or the same command as before"
            )
    elif study.output.exists() and any(study.output.iterdir()):
        raise UserError(f"--output={study.output}: is not empty and holds no study; give a new folder")
    else:
        write_text(path, json.dumps(content, indent=1) + "\n")
    for point in study.points:
        study.write_overlay(point)


def check_overrides(overrides: Sequence[str]) -> None:
    """--set wins over files, so it may not name what the study sets itself.

    Raises:
        UserError: it does.
    """
    for text in overrides:
        if text.partition("=")[0].strip().replace("-", "_") in OWN_KEYS:
            raise UserError(f"--set={text}: is chosen for each point by this command; leave it out")
