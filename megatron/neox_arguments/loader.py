# SPDX-License-Identifier: Apache-2.0
"""From YAML files to a RunConfig: read, translate, merge left to right, validate, report all that is wrong.

Each step notes problems and goes on, so that one call tells the user everything at once.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from .checks import run_checks
from .config import LaunchConfig, RunConfig, SlurmConfig, concerns, fields
from .errors import ConfigError, Problem, shown
from .fields import Concern
from .files import check_files as find_missing_files
from .spellings import ELSEWHERE, NO_EFFECT, TRANSLATIONS, Refusal, blocks, canonical, spellings
from .yaml_reader import Entry, read_file, read_override, walk


@dataclass(frozen=True)
class Setting:
    """One value for one target: a field, a fact beside the fields, or a key without effect."""

    target: str
    value: Any
    spelled: str
    said: Any
    where: str
    source: int


def load_config(
    paths: Sequence[Path],
    overrides: Sequence[str] = (),
    directory: Path | None = None,
    check_files: bool = True,
) -> tuple[RunConfig, list[str]]:
    """Read a run from YAML files and `key=value` overrides; a later one wins.

    Args:
        paths: the files, in order. With `directory`, they are looked up there, with or without `.yml`.
        overrides: `key=value`, the value in YAML, after all files.
        check_files: also look for the files and folders that the run needs.

    Returns:
        The run, and notices for the user: keys set twice to different values, keys that have no effect here.

    Raises:
        ConfigError: with every problem that was found.
    """
    sources = _Sources()
    sources.read([_located(Path(path), directory) for path in paths], overrides)
    chosen, notices = _merge(sources.settings)
    values, facts, problems = _settle(chosen)
    built, wrong, found = _validate(values, chosen, sources.excused())
    problems = sources.problems + _same_file_twice(sources.settings) + problems + found
    draft = RunConfig.model_construct(**built)
    if not sources.unread:
        problems += [_placed(problem, chosen) for problem in run_checks(draft, facts, wrong)]
    if check_files:
        problems += [
            _placed(problem, chosen)
            for problem in find_missing_files(draft, wrong | sources.expected)
            if problem.value is not None or not sources.unread
        ]
    if problems:
        raise ConfigError({str(problem): problem for problem in problems}.values())
    cfg = RunConfig(**built)
    return cfg, notices + _remarks(cfg, chosen)


def load_launch(
    paths: Sequence[Path], overrides: Sequence[str] = (), directory: Path | None = None
) -> tuple[LaunchConfig, SlurmConfig, list[str]]:
    """Only what launchers read, for programs that are no runs; keys of runs may stand there and are not used.

    Raises:
        ConfigError: with every problem of a key, or between keys of launchers.
    """
    sources = _Sources()
    sources.read([_located(Path(path), directory) for path in paths], overrides)
    chosen, notices = _merge(sources.settings)
    values, facts, problems = _settle(chosen)
    required = {name for name, (_, info) in _fields().items() if info.is_required()}
    built, wrong, found = _validate(values, chosen, required)
    own = {*LaunchConfig.model_fields, *SlurmConfig.model_fields}
    draft = RunConfig.model_construct(**built)
    between = [problem for problem in run_checks(draft, facts, wrong) if problem.key in own]
    problems = sources.problems + _same_file_twice(sources.settings) + problems + found
    if problems or between:
        raise ConfigError([*problems, *(_placed(problem, chosen) for problem in between)])
    return draft.launch, draft.slurm, notices


def _located(path: Path, directory: Path | None) -> Path:
    """Where a file named on the command line lies; its `.yml` may be left out, as with GPT-NeoX."""
    path = Path(directory) / path if directory is not None else path
    if not path.suffix and not os.path.exists(path):
        return path.with_name(f"{path.name}.yml") if path.name else path
    return path


class _Sources:
    """All settings of all files and overrides, and what is wrong with the keys.

    `unread` says that a file could not be read, so that missing keys mean nothing. `expected` holds the keys
    that an unknown one was probably meant to be.
    """

    def __init__(self) -> None:
        self.settings: list[Setting] = []
        self.problems: list[Problem] = []
        self.expected: set[str] = set()
        self.unread = False

    def read(self, paths: Sequence[Path], overrides: Sequence[str]) -> None:
        parsed = [read_file(path) for path in paths] + [read_override(text) for text in overrides]
        for source, (entries, problems) in enumerate(parsed):
            self.problems += problems
            self.unread |= bool(problems) and not entries and source < len(paths)
            for entry in walk(entries, blocks()):
                self.take(entry, source)

    def take(self, entry: Entry, source: int) -> None:
        key, value = entry.key, entry.value
        if key in TRANSLATIONS:
            self._translate(entry, source)
        elif key in canonical() or key in NO_EFFECT:
            target = canonical().get(key, key)
            self.settings.append(Setting(target, value, key, value, entry.where, source))
        elif key in blocks():
            if value is not None:
                inside = next(name for name in spellings() if name.startswith(f"{key}."))
                leaf = inside.removeprefix(f"{key}.").partition(".")[0]
                remedy = f"write for instance {key}: {{{leaf}: …}}"
                problem = Problem(key, value, "must hold keys of its own", remedy, entry.where)
                self.problems.append(problem)
        else:
            self.problems.append(self._unknown(entry))

    def excused(self) -> set[str]:
        """Required keys whose absence is not worth a word."""
        required = {name for name, (_, info) in _fields().items() if info.is_required()}
        return self.expected | (required if self.unread else set())

    def _translate(self, entry: Entry, source: int) -> None:
        translation = TRANSLATIONS[entry.key]
        read = translation.read(entry.value) if entry.value is not None else {}
        if isinstance(read, Refusal) or entry.value is None:
            read = dict.fromkeys(translation.to, None if entry.value is None else read)
        for target, value in read.items():
            self.settings.append(Setting(target, value, entry.key, entry.value, entry.where, source))

    def _unknown(self, entry: Entry) -> Problem:
        close = ELSEWHERE.get(entry.key) or _nearest(entry.key, spellings())
        if close is None:
            return Problem(entry.key, entry.value, "is not a known key", "remove it", entry.where)
        self.expected.add(canonical().get(close, close))
        self.expected.update(TRANSLATIONS[close].to if close in TRANSLATIONS else ())
        return Problem(entry.key, entry.value, "is not a known key", f"did you mean {close}?", entry.where)


def _nearest(word: str, words: Sequence[str]) -> str | None:
    close = difflib.get_close_matches(word, words, n=1)
    return close[0] if close else None


def _merge(settings: Sequence[Setting]) -> tuple[dict[str, Setting], list[str]]:
    """The last setting of each target, null taking earlier ones back, and a notice where sources differ."""
    by_target: dict[str, list[Setting]] = {}
    for setting in settings:
        by_target.setdefault(setting.target, []).append(setting)
    notices = []
    for target, all_ in by_target.items():
        if any(not _same(one.value, all_[-1].value) for one in all_):
            name = target if target in _fields() else all_[-1].spelled
            history = ", then ".join(f"{_said(one, name)} ({one.where})" for one in all_)
            notices.append(f"{name} is set more than once: {history}; {_said(all_[-1], name)} is used")
    chosen = {target: all_[-1] for target, all_ in by_target.items() if all_[-1].value is not None}
    return chosen, notices


def _said(setting: Setting, name: str) -> str:
    """The value as it was written, with its key where that has another shape than `name`."""
    key = f"{setting.spelled}=" if setting.spelled in TRANSLATIONS and setting.spelled != name else ""
    return f"{key}{shown(setting.said)}"


def _same(one: object, other: object) -> bool:
    """Equal, where 1 and true are not, and NaN is."""
    try:
        if isinstance(one, float) and isinstance(other, float) and one != one and other != other:
            return True
        return one == other and isinstance(one, bool) == isinstance(other, bool)
    except RecursionError:
        return False


def _same_file_twice(settings: Sequence[Setting]) -> list[Problem]:
    """Two spellings of one target in one file, with different values."""
    first: dict[tuple[int, str], Setting] = {}
    problems = []
    for setting in settings:
        earlier = first.setdefault((setting.source, setting.target), setting)
        if not _same(earlier.value, setting.value):
            constraint = f"contradicts {earlier.spelled}={shown(earlier.said)} in the same file"
            problems.append(
                Problem(setting.spelled, setting.said, constraint, "keep one of the two", setting.where)
            )
    return problems


def _settle(chosen: dict[str, Setting]) -> tuple[dict[str, Any], dict[str, Any], list[Problem]]:
    """Split what was chosen into values of fields and facts beside them; refuse what cannot be done."""
    values: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    problems: list[Problem] = []
    known = _fields()
    for target, setting in chosen.items():
        if isinstance(setting.value, Refusal):
            refusal = setting.value
            problems.append(
                Problem(setting.spelled, refusal.value, refusal.constraint, refusal.remedy, setting.where)
            )
        elif target in NO_EFFECT:
            problems += _not_accepted(setting)
        elif target in known:
            values[target] = setting.value
        else:
            facts[target] = setting.value
    layers, attention = chosen.get("num_layers"), chosen.get("attention_layers")
    if layers and attention and layers.source > attention.source:
        # A later file that changes num_layers need not repeat attention_config.
        facts.pop("attention_layers", None)
    return values, facts, problems


def _not_accepted(setting: Setting) -> list[Problem]:
    row = NO_EFFECT[setting.target]
    if not row.accepts or any(_same(setting.value, accepted) for accepted in row.accepts):
        return []
    accepted = " or ".join(shown(value) for value in row.accepts)
    constraint = f"asks for something that is not done here; only {accepted} may stand ({row.reason})"
    return [Problem(setting.spelled, setting.value, constraint, row.remedy, setting.where)]


@cache
def _fields() -> dict[str, tuple[str, FieldInfo]]:
    return {name: (concern, info) for concern, name, info in fields()}


# Stands for a required value that is missing or wrong, so that everything else can still be checked.
_PLACEHOLDER = 1


def _validate(
    values: dict[str, Any], chosen: dict[str, Setting], expected: set[str]
) -> tuple[dict[str, Any], set[str], list[Problem]]:
    """Build every concern; wrong values are reported and replaced by their defaults.

    Returns the concerns by name, the keys that are wrong, refused or missing, and the problems.
    """
    built: dict[str, Any] = {}
    wrong = {target for target, setting in chosen.items() if isinstance(setting.value, Refusal)}
    problems: list[Problem] = []
    for concern, model in concerns().items():
        own = {name: values[name] for name in model.model_fields if name in values}
        try:
            built[concern] = model.model_validate(own)
            continue
        except ValidationError as error:
            details = [one for one in error.errors() if one["type"] != "default_factory_not_called"]
        for one in details:
            name = str(one["loc"][0])
            missing = one["type"] == "missing" and len(one["loc"]) == 1
            if not (missing and (name in expected or name in wrong)):
                problems.append(_problem(one, model, chosen.get(name)))
            wrong.add(name)
            own.pop(name, None)
            if model.model_fields[name].is_required():
                own[name] = _PLACEHOLDER
        built[concern] = model.model_validate(own)
    return built, wrong, problems


_CONSTRAINTS = {
    "missing": "is not set",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "path_type": "must be a path",
    "url_type": "must be a URL, such as s3://bucket/folder",
    "tuple_type": "must be a list",
    "literal_error": "must be {expected}",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "extra_forbidden": "is not a known key",
}


def _problem(error: ErrorDetails, model: type[Concern], setting: Setting | None) -> Problem:
    """What pydantic found, in our words."""
    name, *inner = error["loc"]
    info = model.model_fields[str(name)]
    inside = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in inner)
    key = (setting.spelled if setting else str(name)) + inside
    wording = _CONSTRAINTS.get(error["type"])
    constraint = (
        wording.format(**error.get("ctx", {})) if wording else error["msg"][:1].lower() + error["msg"][1:]
    )
    constraint = constraint.replace("False", "false").replace("True", "true")
    value = None if error["type"] == "missing" else error["input"]
    return Problem(key, value, constraint, _remedy(error, str(name), info), setting.where if setting else "")


def _remedy(error: ErrorDetails, name: str, info: FieldInfo) -> str:
    kind, value = error["type"], error["input"]
    if "remedy" in error.get("ctx", {}):
        return str(error["ctx"]["remedy"])
    if kind == "missing":
        return f"set it: {(info.description or name).split(';')[0].rstrip('.')}"
    if isinstance(value, str) and kind in ("int_type", "float_type", "bool_type"):
        entries, _ = read_override(f"value={value}")
        if entries and not isinstance(entries[0].value, str):
            return "remove the quotes"
    if kind == "extra_forbidden":
        return "remove it"
    if isinstance(value, dict) and kind in ("int_type", "float_type", "bool_type", "string_type"):
        return "write one value"
    default = info.default
    if isinstance(default, bool | int | float | str):
        return f"the default is {shown(default)}"
    return "correct the value, or remove the key" if not info.is_required() else "correct the value"


def _placed(problem: Problem, chosen: dict[str, Setting]) -> Problem:
    """The problem with the place where its key was set, as far as it was."""
    places = {setting.spelled: setting.where for setting in chosen.values()}
    places |= {target: setting.where for target, setting in chosen.items()}
    key = problem.key if problem.key in places else problem.key.partition(".")[0]
    return problem if problem.where else replace(problem, where=places.get(key, ""))


def _remarks(cfg: RunConfig, chosen: dict[str, Setting]) -> list[str]:
    """What the user should know about a run that is in order."""
    remarks = [
        f"{setting.spelled}={shown(setting.said)} has no effect here: {NO_EFFECT[target].reason}"
        for target, setting in chosen.items()
        if target in NO_EFFECT
    ]
    data = cfg.data
    if data.train_data_paths and not data.valid_data_paths and cfg.validation.eval_iters:
        remarks.append("valid_data_paths is not set: no loss on held-out data is measured")
    for name, weights in (("valid", data.valid_data_weights), ("test", data.test_data_weights)):
        if set(weights) - {0.0, 1.0}:
            reason = "each set is evaluated by itself, and only 0, which leaves one out, changes anything"
            remarks.append(f"{name}_data_weights={shown(list(weights))} has no effect here: {reason}")
    return remarks
