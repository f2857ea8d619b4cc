# SPDX-License-Identifier: Apache-2.0
"""Source files out of repositories: the newest commit before a day, read from git's own objects.

Nothing is checked out and no attribute, filter, hook or submodule of a repository is obeyed. Repositories
come from a list of clone URLs (or local paths), a few to a shard."""

from __future__ import annotations

import datetime
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from megatron.neox_arguments.errors import UserError
from tools.proof_pile_2.documents import Broken, Document
from tools.proof_pile_2.shards import ReadOptions, Shard, shown_path

BEFORE = "2023-04-01"
"""A day, from whose first second (UTC) on nothing is taken."""
MAX_REPOSITORY_BYTES = 1 << 30
_REPOSITORIES_PER_SHARD = 16
_SAFE = (
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "protocol.ext.allow=never",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "gc.auto=0",
    "-c",
    "safe.bareRepository=all",
)


class _RepositoryFailed(Exception):
    """Why a repository gives nothing."""


@dataclass(frozen=True)
class RepositoriesShard:
    """Files that end in one of `suffixes`, out of some repositories."""

    name: str
    urls: tuple[str, ...]
    suffixes: tuple[str, ...]
    options: ReadOptions
    before: str = BEFORE
    max_repository_bytes: int = MAX_REPOSITORY_BYTES
    clone_seconds: int = 1800

    @property
    def size_bytes(self) -> int:
        """Not known before they are cloned; counted as one each."""
        return len(self.urls)

    def identity(self) -> object:
        """The list and the day. What a repository holds before a day in the past changes only where its
        history is rewritten."""
        return ["git", list(self.urls), list(self.suffixes), self.before, self.max_repository_bytes]

    def read(self) -> Iterator[Document | Broken]:
        """One document a file, and one broken record for each repository, link or file that gives nothing."""
        for url in self.urls:
            with tempfile.TemporaryDirectory(prefix="repository-") as folder:
                try:
                    git = _Git(Path(folder), url, self.clone_seconds)
                    yield from self._documents(git, url)
                except _RepositoryFailed as error:
                    yield Broken(url, str(error))

    def _documents(self, git: _Git, url: str) -> Iterator[Document | Broken]:
        commit = git.run("rev-list", "-1", f"--before={_last_second(self.before)}", "HEAD").strip().decode()
        if not commit:
            raise _RepositoryFailed("has no commit before the day that was asked for")
        entries = list(_entries(git.run("ls-tree", "-r", "-l", "-z", "--full-tree", commit)))
        total = sum(size for _, _, size, _ in entries)
        if total > self.max_repository_bytes:
            raise _RepositoryFailed(f"has more than {self.max_repository_bytes} bytes of files")
        wanted = [entry for entry in entries if entry[3].lower().endswith(self.suffixes)]
        repository = repository_name(url)
        with git.objects() as objects:
            for mode, identifier, size, path in wanted:
                where = f"{url}:{path}"
                if mode not in ("100644", "100755"):
                    yield Broken(where, "is a symbolic link or a submodule, which is not followed")
                elif size > self.options.limits.max_record_bytes:
                    yield Broken(where, f"has more than {self.options.limits.max_record_bytes} bytes")
                elif size == 0:
                    yield Broken(where, "holds no bytes")
                else:
                    data = objects.read(identifier)
                    try:
                        text = data.decode("utf-8-sig")
                    except UnicodeDecodeError:
                        yield Broken(where, "is not UTF-8 text")
                        continue
                    meta = {"repo": repository, "path": path, "commit": commit}
                    yield Document(text, {**meta, **dict(self.options.meta)})


def _last_second(before: str) -> str:
    """The last second before a day; git's --before takes commits of the second itself too."""
    day = datetime.date.fromisoformat(before) - datetime.timedelta(days=1)
    return f"{day.isoformat()}T23:59:59+00:00"


def _entries(listing: bytes) -> Iterator[tuple[str, str, int, str]]:
    """(mode, object, size, path) of each entry of a tree; submodules have no size."""
    for line in listing.split(b"\0"):
        if line:
            fields, _, path = line.partition(b"\t")
            mode, _, identifier, size = fields.split()
            yield (
                mode.decode(),
                identifier.decode(),
                int(size) if size != b"-" else 0,
                shown_path(os.fsdecode(path)),
            )


class _Objects:
    """git's server of objects, asked for one at a time."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._into: IO[bytes] = process.stdin
        self._out: IO[bytes] = process.stdout

    def __enter__(self) -> _Objects:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def read(self, identifier: str) -> bytes:
        """The bytes of an object."""
        self._into.write(identifier.encode() + b"\n")
        self._into.flush()
        header = self._out.readline().split()
        if len(header) != 3:
            raise _RepositoryFailed(f"lacks the object {identifier}")
        data = self._out.read(int(header[2]) + 1)
        return data[:-1]


class _Git:
    """A bare copy of one repository in a folder of its own."""

    def __init__(self, folder: Path, url: str, clone_seconds: int) -> None:
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_ASKPASS": "/bin/false",
            "LC_ALL": "C",
        }
        self._folder = folder / "bare"
        self._run(
            ["clone", "--quiet", "--bare", "--single-branch", "--no-tags", "--", url, str(self._folder)],
            clone_seconds,
        )

    def run(self, *arguments: str) -> bytes:
        """The output of a git command in the copy."""
        return self._run(["--git-dir", str(self._folder), *arguments], 600)

    def objects(self) -> _Objects:
        """Access to the contents of objects."""
        return _Objects(
            subprocess.Popen(
                ["git", *_SAFE, "--git-dir", str(self._folder), "cat-file", "--batch"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment,
            )
        )

    def _run(self, arguments: Sequence[str], seconds: int) -> bytes:
        try:
            done = subprocess.run(
                ["git", *_SAFE, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=seconds,
                env=self._environment,
                check=False,
            )
        except FileNotFoundError:
            raise UserError("git is not installed; install it, or give folders of source files") from None
        except subprocess.TimeoutExpired:
            raise _RepositoryFailed(f"took more than {seconds} seconds to clone") from None
        if done.returncode:
            last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["unknown"])[-1]
            raise _RepositoryFailed(f"cannot be cloned ({last[:200]})")
        return done.stdout


def repository_name(url: str) -> str:
    """`owner/name` of a clone URL, or the last two parts of a path."""
    parts = PurePosixPath(url.replace(":", "/")).parts
    return "/".join(parts[-2:]).removesuffix(".git").lstrip("/")


def read_list(path: Path) -> list[str]:
    """Clone URLs or local paths, one a line; blank lines and those that begin with `#` are left out.

    Errors: `UserError` where it cannot be read or is empty."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a list of clone URLs, one a line") from None
    urls = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not urls:
        raise UserError(f"{path}: names no repository; give clone URLs, one a line")
    return urls


def plan_repositories(
    urls: Sequence[str],
    suffixes: tuple[str, ...],
    options: ReadOptions,
    prefix: str,
    before: str = BEFORE,
    max_repository_bytes: int = MAX_REPOSITORY_BYTES,
) -> Iterator[Shard]:
    """The repositories, a few to a shard, in the order of the list."""
    for number, first in enumerate(range(0, len(urls), _REPOSITORIES_PER_SHARD)):
        few = tuple(urls[first : first + _REPOSITORIES_PER_SHARD])
        yield RepositoriesShard(f"{prefix}{number:05}", few, suffixes, options, before, max_repository_bytes)
