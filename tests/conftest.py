# SPDX-License-Identifier: Apache-2.0
"""The engine is prepared for this machine before any test imports megatron.core."""

import signal

from hypothesis import settings

import megatron.backend  # noqa: F401

# `make test` gives one answer for one commit. New examples are looked for by `make test-random`.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("steady")

# What nohup says to this process must not be said to the processes of the tests.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
