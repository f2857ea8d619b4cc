# SPDX-License-Identifier: Apache-2.0
"""Ports at which ranks meet."""

from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest

from megatron.launcher import ports
from megatron.launcher.ports import free_port, guessed_port
from megatron.neox_arguments.errors import UserError


def test_no_port_is_one_that_the_kernel_gives_to_others() -> None:
    """Where Linux's own range is as it comes (some machines widen it)."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if first < 32768:
        pytest.skip(f"this machine's own ports begin at {first}")
    assert all(1024 < guessed_port() < first for _ in range(10_000))


def test_a_taken_port_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "PORTS", 2)
    monkeypatch.setattr(ports, "FIRST_PORT", free_port() & ~1)
    with socket.socket() as holder, socket.socket() as other:
        holder.bind(("", ports.FIRST_PORT))
        holder.listen()
        assert {free_port() for _ in range(20)} == {ports.FIRST_PORT + 1}
        other.bind(("127.0.0.1", ports.FIRST_PORT + 1))
        other.listen()
        with pytest.raises(UserError, match="master_port"):
            free_port()


def test_two_runs_hardly_choose_the_same() -> None:
    random.seed()
    assert len({guessed_port() for _ in range(200)}) > 180
