# SPDX-License-Identifier: Apache-2.0
"""Where keys come from, and which addresses need one."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from megatron.neox_arguments.errors import UserError
from tools.serve import KEY_VARIABLE, is_loopback, read_keys


def keys_in(path: Path | None) -> tuple[str, ...]:
    return read_keys(argparse.Namespace(api_key_file=path))


def test_keys_are_lines_of_a_file_or_one_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert keys_in(None) == ()
    monkeypatch.setenv(KEY_VARIABLE, " of-the-environment\n")
    assert keys_in(None) == ("of-the-environment",)
    path = tmp_path / "keys"
    path.write_text("first\n\n  second  \n")
    assert keys_in(path) == ("first", "second"), "the file goes before the variable"


@pytest.mark.parametrize(("content", "message"), [
    (b"\n \n", "holds no key"),
    (b"two words\n", "no header carries"),
    ("schlüssel\n".encode(), "no header carries"),
    (b"\xff\n", "cannot be read"),
])  # fmt: skip
def test_a_file_without_a_usable_key_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(UserError, match=message):
        keys_in(tmp_path / "keys")


def test_an_empty_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "")
    with pytest.raises(UserError, match="is empty"):
        keys_in(None)


def test_loopback_is_what_only_this_machine_reaches() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.0.2.7"))
