# SPDX-License-Identifier: Apache-2.0
"""How a configuration field is declared: a type, a default, one sentence with its unit, other spellings.

The loader, the reference page and the JSON schema are all driven by what is declared here. Values are checked
strictly (`"4"` is not a number, `true` is not 1), because YAML already knows numbers from text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WrapValidator
from pydantic_core import PydanticCustomError

from .urls import is_url

REQUIRED: Any = ...


class Concern(BaseModel):
    """One concern of a run: frozen, strict, and closed to names it does not know."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )


def _whole(value: object) -> object:
    """Read 5e8 as the whole number it is; YAML has no other way to abbreviate one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _place(value: object, _as_either: object) -> Path | str:
    """A URL as text, anything else as a path: a path would lose one of the URL's slashes."""
    if isinstance(value, str) and is_url(value):
        return value
    if isinstance(value, str | Path):
        return Path(value)
    raise PydanticCustomError("path_type", "must be a path or a URL")


def _url(value: object) -> object:
    if isinstance(value, str) and not is_url(value):
        raise PydanticCustomError("url_type", "must be a URL, such as s3://bucket/folder")
    return value.rstrip("/") if isinstance(value, str) else value


def key(
    default: Any,
    sentence: str,
    *,
    aliases: tuple[str, ...] = (),
    derived: str | None = None,
    also: tuple[str, ...] = (),
    **constraints: Any,
) -> Any:
    """Declare a field.

    Args:
        default: the default, `REQUIRED`, or a function of the fields validated before this one.
        sentence: what it is, with its unit, for the reference page.
        aliases: other spellings that are read; `-` and `_` are equal in every spelling.
        derived: the default in words, where it is a function.
        also: other spellings of its values.
        constraints: bounds as pydantic has them (`gt`, `ge`, `lt`, `le`).
    """
    extra: dict[str, Any] = {"aliases": list(aliases), "also": list(also)}
    if derived is not None:
        extra["derived"] = derived
    if callable(default):
        constraints["default_factory"] = default
    else:
        constraints["default"] = default
    return Field(description=sentence, json_schema_extra=extra, **constraints)


Whole = Annotated[int, BeforeValidator(_whole)]
# Whole numbers up to here are whole in JSON and in float64 too.
_LARGEST = 2**53
Positive = Annotated[int, Field(gt=0, le=_LARGEST), BeforeValidator(_whole)]
NonNegative = Annotated[int, Field(ge=0, le=_LARGEST), BeforeValidator(_whole)]
Iterations = Annotated[tuple[Positive, ...], Field(strict=False)]
FilePath = Annotated[Path, Field(strict=False)]
Place = Annotated[Path | str, WrapValidator(_place)]
Url = Annotated[str, BeforeValidator(_url)]
Paths = Annotated[tuple[FilePath, ...], Field(strict=False)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Weights = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False)]
