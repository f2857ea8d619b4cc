# SPDX-License-Identifier: Apache-2.0
"""The engine is prepared for this machine before any test imports megatron.core."""

import megatron.backend  # noqa: F401
