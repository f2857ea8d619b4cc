# SPDX-License-Identifier: Apache-2.0
"""What a run is: typed, validated, documented. Needs no torch."""

from .checks import check_world
from .config import RunConfig
from .errors import ConfigError, Problem, UserError, exit_on_user_error
from .loader import load_config

__all__ = [
    "ConfigError",
    "Problem",
    "RunConfig",
    "UserError",
    "check_world",
    "exit_on_user_error",
    "load_config",
]
