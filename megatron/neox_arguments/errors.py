# SPDX-License-Identifier: Apache-2.0
"""Errors for the person who typed the command: what is wrong, where, and what to do about it.

A `UserError` is printed as `error: …` on the standard error stream and ends the program with status 2; no
traceback is shown, because nothing in our code is broken. Every other exception keeps its traceback.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class UserError(Exception):
    """Something the user can put right; the message says how."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a configuration: `key=value: constraint; remedy (where)`.

    `value` is None where the key is not set. `where` is `file:line` as far as it is known.
    """

    key: str
    value: object
    constraint: str
    remedy: str
    where: str = ""

    def __str__(self) -> str:
        subject = self.key if self.value is None else f"{self.key}={shown(self.value)}"
        place = f" ({self.where})" if self.where else ""
        return f"{subject}: {self.constraint}; {self.remedy}{place}"


class ConfigError(UserError):
    """All problems of one configuration, one a line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: list[Problem] = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def shown(value: object, limit: int = 80) -> str:
    """`value` as YAML would have it on one line, cut after `limit` characters."""
    if isinstance(value, str):
        text = value if value.isprintable() else json.dumps(value)
    elif isinstance(value, PurePath):
        text = str(value)
    else:
        try:
            text = json.dumps(value, default=str, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def exit_on_user_error(main: Callable[P, R]) -> Callable[P, R]:
    """Decorate an entry point: a `UserError` becomes `error: …` on stderr and exit status 2."""

    @functools.wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            lines = str(error).splitlines() or [type(error).__name__]
            print("\n".join(f"error: {line}" for line in lines), file=sys.stderr)
            raise SystemExit(error.exit_code) from None

    return guarded
