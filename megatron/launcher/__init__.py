# SPDX-License-Identifier: Apache-2.0
"""Where ranks come from. Needs no torch, and starts in a blink."""

from megatron.launcher.frozen import FrozenConfig, freeze, read_frozen
from megatron.launcher.local import launch

__all__ = ["FrozenConfig", "freeze", "launch", "read_frozen"]
