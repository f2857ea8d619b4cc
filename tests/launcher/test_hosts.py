# SPDX-License-Identifier: Apache-2.0
"""Hostfiles and DeepSpeed's include and exclude; the expectations are DeepSpeed's own examples."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron.launcher.hosts import Host, World, chosen_hosts, cpu_hosts, in_words, read_hostfile
from megatron.neox_arguments.errors import ConfigError, UserError

TWO = (Host("worker-0", (0, 1, 2, 3)), Host("worker-1", (0, 1, 2, 3)))


def test_a_hostfile_as_deepspeed_has_it(tmp_path: Path) -> None:
    path = tmp_path / "hostfile"
    path.write_text("# machines\nworker-0 slots=4\n\n  worker-1   slots = 2   # old\n")
    assert read_hostfile(path) == (Host("worker-0", (0, 1, 2, 3)), Host("worker-1", (0, 1)))


@pytest.mark.parametrize(("text", "words"), [
    ("worker-0\n", "is not `name slots=N`"),
    ("worker-0 slots=0\n", "is not `name slots=N`"),
    ("a slots=1\na slots=1\n", "stands twice"),
    ("# nothing\n", "names no machine"),
    ("n[0-3] slots=2", "is not the name of one machine; write each machine's name on a line of its own"),
    ("n0,n1 slots=2", "is not the name of one machine"),
    ("^file slots=2", "is not the name of one machine"),
    ("-n0 slots=2", "is not the name of one machine"),
    ("ok slots=1\nn0;touch${IFS}/tmp/x slots=2", r"is not the name of one machine.*hostfile:2"),
    ("root@n0 slots=2", "holds a user's name; leave it out, and put `User`"),
    ("::1 slots=2", "holds a colon, as an IPv6 address does"),
])  # fmt: skip
def test_wrong_hostfiles_are_refused_with_their_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "hostfile"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_hostfile(path)


def test_names_addresses_and_a_byte_order_mark_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "hostfile"
    path.write_text("\ufeffnode-1.ib_0.site slots=1\n10.0.0.7 slots=1\n", encoding="utf-8")
    assert [host.name for host in read_hostfile(path)] == ["node-1.ib_0.site", "10.0.0.7"]


def test_a_missing_hostfile_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hostfile=.*absent: No such file"):
        read_hostfile(tmp_path / "absent")


@pytest.mark.parametrize(("chosen", "expected"), [
    ({}, {"worker-0": (0, 1, 2, 3), "worker-1": (0, 1, 2, 3)}),
    ({"include": "worker-1:0,2"}, {"worker-1": (0, 2)}),
    ({"include": "worker-0@worker-1:0,2"}, {"worker-0": (0, 1, 2, 3), "worker-1": (0, 2)}),
    ({"exclude": "worker-1:0"}, {"worker-0": (0, 1, 2, 3), "worker-1": (1, 2, 3)}),
    ({"exclude": "worker-0@worker-1:3"}, {"worker-1": (0, 1, 2)}),
    ({"exclude": "worker-1:0,1,2,3"}, {"worker-0": (0, 1, 2, 3)}),
    ({"num_nodes": 1, "num_gpus": 2}, {"worker-0": (0, 1)}),
    ({"include": "worker-1", "num_gpus": 1}, {"worker-1": (0,)}),
])  # fmt: skip
def test_what_a_run_uses(chosen: dict[str, str | int], expected: dict[str, tuple[int, ...]]) -> None:
    found = chosen_hosts(TWO, **chosen)  # type: ignore[arg-type]
    assert {host.name: host.slots for host in found} == expected


@pytest.mark.parametrize(("chosen", "words"), [
    ({"include": "worker-7"}, "no machine 'worker-7'; the machines are worker-0, worker-1"),
    ({"include": "worker-0:4"}, "worker-0 has no slot 4; its slots are 0 to 3"),
    ({"exclude": "worker-0:x"}, "is not name:0,2"),
    ({"include": "worker-0:"}, "has no slots after the colon; write for instance worker-0:0,2, or worker-0"),
    ({"exclude": "worker-0@worker-1"}, "leaves no machine"),
    ({"num_nodes": 3}, "num_nodes=3: only 2 machines are there; use num_nodes=2"),
    ({"num_gpus": 5}, "num_gpus=5: only 4"),
])  # fmt: skip
def test_what_is_not_there_is_refused(chosen: dict[str, str | int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        chosen_hosts(TWO, **chosen)  # type: ignore[arg-type]


def test_a_world_counts_through_its_machines() -> None:
    world = World((Host("a", (0, 1, 2)), Host("b", (5,)), Host("c", (0, 1))), True, "", "a")
    assert world.size == 6
    assert [world.first_rank(node) for node in range(3)] == [0, 3, 4]
    assert in_words(world.hosts) == "3 machines x 1 to 3"


def test_cpu_ranks_are_spread_evenly() -> None:
    assert cpu_hosts(["a", "b"], 4) == (Host("a", (0, 1)), Host("b", (0, 1)))
    with pytest.raises(ConfigError, match="cpu_ranks=5: cannot be spread evenly over 2 machines"):
        cpu_hosts(["a", "b"], 5)
