# SPDX-License-Identifier: Apache-2.0
"""What a run is: typed, validated, documented. Needs no torch.

The names are looked up when they are first used, so that who wants errors alone, such as each process that
tokenises, does not wait for the types of a run.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checks import check_world
    from .config import RunConfig
    from .errors import ConfigError, Problem, UserError, exit_on_user_error
    from .loader import load_config

_MODULE_OF = {
    "ConfigError": "errors",
    "Problem": "errors",
    "RunConfig": "config",
    "UserError": "errors",
    "check_world": "checks",
    "exit_on_user_error": "errors",
    "load_config": "loader",
}

__all__ = [
    "ConfigError",
    "Problem",
    "RunConfig",
    "UserError",
    "check_world",
    "exit_on_user_error",
    "load_config",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
