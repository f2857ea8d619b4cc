# SPDX-License-Identifier: Apache-2.0
"""The list of rules between keys, and how a rule gets into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .config import RunConfig
from .errors import Problem

Facts = Mapping[str, Any]
_Check = Callable[[RunConfig, Facts], Iterator[Problem]]


@dataclass(frozen=True)
class Check:
    """A rule between `keys`; `layout` rules concern the cut of the model over ranks."""

    keys: frozenset[str]
    run: _Check
    layout: bool


CHECKS: list[Check] = []


def rule(*keys: str, layout: bool = False) -> Callable[[_Check], _Check]:
    """Adds the function below it to `CHECKS`."""

    def register(function: _Check) -> _Check:
        CHECKS.append(Check(frozenset(keys), function, layout))
        return function

    return register
