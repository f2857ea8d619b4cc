# SPDX-License-Identifier: Apache-2.0
"""Machines and the ranks on each: hostfiles, DeepSpeed's include and exclude, and the World they make.

Rank r of a world is found by counting through the machines in order, so that the ranks of one machine follow
each other: a tensor parallel group, which is made of neighbouring ranks, stays on one machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.neox_arguments.errors import ConfigError, Problem, UserError

HOSTFILE_VARIABLE = "DLTS_HOSTFILE"  # where GPT-NeoX's users name their hostfile
# A host's name or IPv4 address. ssh takes more, but to pdsh and mpirun commas and brackets make lists, colons
# count slots, ^ and / name files and patterns, and a leading - leaves a machine out.
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class Host:
    """A machine and its slots, one a rank; on GPU ranks a slot is the number of the GPU."""

    name: str
    slots: tuple[int, ...]


@dataclass(frozen=True)
class World:
    """All ranks of a run: where they are, how that was found out, and where they meet."""

    hosts: tuple[Host, ...]
    on_gpu: bool
    reason: str
    master_addr: str
    master_port: int | None = None  # None: a free one of this machine

    @property
    def size(self) -> int:
        return sum(len(host.slots) for host in self.hosts)

    def first_rank(self, node: int) -> int:
        """The lowest rank of a machine."""
        return sum(len(host.slots) for host in self.hosts[:node])


def cpu_hosts(names: Sequence[str], ranks: int) -> tuple[Host, ...]:
    """`ranks` CPU ranks spread evenly over machines.

    Raises:
        ConfigError: they cannot be.
    """
    if ranks % len(names):
        constraint = f"cannot be spread evenly over {len(names)} machines"
        raise ConfigError([Problem("cpu_ranks", ranks, constraint, f"use a multiple of {len(names)}")])
    each = tuple(range(ranks // len(names)))
    return tuple(Host(name, each) for name in names)


def read_hostfile(path: Path, key: str = "hostfile") -> tuple[Host, ...]:
    """The machines of a file with lines `name slots=N`; `#` begins a comment.

    Raises:
        UserError: the file cannot be read. ConfigError: a line is of another form, or a name stands twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise UserError(f"{key}={path}: {said}; give a file with lines such as `n0 slots=8`") from error
    hosts: list[Host] = []
    problems = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = re.fullmatch(r"(\S+)\s+slots\s*=\s*([1-9]\d{0,3})", text)
        where = f"{path}:{number}"
        if found is None:
            problems.append(
                Problem(key, text, "is not `name slots=N`", "write for instance n0 slots=8", where)
            )
        elif not _HOST.fullmatch(found[1]):
            problems.append(Problem(key, found[1], *_no_host(found[1]), where))
        elif found[1] in [host.name for host in hosts]:
            problems.append(Problem(key, found[1], "stands twice", "give each machine one line", where))
        else:
            hosts.append(Host(found[1], tuple(range(int(found[2])))))
    if not hosts and not problems:
        problems.append(Problem(key, str(path), "names no machine", "write for instance n0 slots=8"))
    if problems:
        raise ConfigError(problems)
    return tuple(hosts)


def _no_host(name: str) -> tuple[str, str]:
    """Why a word cannot be a machine's name here, and what to write."""
    if "@" in name:
        return "holds a user's name", "leave it out, and put `User` for this host into ~/.ssh/config"
    if ":" in name:
        return "holds a colon, as an IPv6 address does", "write a name, and its address into ~/.ssh/config"
    remedy = "write each machine's name on a line of its own, of letters, digits, dots and hyphens"
    return "is not the name of one machine", remedy


def chosen_hosts(
    hosts: tuple[Host, ...],
    *,
    include: str | None = None,
    exclude: str | None = None,
    num_nodes: int | None = None,
    num_gpus: int | None = None,
) -> tuple[Host, ...]:
    """The part of `hosts` that a run uses; include and exclude are written as DeepSpeed has them.

    Raises:
        ConfigError: a machine or slot that is not there, more than there are, or nothing left.
    """
    if include is not None:
        hosts = _included(hosts, _filter("include", include, hosts))
    if exclude is not None:
        hosts = _without(hosts, _filter("exclude", exclude, hosts))
    if not hosts:
        key, value = ("include", include) if include is not None else ("exclude", exclude)
        raise ConfigError([Problem(key, value, "leaves no machine", "name fewer, or remove the key")])
    if num_nodes is not None:
        if num_nodes > len(hosts):
            raise ConfigError([_too_many("num_nodes", num_nodes, len(hosts), "machines are there")])
        hosts = hosts[:num_nodes]
    if num_gpus is not None:
        least = min(len(host.slots) for host in hosts)
        if num_gpus > least:
            raise ConfigError([_too_many("num_gpus", num_gpus, least, "slots has the smallest machine")])
        hosts = tuple(Host(host.name, host.slots[:num_gpus]) for host in hosts)
    return hosts


def _too_many(key: str, value: int, there: int, what: str) -> Problem:
    return Problem(key, value, f"only {there} {what}", f"use {key}={there}")


def _filter(key: str, text: str, hosts: tuple[Host, ...]) -> dict[str, tuple[int, ...] | None]:
    """`n0@n1:0,2` as machine → slots, None for all of them."""
    there = {host.name: host for host in hosts}
    found: dict[str, tuple[int, ...] | None] = {}
    problems = []
    for part in text.split("@"):
        name, colon, slots = part.strip().partition(":")
        if name not in there:
            remedy = f"the machines are {', '.join(list(there)[:8])}{'…' if len(there) > 8 else ''}"
            problems.append(Problem(key, text, f"there is no machine {name!r}", remedy))
        elif colon and not slots:
            remedy = f"write for instance {name}:0,2, or {name} for all its slots"
            problems.append(Problem(key, text, f"{part!r} has no slots after the colon", remedy))
        elif colon and not re.fullmatch(r"[0-9]+(,[0-9]+)*", slots):
            problems.append(Problem(key, text, f"{part!r} is not name:0,2", "write for instance n0@n1:0,2"))
        elif not colon:
            found[name] = None
        else:
            numbers = tuple(sorted({int(slot) for slot in slots.split(",")}))
            missing = [slot for slot in numbers if slot not in there[name].slots]
            if missing:
                constraint = f"{name} has no slot {missing[0]}"
                problems.append(
                    Problem(key, text, constraint, f"its slots are 0 to {len(there[name].slots) - 1}")
                )
            found[name] = tuple(sorted({*(found.get(name) or ()), *numbers}))
    if problems:
        raise ConfigError(problems)
    return found


def _included(hosts: tuple[Host, ...], wanted: Mapping[str, tuple[int, ...] | None]) -> tuple[Host, ...]:
    kept = [host for host in hosts if host.name in wanted]
    return tuple(Host(host.name, wanted[host.name] or host.slots) for host in kept)


def _without(hosts: tuple[Host, ...], unwanted: Mapping[str, tuple[int, ...] | None]) -> tuple[Host, ...]:
    left = []
    for host in hosts:
        out = unwanted.get(host.name, ()) if host.name in unwanted else ()
        slots = () if out is None else tuple(slot for slot in host.slots if slot not in out)
        if slots:
            left.append(Host(host.name, slots))
    return tuple(left)


def in_words(hosts: Sequence[Host]) -> str:
    """How many machines with how many ranks each."""
    sizes = sorted({len(host.slots) for host in hosts})
    each = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"{len(hosts)} machine{'s' if len(hosts) > 1 else ''} x {each}"
