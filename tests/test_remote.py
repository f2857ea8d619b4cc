# SPDX-License-Identifier: Apache-2.0
"""Runs whose checkpoints go to a store and come back from it, through the commands a user types.

S3_OUTAGE_SECONDS=30 in the environment has the store away for that long.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runs import Done, Place, finish, has_done, history_of, latest, make_place, start, wait_until
from tests.stores import Store, damage_in, s3_store
from tests.test_interruption import leftovers, numbers

pytestmark = pytest.mark.slow

OUTAGE_SECONDS = float(os.environ.get("S3_OUTAGE_SECONDS", "3"))
STEPS, EVERY = 32, 4
CHANGES: dict[str, Any] = {
    "train_iters": STEPS,
    "checkpoint_factor": EVERY,
    "eval_interval": 32,
    "keep_last_n_checkpoints": 1,
    "checkpoint_milestone_factor": 8,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def whole(place: Place) -> dict[Any, Any]:
    """The numbers of an uninterrupted run that uploads nothing."""
    done = place.train(place.folder / "whole", **CHANGES)
    assert done.status == 0, done.err
    return numbers(history_of(place.folder / "whole" / "save"))


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with s3_store() as opened:
        yield opened


@pytest.fixture(scope="module")
def uploaded(place: Place, store: Store) -> tuple[Path, Done, float]:
    """A run for which the store was away for a while, stopped meanwhile: its folder, its end, the outage."""
    folder = place.folder / "uploaded"
    process = begin(place, store, folder, "run")
    wait_until(lambda: store.latest("run") is not None, process)
    store.gate.shut()
    began = time.monotonic()
    wait_until(has_done(folder / "save", 17), process)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: "waiting at most 30 min for uploads" in (folder / "err.txt").read_text(), process)
    wait_until(lambda: "does not take uploads" in (folder / "err.txt").read_text(), process)
    wait_until(lambda: time.monotonic() > began + OUTAGE_SECONDS, process)
    store.gate.open()
    return folder, finish(process, folder), time.monotonic() - began


def begin(place: Place, store: Store, folder: Path, run: str, **changes: Any):  # type: ignore[no-untyped-def]
    arguments = place.arguments(folder, **{**CHANGES, "s3_path": f"s3://bucket/{run}", **changes})
    return start(folder, *arguments, environment=store.environment)


def train(place: Place, store: Store, folder: Path, run: str, **changes: Any) -> Done:
    return finish(begin(place, store, folder, run, **changes), folder)


def copy_run(store: Store, source: str, target: str) -> None:
    for name, content in store.names(source).items():
        store.files.pipe_file(f"bucket/{target}/{name}", content)


def milestone_before(newest: str) -> int:
    """The step of the milestone that stands before the newest checkpoint; the run may stop at any step."""
    last, factor = int(newest.removeprefix("global_step")), CHANGES["checkpoint_milestone_factor"]
    return max(range(factor, last, factor))


def test_a_store_that_was_away_has_all_in_the_end(store: Store, uploaded: tuple[Path, Done, float]) -> None:
    folder, done, seconds = uploaded
    save = folder / "save"
    assert done.status == 128 + signal.SIGINT, done.err
    assert "s3://bucket/run does not take uploads" in done.err
    assert "s3://bucket/run takes uploads again, after" in done.err
    objects = store.names("run")
    newest = latest(save)
    assert store.latest("run") == newest
    last = int(newest.removeprefix("global_step"))
    assert last >= 17
    milestones = [f"global_step{step}" for step in range(8, last + 1, 8)]
    for step in {*milestones, newest}:
        assert damage_in(objects, step) == []
        local = {
            f"{step}/{p.relative_to(save / step)}": p.read_bytes()
            for p in (save / step).rglob("*")
            if p.is_file()
        }
        assert {name: content for name, content in objects.items() if name.startswith(f"{step}/")} == local
    # The disk holds what it would without uploads: milestones, and the newest of the others.
    factor = CHANGES["checkpoint_factor"]
    others = [step for step in {last, *range(factor, last, factor)} if step % 8]
    kept = {*milestones, newest, f"global_step{max(others)}"}
    assert sorted(path.name for path in save.glob("global_step*")) == sorted(kept)
    assert "testing-secret" not in done.err + done.out
    for path in folder.rglob("*"):
        assert not path.is_file() or b"testing-secret" not in path.read_bytes()
    print(f"the store was away for {seconds:.1f} s; whole there: {', '.join(sorted({*milestones, newest}))}")


def test_a_run_goes_on_from_the_url_alone(
    place: Place, store: Store, uploaded: tuple[Path, Done, float], whole: dict[Any, Any]
) -> None:
    newest = latest(uploaded[0] / "save")
    copy_run(store, "run", "resumed")
    folder = place.folder / "resumed"
    done = train(place, store, folder, "resumed")
    assert done.status == 0, done.err
    said = f"resuming s3://bucket/resumed/{newest}: {folder / 'save'} holds no checkpoint, `s3_path` does"
    assert said in done.err
    assert f"downloaded s3://bucket/resumed/{newest} to {folder / 'save' / newest}" in done.err
    ours, first = numbers(history_of(folder / "save")), int(newest.removeprefix("global_step")) + 1
    assert min(step for step in ours if isinstance(step, int)) == first
    assert ours == {key: whole[key] for key in ours}
    assert set(range(first, STEPS + 1)) <= set(ours)
    assert store.latest("resumed") == f"global_step{STEPS}"
    assert damage_in(store.names("resumed"), f"global_step{STEPS}") == []
    assert leftovers(folder / "save") == []


@pytest.mark.parametrize("harm", ["flipped", "missing"])
def test_damage_at_the_store_is_named_and_the_one_before_used(
    place: Place, store: Store, uploaded: tuple[Path, Done, float], harm: str
) -> None:
    newest, run = latest(uploaded[0] / "save"), f"damaged_{harm}"
    copy_run(store, "run", run)
    if harm == "flipped":
        store.flip(f"{run}/{newest}/__1_0.distcp")
        words = "the file __1_0.distcp is not what was written: its sha256 differs"
    else:
        store.files.rm_file(f"bucket/{run}/{newest}/__1_0.distcp")
        words = "the file __1_0.distcp is missing"
    folder = place.folder / run
    done = train(place, store, folder, run)
    assert done.status == 0, done.err
    older = milestone_before(newest)
    assert f"warning: s3://bucket/{run}/{newest} is damaged and not used: {words}" in done.err
    assert (
        f"warning: going on from s3://bucket/{run}/global_step{older}, the newest good checkpoint" in done.err
    )
    assert min(history_of(folder / "save").steps) == older + 1
    assert store.latest(run) == f"global_step{STEPS}"
    assert leftovers(folder / "save") == []


def test_another_runs_url_is_loaded_and_its_damage_refused(
    place: Place, store: Store, uploaded: tuple[Path, Done, float], whole: dict[Any, Any]
) -> None:
    newest = latest(uploaded[0] / "save")
    older = milestone_before(newest)
    folder = place.folder / "elsewhere"
    from_url = {"load": "s3://bucket/run", "finetune": False, "s3_path": None}
    done = train(place, store, folder, "none", **from_url)
    assert done.status == 0, done.err
    ours = numbers(history_of(folder / "save"))
    assert ours == {key: whole[key] for key in ours}
    assert latest(folder / "save") == f"global_step{STEPS}"
    assert (folder / "save" / "downloads").is_dir()
    again = train(place, store, folder, "none", **from_url)
    assert "nothing to do" in again.err
    assert not (folder / "save" / "downloads").exists(), "this run has a checkpoint of its own"
    copy_run(store, "run", "broken")
    store.flip(f"broken/{newest}/common.pt")
    refused = train(
        place, store, place.folder / "refused", "none", **{**from_url, "load": "s3://bucket/broken"}
    )
    assert refused.status == 2
    [error] = refused.errors
    assert f"load=s3://bucket/broken/{newest}: cannot be read (the file common.pt is not what was" in error
    assert f"in a run with --set load=s3://bucket/broken --set iteration={older}" in error


def test_a_run_goes_back_to_what_it_uploaded(
    place: Place, store: Store, uploaded: tuple[Path, Done, float], whole: dict[Any, Any]
) -> None:
    copy_run(store, "run", "back")
    folder = place.folder / "back"
    done = train(place, store, folder, "back", load="s3://bucket/back", iteration=8, finetune=False)
    assert done.status == 0, done.err
    assert "going back to s3://bucket/back/global_step8; checkpoints after it are replaced" in done.err
    assert "warning: s3://bucket/back has a later checkpoint" in done.err
    ours = numbers(history_of(folder / "save"))
    assert min(step for step in ours if isinstance(step, int)) == 9
    assert ours == {key: whole[key] for key in ours}
    assert store.latest("back") == f"global_step{STEPS}"
    assert damage_in(store.names("back"), "global_step16") == []


def test_killed_while_it_uploads_the_store_never_names_a_half(place: Place, store: Store) -> None:
    folder, run = place.folder / "killed", "killed"
    process = begin(place, store, folder, run)
    wait_until(lambda: store.latest(run) is not None, process)
    store.gate.pause_seconds = 0.3
    first = store.latest(run)

    def is_amid_an_upload() -> bool:
        names = {name.rpartition("/")[2] for name in store.files.ls(f"bucket/{run}", detail=False)}
        begun = {name for name in names if name.startswith("global_step")}
        return any(not store.files.exists(f"bucket/{run}/{name}/manifest.json") for name in begun)

    wait_until(is_amid_an_upload, process)
    process.send_signal(signal.SIGKILL)
    finish(process, folder)
    time.sleep(1)  # for what was under way
    store.gate.pause_seconds = 0
    objects, named = store.names(run), store.latest(run)
    assert named is not None
    assert damage_in(objects, named) == []
    halves = {
        name.partition("/")[0]
        for name in objects
        if "/" in name and damage_in(objects, name.partition("/")[0])
    }
    assert halves, f"nothing was half uploaded ({first}, {named})"
    again = train(place, store, folder, run)
    assert again.status == 0, again.err
    objects = store.names(run)
    assert store.latest(run) == f"global_step{STEPS}"
    for step in [f"global_step{step}" for step in range(8, STEPS + 1, 8)]:
        assert damage_in(objects, step) == []


def test_what_was_not_uploaded_is_said_and_comes_with_the_next_start(place: Place, store: Store) -> None:
    folder = place.folder / "late"
    changes = {"train_iters": 16, "upload_wait_minutes": 0, "checkpoint_milestone_factor": None}
    store.gate.last_words = b"/late/global_step16/"  # the uploads may be slower than the run, or faster
    done = train(place, store, folder, "late", **changes)
    store.gate.open()
    assert done.status == 2
    [error] = done.errors
    assert "s3_path=s3://bucket/late: not uploaded: " in error
    assert "global_step16" in error
    assert "the same command uploads what is missing" in error
    again = train(place, store, folder, "late", **{**changes, "upload_wait_minutes": 5})
    assert again.status == 0, again.err
    assert "nothing to do" in again.err
    assert store.latest("late") == "global_step16"
    assert damage_in(store.names("late"), "global_step16") == []


def test_a_bucket_that_is_not_there_is_said_before_training(place: Place, store: Store) -> None:
    done = train(place, store, place.folder / "nowhere", "none", s3_path="s3://no-such-bucket/run")
    assert done.status == 2
    [error] = done.errors
    assert error.startswith("error: s3_path=s3://no-such-bucket/run: cannot be written to (")
    assert not (place.folder / "nowhere" / "save" / "logs").exists()
    shutil.rmtree(place.folder / "nowhere")


def test_the_tools_read_a_url(place: Place, store: Store, uploaded: tuple[Path, Done, float]) -> None:
    folder = place.folder / "tools"
    export = start(
        folder, "tools/convert_checkpoint.py", "neox-to-hf", "--input", "s3://bucket/run", "--output",
        folder / "hf", environment=store.environment,
    )  # fmt: skip
    done = finish(export, folder)
    assert done.status == 0, done.err
    assert (folder / "hf" / "model.safetensors").is_file()
    compare = start(
        folder, "tools/inspect_checkpoint.py", "s3://bucket/run/global_step8", "s3://bucket/run",
        "--iteration", 8, environment=store.environment,
    )  # fmt: skip
    done = finish(compare, folder)
    assert "tensors DIFFER" in done.out
    assert done.status == 1, done.err
    missing = start(
        folder,
        "tools/inspect_checkpoint.py",
        "s3://bucket/run",
        "--iteration",
        7,
        environment=store.environment,
    )
    done = finish(missing, folder)
    assert done.status == 2
    assert "iteration=7: s3://bucket/run has no global_step7; it has" in done.err
