# SPDX-License-Identifier: Apache-2.0
"""The TCP port at which ranks meet: free here, guessed for another machine, or the user's own."""

from __future__ import annotations

import random
import socket

from megatron.neox_arguments.errors import UserError

# Ports that the kernel does not hand out by itself (Linux: 32768 and up), and above those of services. A rank
# listens seconds after its port was chosen, when it has imported torch; of the kernel's own ports any
# connection of the machine could have been given the same one by then.
FIRST_PORT, PORTS = 20_000, 12_000
_TRIES = 100


def guessed_port() -> int:
    """One for another machine, where it cannot be tried."""
    return FIRST_PORT + random.randrange(PORTS)


def free_port() -> int:
    """One that nobody listens on here now.

    Raises:
        UserError: none was found.
    """
    for _ in range(_TRIES):
        port = guessed_port()
        if _refusal(port) is None:
            return port
    raise UserError(
        f"master_port: {_TRIES} ports between {FIRST_PORT} and {FIRST_PORT + PORTS - 1} are all taken; set "
        "one that is free"
    )


def checked_port(port: int) -> int:
    """The port the user has chosen.

    Raises:
        UserError: it is taken.
    """
    refusal = _refusal(port)
    if refusal is not None:
        raise UserError(
            f"master_port={port}: {refusal.strerror}; leave it out and a free port is taken, or end what "
            "holds it"
        ) from refusal
    return port


def _refusal(port: int) -> OSError | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return error
    return None
