# SPDX-License-Identifier: Apache-2.0
"""The engine is prepared for this machine before any test imports megatron.core."""

import signal

import pytest
from hypothesis import settings

import megatron.backend  # noqa: F401

# `make test` gives one answer for one commit. New examples are looked for by `make test-random`.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("steady")

# What nohup, or a shell with `&`, says to this process must not be said to the processes of the tests.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process of several is left alone with them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
