# SPDX-License-Identifier: Apache-2.0
"""YAML as configurations need it: every value with its line, repeated keys found, numbers read as numbers.

PyYAML follows YAML 1.1, where `1e-4` is text, `010` is eight and `10:30` is 630. Here numbers are decimal (or
hexadecimal with 0x), with or without a point and exponent, and nothing else is a number. GPT-NeoX's files,
one `{…}` with comments and a trailing comma, are ordinary YAML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import Problem


@dataclass(frozen=True)
class Entry:
    """One key as it stands in a file or on the command line, with `-` read as `_`.

    `value` is a number, text, bool, None or list; a mapping is a dict of Entry by key.
    """

    key: str
    value: Any
    where: str


class _Loader(yaml.SafeLoader):
    """PyYAML's scanner and parser, with our own reading of plain scalars."""


_NUMBERS = {
    "tag:yaml.org,2002:int": (r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
_DROPPED = {*_NUMBERS, "tag:yaml.org,2002:timestamp"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _DROPPED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, (_pattern, _first) in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))

_TRUE = {"yes", "true", "on"}
# A run has a few hundred.
_MOST_VALUES = 100_000


class _Refused(Exception):
    def __init__(self, problem: Problem) -> None:
        self.problem = problem


class _Reader:
    """Turns the nodes of one text into entries, and notes what is wrong on the way."""

    def __init__(self, name: str, count_lines: bool) -> None:
        self.name = name
        self.count_lines = count_lines
        self.problems: list[Problem] = []
        self._open: set[int] = set()
        self._read = 0

    def where(self, mark: yaml.Mark | None) -> str:
        return f"{self.name}:{mark.line + 1}" if mark is not None and self.count_lines else self.name

    def refuse(self, key: str, value: object, constraint: str, remedy: str, node: yaml.Node) -> _Refused:
        return _Refused(Problem(key, value, constraint, remedy, self.where(node.start_mark)))

    def value(self, key: str, node: yaml.Node) -> Any:
        if id(node) in self._open:
            raise self.refuse(key, None, "contains itself", "write the value out", node)
        self._read += 1
        if self._read > _MOST_VALUES:  # aliases of aliases grow without bound
            constraint = f"is one of more than {_MOST_VALUES:,} values"
            raise self.refuse(
                key, None, constraint, "write a run's configuration here, without aliases", node
            )
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(key, node)
            if isinstance(node, yaml.SequenceNode):
                return [plain(self.value(key, item)) for item in node.value]
            return self.scalar(key, node)
        finally:
            self._open.discard(id(node))

    def mapping(self, parent: str, node: yaml.MappingNode) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        for key_node, value_node in node.value:
            place = self.where(key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else _as_written(key_node)
                remedy = "write each key out" if shown == "<<" else "write `name: value`"
                self.problems.append(Problem(str(shown), None, "is not the name of a key", remedy, place))
                continue
            name = key_node.value.replace("-", "_")
            dotted = f"{parent}.{name}" if parent else name
            try:
                entry = Entry(name, self.value(dotted, value_node), place)
            except _Refused as refused:
                self.problems.append(refused.problem)
                continue
            if name in entries:
                first = entries[name]
                constraint = f"is set a second time in this file (first {self._short(first)})"
                self.problems.append(
                    Problem(dotted, plain(entry.value), constraint, "keep one of the two", place)
                )
                continue
            entries[name] = entry
        return entries

    def _short(self, entry: Entry) -> str:
        return f"at {entry.where}" if self.count_lines else "above"

    def scalar(self, key: str, node: yaml.Node) -> Any:
        text, kind = str(node.value), node.tag.rpartition(":")[2]
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return text.lower() in _TRUE
            if kind == "int":
                return int(text.replace("_", ""), 16 if "x" in text else 10)
            if kind == "float":
                return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            raise self.refuse(key, text, "is not a number", "write a decimal number", node) from None
        if kind != "str":
            raise self.refuse(key, text, f"has the tag {node.tag}", "write the value without a tag", node)
        return text


def _as_written(node: yaml.Node) -> str:
    text = str(yaml.serialize(node, Dumper=yaml.SafeDumper, width=80)).strip().replace("\n", " ")
    return text if len(text) <= 40 else text[:39] + "…"


def plain(value: Any) -> Any:
    """A value without the places it was found at."""
    if isinstance(value, dict):
        return {key: plain(entry.value) for key, entry in value.items()}
    return value


def read_text(text: str, name: str, *, count_lines: bool = True) -> tuple[list[Entry], list[Problem]]:
    """The top-level entries of a YAML mapping, and all that is wrong with its form; never raises."""
    reader = _Reader(name, count_lines)
    try:
        node = yaml.compose(text, _Loader)
        if node is None:
            return [], []
        if not isinstance(node, yaml.MappingNode):
            constraint = "holds no `key: value` pairs"
            return [], [Problem(name, None, constraint, 'write `key: value` lines, or `{ "key": value, … }`')]
        return list(reader.mapping("", node).values()), reader.problems
    except yaml.YAMLError as error:
        return [], [_syntax_problem(error, name, reader)]
    except (RecursionError, _Refused):
        return [], [Problem(name, None, "is nested too deeply", "write plain `key: value` lines")]


def _syntax_problem(error: yaml.YAMLError, name: str, reader: _Reader) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    said = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    remedy = "look at this line and the one above for a missing comma, quote, colon or bracket"
    if "'\\t'" in str(said):
        remedy = "use spaces in place of tabs"
    return Problem(name, None, f"is not YAML: {said}", remedy, reader.where(mark))


def read_file(path: Path) -> tuple[list[Entry], list[Problem]]:
    """`read_text` of a file; a file that cannot be read is a problem too."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        constraint = f"is not UTF-8 text (byte {error.start})"
        return [], [Problem(str(path), None, constraint, "save the file as UTF-8")]
    except (OSError, ValueError) as error:
        said = (getattr(error, "strerror", None) or str(error)).lower()
        return [], [Problem(str(path), None, f"cannot be read: {said}", _nearby(path))]
    return read_text(text, str(path))


def _nearby(path: Path) -> str:
    import difflib

    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix in {".yml", ".yaml"})
    except (OSError, ValueError):
        return "check the path"
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / close[0]}?" if close else "check the path"


def read_override(text: str) -> tuple[list[Entry], list[Problem]]:
    """`key=value` from the command line, the value read as YAML, the key dotted where it is in a block."""
    name, sign, value = text.partition("=")
    keys = [part.replace("-", "_") for part in name.strip().split(".")]
    if not sign or not all(keys):
        return [], [Problem(f"--set {text}", None, "is not key=value", "write for instance --set lr=1e-4")]
    entries, problems = read_text(f"value: {value}", "--set", count_lines=False)
    if problems or len(entries) != 1:
        constraint = "the value is not YAML"
        if keys[-1] in ("include", "exclude") and value.rstrip().endswith(":"):
            constraint, machine = "has no slots after the colon", value.strip().rstrip(":")
            remedy = f"write for instance {machine}:0,2, or {machine} for all its slots"
            return [], [Problem(name, value, constraint, remedy, "--set")]
        return [], [Problem(name, value, constraint, "quote the value as YAML wants it", "--set")]
    found: Any = entries[0].value
    for key in reversed(keys[1:]):
        found = {key: Entry(key, found, "--set")}
    return [Entry(keys[0], found, "--set")], []


def walk(entries: list[Entry], blocks: frozenset[str], parent: str = "") -> Iterator[Entry]:
    """The entries with those in `blocks` replaced by their leaves, whose keys are dotted."""
    for entry in entries:
        dotted = f"{parent}.{entry.key}" if parent else entry.key
        if dotted in blocks and isinstance(entry.value, dict):
            yield from walk(list(entry.value.values()), blocks, dotted)
        else:
            yield Entry(dotted, plain(entry.value), entry.where)
