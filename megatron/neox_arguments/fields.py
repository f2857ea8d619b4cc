# SPDX-License-Identifier: Apache-2.0
"""How a configuration field is declared: a type, a default, one sentence with its unit, other spellings.

The loader, the reference page and the JSON schema are all driven by what is declared here. Values are checked
strictly (`"4"` is not a number, `true` is not 1), because YAML already knows numbers from text.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    WrapValidator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

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


def without_controls(value: Any, allowed: str = "") -> Any:
    """Text or a path that can be a file's name, a variable, a word of a command: NUL ends all of them, and a
    line feed begins another line of whatever it is written into.
    """
    for char in str(value):
        if unicodedata.category(char) == "Cc" and char not in allowed:
            code = {"char": f"U+{ord(char):04X}", "remedy": "remove it"}
            raise PydanticCustomError("control_character", "holds the control character {char}", code)
    return value


def _lines(value: str) -> str:
    return str(without_controls(value, allowed="\n\t"))


def _whole_as_text(value: Any) -> Any:
    """YAML reads the 240 of `slurm_time: 240` as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


@dataclass(frozen=True)
class Form:
    """Marks a text that all of `pattern` must match; `constraint` and `example` tell who wrote another.

    With `or_whole` a whole number may stand for its digits.
    """

    pattern: str
    constraint: str
    example: str
    or_whole: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = core_schema.no_info_after_validator_function(self._matching, handler(source))
        if not self.or_whole:
            return schema
        return core_schema.no_info_before_validator_function(_whole_as_text, schema)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: object) -> dict[str, Any]:
        text: dict[str, Any] = {"type": "string", "pattern": f"^({self.pattern})$"}
        return {"anyOf": [text, {"type": "integer", "minimum": 0}]} if self.or_whole else text

    def _matching(self, value: str) -> str:
        if not re.fullmatch(self.pattern, value):
            told = {"constraint": self.constraint, "remedy": f"write for instance {self.example}"}
            raise PydanticCustomError("form", "{constraint}", told)
        return value


def _place(value: object, _as_either: object) -> Path | str:
    """A URL as text, anything else as a path: a path would lose one of the URL's slashes."""
    if isinstance(value, str) and is_url(value):
        return str(without_controls(value))
    if isinstance(value, str | Path):
        return Path(without_controls(value))
    raise PydanticCustomError("path_type", "must be a path or a URL")


def _url(value: object) -> object:
    if isinstance(value, str) and not is_url(value):
        raise PydanticCustomError("url_type", "must be a URL, such as s3://bucket/folder")
    return without_controls(value).rstrip("/") if isinstance(value, str) else value


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
Ranks = Annotated[tuple[NonNegative, ...], Field(strict=False)]
Text = Annotated[str, AfterValidator(without_controls)]
Lines = Annotated[str, AfterValidator(_lines)]
FilePath = Annotated[Path, Field(strict=False), AfterValidator(without_controls)]
Place = Annotated[Path | str, WrapValidator(_place)]
Url = Annotated[str, BeforeValidator(_url)]
Paths = Annotated[tuple[FilePath, ...], Field(strict=False)]
Names = Annotated[tuple[Text, ...], Field(strict=False)]
Weights = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False)]
