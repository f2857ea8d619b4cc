# SPDX-License-Identifier: Apache-2.0
"""A whole run as one frozen object: a model per concern, and its way to a file and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from .acceleration import AccelerationConfig
from .data import DataConfig, TokenizerConfig, source_names
from .errors import UserError
from .fields import Concern
from .launch import LaunchConfig, SlurmConfig
from .model import ModelConfig, RotaryScaling, llama_intermediate_size
from .output import CheckpointConfig, LoggingConfig
from .parallel import ParallelConfig, PrecisionConfig
from .recovery import RecoveryConfig
from .training import BatchConfig, BatchShape, OptimizerConfig, ScheduleConfig, ValidationConfig
from .whole_files import write_whole

__all__ = [
    "AccelerationConfig",
    "BatchConfig",
    "BatchShape",
    "CheckpointConfig",
    "DataConfig",
    "LaunchConfig",
    "LoggingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PrecisionConfig",
    "RecoveryConfig",
    "RotaryScaling",
    "RunConfig",
    "ScheduleConfig",
    "SlurmConfig",
    "TokenizerConfig",
    "ValidationConfig",
    "concerns",
    "fields",
    "llama_intermediate_size",
    "source_names",
]


class RunConfig(BaseModel):
    """What a run is. In YAML the keys of all concerns stand side by side, each in exactly one of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: ModelConfig
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    precision: PrecisionConfig = Field(default_factory=PrecisionConfig)
    acceleration: AccelerationConfig = Field(default_factory=AccelerationConfig)
    batch: BatchConfig = Field(default_factory=BatchConfig)
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    data: DataConfig = Field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    validation: ValidationConfig = Field(default_factory=ValidationConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    recovery: RecoveryConfig = Field(default_factory=RecoveryConfig)
    launch: LaunchConfig = Field(default_factory=LaunchConfig)
    slurm: SlurmConfig = Field(default_factory=SlurmConfig)

    @model_validator(mode="after")
    def _derive_across_concerns(self) -> RunConfig:
        schedule, logging = self.schedule, self.logging
        if schedule.decay_lr_to is not None and "min_lr" not in schedule.model_fields_set:
            lowest = schedule.decay_lr_to * self.optimizer.lr
            object.__setattr__(self, "schedule", schedule.model_copy(update={"min_lr": lowest}))
        log_dir = logging.log_dir or (self.checkpoint.save and self.checkpoint.save / "logs")
        tensorboard_dir = logging.tensorboard_dir or (log_dir and log_dir / "tensorboard")
        folders = {"log_dir": log_dir, "tensorboard_dir": tensorboard_dir}
        if folders != {"log_dir": logging.log_dir, "tensorboard_dir": logging.tensorboard_dir}:
            object.__setattr__(self, "logging", logging.model_copy(update=folders))
        return self

    def flat(self) -> dict[str, Any]:
        """Every key that has a value, as plain data, as a YAML file would hold it."""
        dumped = self.model_dump(mode="json", exclude_none=True)
        return {name: value for concern in dumped.values() for name, value in concern.items()}

    def to_yaml(self) -> str:
        """The run as one YAML file, which loads to an equal RunConfig."""
        lines: list[str] = []
        for concern, values in self.model_dump(mode="json", exclude_none=True).items():
            lines += [
                f"# {concern}",
                *(f"{name}: {_on_one_line(value)}" for name, value in values.items()),
                "",
            ]
        return "\n".join(lines)

    def frozen_bytes(self) -> bytes:
        """What `freeze` writes."""
        return (self.model_dump_json(indent=2) + "\n").encode()

    def freeze(self, path: Path) -> None:
        """Write the run to `path` as JSON, in one step: a reader sees the old file or the new one."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, self.frozen_bytes())
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error

    @staticmethod
    def thaw(path: Path) -> RunConfig:
        """Read what `freeze` wrote."""
        try:
            return RunConfig.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); start the run again") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the file"
            raise UserError(
                f"{path}: is not a run frozen by this version ({place}: {first['msg']}); start the run again"
            ) from error


def _on_one_line(value: object) -> str:
    """`value` as JSON, which is YAML too; what YAML wants escaped in a string is escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)


def concerns() -> dict[str, type[Concern]]:
    """The concerns of a run by name, in order."""
    return {name: _class_of(info) for name, info in RunConfig.model_fields.items()}


def _class_of(info: FieldInfo) -> type[Concern]:
    annotation = info.annotation
    assert isinstance(annotation, type)
    assert issubclass(annotation, Concern)
    return annotation


def fields() -> Iterator[tuple[str, str, FieldInfo]]:
    """Every configuration key: its concern, its canonical name, its declaration."""
    for concern, model in concerns().items():
        for name, info in model.model_fields.items():
            yield concern, name, info
