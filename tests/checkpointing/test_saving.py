# SPDX-License-Identifier: Apache-2.0
"""Saving in the background: the same checkpoint, of the moment it was begun, and nothing lost at an end."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.runs import Place, call_on_ranks, history_of, latest, make_place


def tensors_digest(folder: Path) -> str:
    """A digest of all tensors of a checkpoint, weights and optimizer, whatever files they lie in."""
    import torch

    from megatron.checkpointing import tensors

    digest = hashlib.sha256()
    for name, lazy in sorted(tensors.open_model(folder).items()):
        tensor = lazy.read()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_slowly(folder: str) -> dict[str, Any]:
    """Saves after one step, waiting and in the background while two more are taken; then once more."""
    from megatron.backend import initialize
    from megatron.checkpointing import saving
    from megatron.model import build
    from megatron.trainer.adam import give_to_megatron_core
    from megatron.trainer.setup import TrainingState, wrap
    from megatron.trainer.step import compute_gradients, update_weights
    from tests.llamas import run_config
    from tests.trainer.curves import micro_batches, record_at

    cfg = run_config(seq_length=64)
    backend = initialize(cfg.parallel, seed=1)
    give_to_megatron_core()
    built = build(cfg, backend, 512, 512)
    state = TrainingState(built, wrap(cfg, built))
    batches = micro_batches(0, backend.data_parallel_size, backend.data_parallel_rank)

    def step() -> None:
        compute_gradients(state, cfg, backend, batches)
        update_weights(state, cfg, lr=1e-2)

    step()
    record = record_at(cfg, backend, 1)
    at_once = saving.save(Path(folder, "waiting"), state.trainable, record, backend, None, [])
    may_write = threading.Event()
    write = saving._write

    def write_when_allowed(*arguments: Any) -> Any:
        may_write.wait(60)
        return write(*arguments)

    saving._write = write_when_allowed  # type: ignore[assignment]
    saver = saving.Saver(Path(folder, "going_on"), state.trainable, backend, in_background=True)
    found: dict[str, Any] = {"readiness": []}
    for _ in range(2):  # the second time into the memory of the first
        may_write.clear()
        saver.begin(record, None, [])
        found["readiness"].append(saver.is_ready())
        step()
        step()
        if backend.rank == 0:
            found["before"] = [path.name for path in Path(folder, "going_on").iterdir()]
            may_write.set()
        found["readiness"].append(saver.is_ready())  # rank 1 holds it up
        may_write.set()
        begun = saver._begun
        assert begun is not None
        assert begun.thread is not None
        begun.thread.join()
        found["readiness"].append(saver.is_ready())
        later = saver.finish()
        found.setdefault("saved", []).append(str(later))
        found.setdefault("digests", []).append(tensors_digest(later))
        record = record_at(cfg, backend, 3)
    found["at once"] = tensors_digest(at_once)
    found["third"] = tensors_digest(
        saving.save(Path(folder, "third"), state.trainable, record, backend, None, [])
    )
    return found


def test_a_checkpoint_from_the_background_is_of_the_moment_it_was_begun(tmp_path: Path) -> None:
    ranks = call_on_ranks(tmp_path / "ranks", save_slowly, 2, str(tmp_path))
    for found in ranks:
        assert found["digests"][0] == found["at once"]
        assert found["digests"][1] not in (found["at once"], found["third"])
        assert found["readiness"] == [False, False, True] * 2
    saved = Path(ranks[0]["saved"][0])
    assert saved == tmp_path / "going_on" / "global_step1"
    assert sorted(ranks[0]["before"]) == [".global_step3.unfinished", "global_step1", "latest"]
    theirs = {path.name: path.stat().st_size for path in (tmp_path / "waiting" / "global_step1").iterdir()}
    ours = {path.name: path.stat().st_size for path in saved.iterdir()}
    assert ours.keys() == theirs.keys()
    assert ours["__0_0.distcp"] == theirs["__0_0.distcp"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


def test_a_run_that_saves_in_the_background_is_the_same_run(place: Place) -> None:
    changes: dict[str, Any] = {"checkpoint_factor": 2, "train_iters": 8}
    saves = []
    for name, in_background in (("waiting", False), ("going_on", True)):
        done = place.train(place.folder / name, async_save=in_background, **changes)
        assert done.status == 0, done.err
        saves.append(place.folder / name / "save")
    waiting, going_on = saves
    for save in saves:
        assert sorted(entry.name for entry in save.glob("*global_step*")) == [
            f"global_step{step}" for step in (2, 4, 6, 8)
        ]
        assert latest(save) == "global_step8"
        steps = [event["iteration"] for event in history_of(save).events if event["kind"] == "checkpoint"]
        assert steps == [2, 4, 6, 8]
    for step in (2, 4, 6, 8):
        name = f"global_step{step}"
        assert tensors_digest(waiting / name) == tensors_digest(going_on / name)


def test_milestones_are_saved_too_and_stay(place: Place) -> None:
    folder = place.folder / "milestones"
    done = place.train(
        folder, ranks=1, async_save=True, checkpoint_factor=2, train_iters=10, keep_last_n_checkpoints=1,
        checkpoint_milestone_factor=3, extra_save_iters=[4, 7],
    )  # fmt: skip
    assert done.status == 0, done.err
    kept = sorted(entry.name for entry in (folder / "save").glob("*global_step*"))
    assert kept == sorted(f"global_step{step}" for step in (3, 4, 6, 7, 9, 10)), "not 2 and 8"
