# SPDX-License-Identifier: Apache-2.0
"""Uploads and downloads by themselves: what is queued, what is kept, what half a transfer leaves."""

from __future__ import annotations

import functools
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron.checkpointing import download, folders, manifest
from megatron.checkpointing.remote import Backoff, Remote, in_words, open_remote, split_url, try_for
from megatron.checkpointing.upload import Uploader
from megatron.neox_arguments.config import CheckpointConfig
from megatron.neox_arguments.errors import UserError
from megatron.trainer.keeper import Keeper
from tests.stores import damage_in

QUICK = Backoff(first_seconds=0.01, longest_seconds=0.02)
SIZE_BYTES = 50_000


def checkpoint(save: Path, iteration: int, seed: int = 0) -> Path:
    """A sealed folder of random files, with a name in a folder of its own among them."""
    folder = save / folders.step_name(iteration)
    (folder / "base").mkdir(parents=True)
    generator = random.Random(1000 * seed + iteration)
    for name in ("__0_0.distcp", "__1_0.distcp", "base/config.json"):
        (folder / name).write_bytes(generator.randbytes(SIZE_BYTES))
    (folder / "empty").touch()
    (folder / "checkpoint.json").write_text(json.dumps({"iteration": iteration}))
    manifest.seal(folder)
    folders.mark_latest(save, iteration)
    return folder


@pytest.fixture(params=["file", "memory"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Remote]:
    url = f"file://{tmp_path}/remote" if request.param == "file" else f"memory://{tmp_path.name}/run"
    yield open_remote(url)
    if request.param == "memory":
        open_remote(url)._filesystem.store.clear()


def objects_of(remote: Remote) -> dict[str, bytes]:
    root = remote._filesystem._strip_protocol(remote.url)
    return {path.removeprefix(f"{root}/"): remote._filesystem.cat_file(path)
            for path in remote._filesystem.find(root)}  # fmt: skip


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "nothing came in 20 s"
        time.sleep(0.005)


class Away:
    """Has a remote's uploads fail, or wait, until they are let through."""

    def __init__(self, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: Exception | None = None
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.attempts: list[str] = []
        put = remote.put

        def put_or_not(file: Path, name: str) -> None:
            self.attempts.append(name)
            if self.error is not None:
                raise self.error
            self.may_go_on.wait(20)
            put(file, name)

        monkeypatch.setattr(remote, "put", put_or_not)


@pytest.fixture
def away(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> Away:
    return Away(remote, monkeypatch)


def test_what_is_uploaded_comes_back_the_same(remote: Remote, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "save", 8)
    said: list[str] = []
    uploader = Uploader(remote, said.append)
    uploader.add(folder)
    assert uploader.finish(20) == []
    objects = objects_of(remote)
    assert damage_in(objects, "global_step8") == []
    assert objects["latest"] == b"global_step8\n"
    assert [line.split(" (")[0] for line in said] == [f"uploaded {remote.url}/global_step8"]
    for place in (remote.url, f"{remote.url}/global_step8"):
        with download.local_copy(place) as copy:
            files = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            there = copy / "global_step8"
            assert {p.relative_to(there): p.read_bytes() for p in there.rglob("*") if p.is_file()} == files
            assert folders.find(copy) == there
    assert not copy.exists()


def test_the_newest_takes_the_place_of_what_waits_and_milestones_stay(
    remote: Remote, away: Away, tmp_path: Path
) -> None:
    save = tmp_path / "save"
    said: list[str] = []
    away.may_go_on.clear()
    uploader = Uploader(remote, said.append)
    uploader.add(checkpoint(save, 1))
    wait_for(lambda: bool(away.attempts))
    assert uploader.in_progress == save / "global_step1"
    for step in (2, 3, 4, 5):
        uploader.add(checkpoint(save, step), may_be_skipped=step != 3)
    assert uploader.not_uploaded() == ["global_step1", "global_step3", "global_step5"]
    away.may_go_on.set()
    assert uploader.finish(20) == []
    assert remote.iterations() == [1, 3, 5]
    assert remote.latest() == 5
    assert "global_step2 is not uploaded: global_step3 is newer and takes its place" in said
    assert "global_step4 is not uploaded: global_step5 is newer and takes its place" in said


def test_a_store_that_is_away_is_waited_for_and_said_once(remote: Remote, away: Away, tmp_path: Path) -> None:
    away.error = ConnectionError("nobody is there")
    said: list[str] = []
    uploader = Uploader(remote, said.append, QUICK)
    uploader.add(checkpoint(tmp_path / "save", 4))
    wait_for(lambda: len(away.attempts) > 4)
    assert remote.latest() is None
    assert uploader.not_uploaded() == ["global_step4 (nobody is there)"]
    away.error = None
    assert uploader.finish(20) == []
    assert damage_in(objects_of(remote), "global_step4") == []
    assert [line for line in said if "does not take uploads (nobody is there)" in line] == said[:1]
    assert "takes uploads again, after" in said[1]
    assert len(said) == 3


def test_the_end_waits_no_longer_than_its_limit(remote: Remote, away: Away, tmp_path: Path) -> None:
    away.error = ConnectionError("nobody is there")
    uploader = Uploader(remote, print, QUICK)
    uploader.add(checkpoint(tmp_path / "save", 4))
    started = time.monotonic()
    assert uploader.finish(0.3) == ["global_step4 (nobody is there)"]
    assert 0.2 < time.monotonic() - started < 5
    assert "global_step4/manifest.json" not in objects_of(remote)
    wait_for(lambda: not uploader._thread.is_alive())


def test_what_is_damaged_here_is_not_uploaded_as_good(remote: Remote, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "save", 4)
    said: list[str] = []
    content = bytearray((folder / "__0_0.distcp").read_bytes())
    content[7] ^= 1
    (folder / "__0_0.distcp").write_bytes(content)
    uploader = Uploader(remote, said.append)
    uploader.add(folder)
    [left] = uploader.finish(20)
    assert "global_step4 (the file __0_0.distcp is not what was written" in left
    assert said[0].startswith(f"warning: global_step4 is not uploaded to {remote.url}: the file __0_0.distcp")
    assert objects_of(remote) == {}


def test_while_a_checkpoint_is_replaced_latest_names_an_older_one(
    remote: Remote, away: Away, tmp_path: Path
) -> None:
    """After somebody went back, the same iteration is written again with other bytes of the same size."""
    first, second = tmp_path / "first", tmp_path / "second"
    uploader = Uploader(remote, print)
    for step in (4, 8):
        uploader.add(checkpoint(first, step), may_be_skipped=False)
    assert uploader.finish(20) == []
    assert remote.latest() == 8
    away.attempts.clear()
    away.may_go_on.clear()
    uploader = Uploader(remote, print)
    uploader.add(checkpoint(second, 8, seed=1))
    wait_for(lambda: bool(away.attempts))
    assert remote.latest() == 4
    assert download.whole_iterations(remote) == [4]
    away.may_go_on.set()
    assert uploader.finish(20) == []
    assert remote.latest() == 8
    assert remote.manifest_of(8) == (second / "global_step8" / "manifest.json").read_bytes()
    assert damage_in(objects_of(remote), "global_step8") == []


def test_a_folder_that_vanishes_during_its_upload_leaves_nothing_whole(
    remote: Remote, away: Away, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "save", 4)
    away.may_go_on.clear()
    uploader = Uploader(remote, print)
    uploader.add(folder)
    wait_for(lambda: bool(away.attempts))
    folder.rename(tmp_path / "gone")
    (tmp_path / "save" / "global_step4").mkdir()
    (tmp_path / "gone" / "__0_0.distcp").rename(folder / "__0_0.distcp")  # the one that is being sent
    away.may_go_on.set()
    [left] = uploader.finish(20)
    assert "was removed or changed while it was uploaded" in left
    assert download.whole_iterations(remote) == []
    assert remote.latest() is None


def test_old_checkpoints_go_but_not_the_one_that_is_being_uploaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save = tmp_path / "save"
    config = CheckpointConfig(save=save, keep_last_n_checkpoints=1, s3_path=f"file://{tmp_path}/remote")
    keeper = Keeper(config, True, print)
    assert keeper._remote is not None
    away = Away(keeper._remote, monkeypatch)
    away.may_go_on.clear()
    keeper.saved(checkpoint(save, 1))
    wait_for(lambda: bool(away.attempts))
    for step in (2, 3, 4):
        keeper.saved(checkpoint(save, step))
        assert folders.iterations_in(save) == [1, step]
    away.may_go_on.set()
    keeper.finish(lambda: False)
    assert folders.iterations_in(save) == [4]
    assert keeper._remote.iterations() == [1, 4]


def uploaded(remote: Remote, save: Path, iteration: int = 4) -> Path:
    folder = checkpoint(save, iteration)
    uploader = Uploader(remote, print)
    uploader.add(folder)
    assert uploader.finish(20) == []
    return folder


def flip(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


HARMS: dict[str, Callable[[bytes], bytes | None]] = {
    "is not what was written": flip,
    "bytes": lambda content: content[:-1],
    "is missing": lambda content: None,
}


@pytest.mark.parametrize("words", HARMS)
def test_harm_to_any_object_is_found_and_named(remote: Remote, tmp_path: Path, words: str) -> None:
    folder = uploaded(remote, tmp_path / "save")
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size):
        name = path.relative_to(folder).as_posix()
        whole = remote.read(f"global_step4/{name}")
        harmed = HARMS[words](whole)
        remote.remove(f"global_step4/{name}")
        if harmed is not None:
            remote._filesystem.pipe_file(remote._path(f"global_step4/{name}"), harmed)
        with pytest.raises(UserError) as refusal, download.local_copy(remote.url):
            pass
        said = str(refusal.value)
        assert said.startswith(f"load={remote.url}/global_step4: cannot be read (the file {name} ")
        assert words in said or name == "manifest.json"
        remote._filesystem.pipe_file(remote._path(f"global_step4/{name}"), whole)
    with download.local_copy(remote.url) as copy:
        assert manifest.verify(copy / "global_step4", contents=True).files == 5


def test_a_download_that_was_cut_short_goes_on_where_it_ended(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_CHUNK_BYTES", 10_000)
    folder, here = uploaded(remote, tmp_path / "save"), tmp_path / "here"
    partial = download.begin(remote, 4, here)
    assert folders.iterations_in(here) == []
    asked: list[tuple[str, int]] = []
    read_range = remote.read_range

    def breaks(name: str, start: int, end: int) -> bytes:
        if start >= 30_000:
            raise PermissionError("the token has expired")
        asked.append((name, start))
        return read_range(name, start, end)

    monkeypatch.setattr(remote, "read_range", breaks)
    with pytest.raises(UserError, match="does not answer .the token has expired"):
        download.fetch(remote, 4, partial)
    assert folders.find(here) is None, "half of it is taken for nothing"
    before = set(asked)
    assert before
    # What lies there half may be wrong too: it is found, and fetched anew.
    wrong = partial / ".__0_0.distcp.part"
    if wrong.is_file():
        wrong.write_bytes(flip(wrong.read_bytes()))
    asked.clear()

    def answers(name: str, start: int, end: int) -> bytes:
        asked.append((name, start))
        return read_range(name, start, end)

    monkeypatch.setattr(remote, "read_range", answers)
    assert download.begin(remote, 4, here) == partial
    for part in (0, 1):
        download.fetch(remote, 4, partial, part, 2)
    assert ("global_step4/__1_0.distcp", 0) not in asked
    assert ("global_step4/__1_0.distcp", 30_000) in asked
    final = download.complete(partial, 4)
    assert folders.find(here) == final
    assert (final / "__0_0.distcp").read_bytes() == (folder / "__0_0.distcp").read_bytes()
    assert manifest.verify(final, contents=True).files == 5
    assert {p.name for p in final.rglob("*")} == {p.name for p in folder.rglob("*")}


def test_half_of_another_checkpoint_is_not_gone_on_with(remote: Remote, tmp_path: Path) -> None:
    uploaded(remote, tmp_path / "save")
    stale = tmp_path / "here" / folders.download_name(4)
    stale.mkdir(parents=True)
    (stale / "manifest.json").write_text("of another")
    (stale / "__9_0.distcp").touch()
    partial = download.begin(remote, 4, tmp_path / "here")
    assert partial == stale
    assert [path.name for path in partial.iterdir()] == ["manifest.json"]


def test_no_room_is_said_before_anything_is_fetched(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded(remote, tmp_path / "save")

    class Usage:
        free = 1000

    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(UserError, match="0 MB are free, and .*global_step4 needs 0 MB more"):
        download.begin(remote, 4, tmp_path / "here")


def test_pauses_grow_and_are_not_all_alike() -> None:
    pauses = [pause for pause, _ in zip(Backoff(1, 30).pauses(), range(40), strict=False)]
    for attempt, pause in enumerate(pauses):
        assert min(30, 2**attempt) / 2 <= pause <= min(30, 2**attempt)
    assert len(set(pauses)) == 40
    state = random.getstate()
    next(Backoff().pauses())
    assert random.getstate() == state


def test_what_waiting_does_not_mend_is_not_tried_again() -> None:
    calls: list[int] = []

    def fail(error: Exception) -> None:
        calls.append(1)
        raise error

    for error, attempts in ((PermissionError("no"), 1), (ConnectionError("away"), 3)):
        calls.clear()
        with pytest.raises(type(error)):
            try_for(0.1, functools.partial(fail, error), QUICK)
        assert len(calls) == attempts if attempts == 1 else len(calls) >= attempts


def test_credentials_are_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "AWS_SECRET_ACCESS_KEY", "hush-hush")
    assert in_words(OSError("denied for hush-hush\nmore")) == "denied for …"
    assert in_words(ValueError()) == "ValueError"


def test_urls() -> None:
    assert split_url("s3://bucket/run/") == ("s3://bucket/run", None)
    assert split_url("s3://bucket/run/global_step12") == ("s3://bucket/run", 12)


@pytest.mark.parametrize(("url", "words"), [
    ("nonsense://bucket/run", "fsspec knows no protocol nonsense"),
    ("s3://bucket/run", "pip install -r requirements/requirements-s3.txt"),
])  # fmt: skip
def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch, url: str, words: str) -> None:
    import fsspec

    def without_s3fs(protocol: str) -> Any:
        if protocol == "s3":
            raise ImportError("Install s3fs to access S3")
        return known(protocol)

    known = fsspec.get_filesystem_class
    monkeypatch.setattr(fsspec, "get_filesystem_class", without_s3fs)
    with pytest.raises(UserError, match=words):
        open_remote(url)
