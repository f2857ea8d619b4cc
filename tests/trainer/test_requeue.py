# SPDX-License-Identifier: Apache-2.0
"""Who asks for what by a signal, and where a run leaves word that it wants to be started again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from megatron.neox_arguments.errors import UserError
from megatron.trainer.interruption import StopRequest, ask_for_requeue, requeue_file, withdraw_requeue


@pytest.mark.parametrize(("name", "requeues"), [
    ("SIGINT", False), ("SIGHUP", False), ("SIGTERM", True), ("SIGUSR1", True),
])  # fmt: skip
def test_a_scheduler_wants_the_run_again_and_a_person_does_not(name: str, requeues: bool) -> None:
    before = {number: signal.getsignal(number) for number in signal.Signals if number.name.startswith("SIG")}
    try:
        stop = StopRequest().listen()
        assert not stop.was_asked
        signal.raise_signal(signal.Signals[name])
        assert (stop.was_asked, stop.wants_requeue, stop.signal_name) == (True, requeues, name)
    finally:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, before[number])


def test_the_file_lies_in_save_or_where_the_environment_says(tmp_path: Path) -> None:
    assert requeue_file(tmp_path, {}) == tmp_path / "requeue"
    chosen = requeue_file(tmp_path, {"DEEPY_REQUEUE_FILE": str(tmp_path / "job" / "again")})
    assert chosen == tmp_path / "job" / "again"
    assert requeue_file(None, {}) is None
    ask_for_requeue(chosen, 12, "")
    assert chosen.read_text() == "stopped by a signal to another rank after iteration 12\n"
    assert [path.name for path in chosen.parent.iterdir()] == ["again"]


def test_what_was_asked_for_is_taken_back(tmp_path: Path) -> None:
    file = tmp_path / "requeue"
    ask_for_requeue(file, 12, "SIGUSR1")
    for _ in range(2):
        withdraw_requeue(file)
        assert not file.exists()
    withdraw_requeue(None)
    file.mkdir()
    with pytest.raises(UserError, match="remove it"):
        withdraw_requeue(file)
