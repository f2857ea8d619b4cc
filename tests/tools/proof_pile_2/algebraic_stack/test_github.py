# SPDX-License-Identifier: Apache-2.0
"""Files out of real repositories, made here with git: the newest commit before a day, and nothing that is
not a file."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from megatron.neox_arguments.errors import UserError
from tools.proof_pile_2.algebraic_stack.github import (
    RepositoriesShard,
    plan_repositories,
    read_list,
    repository_name,
)
from tools.proof_pile_2.documents import Broken, Document
from tools.proof_pile_2.shards import Limits, ReadOptions


def git(folder: Path, *arguments: str, day: str = "2022-01-01") -> None:
    who = {f"GIT_{role}_{key}": "someone" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    when = {f"GIT_{role}_DATE": f"{day}T00:00:00+00:00" for role in ("AUTHOR", "COMMITTER")}
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1", **who, **when}
    command = ["git", *arguments]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=60, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "owner" / "maths"
    (folder / "sub").mkdir(parents=True)
    git(folder, "init", "-q")
    (folder / "a.lean").write_text("theorem old : true\n")
    (folder / "sub" / "ü.lean").write_text("theorem two : true $Format:%H$\n")
    (folder / ".gitattributes").write_text("*.lean export-subst\nsub export-ignore\n")
    (folder / "binary.lean").write_bytes(b"\xff\xfe")
    (folder / "empty.lean").touch()
    (folder / "large.lean").write_text("x" * 2000)
    (folder / "readme.md").write_text("no Lean")
    (folder / "link.lean").symlink_to("/etc/passwd")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "one")
    (folder / "a.lean").write_text("theorem new : true\n")
    git(folder, "commit", "-q", "-a", "-m", "two", day="2023-03-31")
    (folder / "a.lean").write_text("theorem too_late : true\n")
    git(folder, "commit", "-q", "-a", "-m", "three", day="2023-04-01")
    return folder


def shard(*urls: Path | str, max_repository_bytes: int = 1 << 30) -> RepositoriesShard:
    read = ReadOptions(meta=(("lang", "lean"),), limits=Limits(max_record_bytes=1000))
    return RepositoriesShard(
        "lean-00000", tuple(map(str, urls)), (".lean",), read, max_repository_bytes=max_repository_bytes
    )


def test_the_newest_commit_before_the_day(repository: Path) -> None:
    found = list(shard(repository).read())
    documents = {item.meta["path"]: item for item in found if isinstance(item, Document)}
    assert {path: item.text for path, item in documents.items()} == {
        "a.lean": "theorem new : true\n",
        "sub/ü.lean": "theorem two : true $Format:%H$\n",
    }
    meta = documents["a.lean"].meta
    assert (meta["repo"], meta["lang"], len(meta["commit"])) == ("owner/maths", "lean", 40)
    broken = {item.where.rpartition(":")[2]: item.reason for item in found if isinstance(item, Broken)}
    assert broken == {
        "binary.lean": "is not UTF-8 text",
        "empty.lean": "holds no bytes",
        "large.lean": "has more than 1000 bytes",
        "link.lean": "is a symbolic link or a submodule, which is not followed",
    }


def test_what_cannot_be_taken_is_counted_and_the_rest_goes_on(repository: Path, tmp_path: Path) -> None:
    young = tmp_path / "young"
    young.mkdir()
    git(young, "init", "-q")
    (young / "a.lean").write_text("theorem late : true")
    git(young, "add", "-A")
    git(young, "commit", "-q", "-m", "one", day="2023-05-01")
    found = list(shard(tmp_path / "absent", young, "--upload-pack=touch x", repository).read())
    reasons = [item.reason for item in found if isinstance(item, Broken)]
    assert reasons[0].startswith("cannot be cloned (fatal: repository")
    assert reasons[1] == "has no commit before the day that was asked for"
    assert reasons[2].startswith("cannot be cloned")
    assert sum(isinstance(item, Document) for item in found) == 2


def test_large_repositories_are_left_out(repository: Path) -> None:
    [broken] = shard(repository, max_repository_bytes=1000).read()
    assert isinstance(broken, Broken)
    assert broken.reason == "has more than 1000 bytes of files"


def test_lists_of_repositories(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("# Lean\nhttps://host/a/b.git\n\nhttps://host/a/b.git\ngit@host:c/d\n")
    urls = read_list(tmp_path / "list")
    assert [repository_name(url) for url in urls] == ["a/b", "c/d"]
    (tmp_path / "empty").touch()
    for name in ("empty", "absent"):
        with pytest.raises(UserError, match="clone URLs, one a line"):
            read_list(tmp_path / name)
    shards = list(plan_repositories([f"u{n}" for n in range(40)], (".v",), ReadOptions(), "coq-git-"))
    assert [each.name for each in shards] == ["coq-git-00000", "coq-git-00001", "coq-git-00002"]
    assert sum(each.size_bytes for each in shards) == 40
