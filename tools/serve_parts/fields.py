# SPDX-License-Identifier: Apache-2.0
"""The fields of a JSON object that a stranger sent: each read with its type and range, none left unread."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from megatron.neox_arguments.errors import shown
from tools.serve_parts.refusal import Refused


def parse_json(content: bytes) -> dict[str, Any]:
    """The JSON object of a request's body.

    Raises:
        Refused: it is no JSON, or no object. NaN and Infinity, which Python's reader takes, are no JSON.
    """
    try:
        value = json.loads(content, parse_constant=_refuse_constant)
    except RecursionError:
        raise Refused(400, "the body is nested too deeply") from None
    except ValueError as error:  # not UTF-8, or an integer of thousands of digits, among others
        raise Refused(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(400, "the body is not a JSON object")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def checked_text(value: object, name: str) -> str:
    """`value` as text that can be encoded.

    Raises:
        Refused: it is no text, or has half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise Refused(400, f"{name}={shown(value)}: must be a string", field=name)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Refused(
            400, f"{name}: has half of a surrogate pair, which is no character", field=name
        ) from None
    return value


class Fields:
    """A JSON object, read field by field; null stands for a field that is not there.

    Every method raises `Refused` for a value of another type or out of its range.
    """

    def __init__(self, content: Mapping[str, Any], inside: str = "") -> None:
        """`inside` is the name of the field whose value this object is, with a dot: "options."."""
        self._left = dict(content)
        self._inside = inside
        self._known: list[str] = []

    def take(self, name: str) -> Any:
        """The value as it stands; None where there is none."""
        self._known.append(name)
        return self._left.pop(name, None)

    def refuse(self, name: str, value: object, constraint: str) -> Refused:
        full = self._inside + name
        if isinstance(value, str):  # in quotes, since "0" is no number
            value = json.dumps(value, ensure_ascii=not value.isprintable())
        return Refused(400, f"{full}={shown(value)}: {constraint}", field=full)

    def text(self, name: str, default: str) -> str:
        value = self.take(name)
        return default if value is None else checked_text(value, self._inside + name)

    def flag(self, name: str, default: bool) -> bool:
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(name, value, "must be true or false")
        return value

    def integer(self, name: str, default: int | None, low: int, high: int) -> int | None:
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(name, value, f"must be an integer from {low} to {high}")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.refuse(name, value, f"must be a number from {low:g} to {high:g}")
        return float(value)

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """A string or a list of strings, none of them empty; () where there is none."""
        value = self.take(name)
        if value is None:
            return ()
        values = value if isinstance(value, list) else [value]
        if len(values) > most:
            full = self._inside + name
            raise Refused(400, f"{full}: has {len(values)} strings; must be at most {most}", field=full)
        # Several clients send an empty string or a null for "nothing".
        found = tuple(checked_text(one, self._inside + name) for one in values if one not in ("", None))
        return tuple(dict.fromkeys(found))

    def object(self, name: str) -> Fields:
        """An object in the object; an empty one where there is none."""
        value = self.take(name)
        if value is not None and not isinstance(value, dict):
            raise self.refuse(name, value, "must be an object")
        return Fields(value or {}, f"{self._inside}{name}.")

    def not_supported(self, **neutral: Any) -> None:
        """Refuses fields with another value than the one at which they ask for nothing."""
        for name, value in neutral.items():
            asked = self.take(name)
            is_same = type(asked) is type(value) or {type(asked), type(value)} == {int, float}
            if asked is not None and not (is_same and asked == value):
                raise self.refuse(name, asked, "is not supported here; leave it out")

    def without_effect(self, *names: str) -> None:
        """Takes fields that change nothing of the text, whatever they say."""
        for name in names:
            self.take(name)

    def nothing_else(self) -> None:
        """Refuses what no other method has read: it would be ignored."""
        for name in self._left:
            near = difflib.get_close_matches(name, self._known, 1)
            hint = f"; did you mean {near[0]}?" if near else "; leave it out"
            full = self._inside + name
            raise Refused(400, f"{shown(full)}: is not known here{hint}", field=full[:100])
