# SPDX-License-Identifier: Apache-2.0
"""What a command does when nobody reads its output any more, as `head` after its lines: it ends, quietly."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def exit_when_nobody_reads() -> Iterator[None]:
    """Around a command. Where the standard output is closed it ends with status 141, as a shell says for
    SIGPIPE, and without a traceback."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        sys.exit(128 + signal.SIGPIPE)
