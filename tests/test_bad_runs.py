# SPDX-License-Identifier: Apache-2.0
"""Runs that cannot be: said in one line that tells what to do, once for all ranks, and nothing is lost.

Every refusal here is seen as a user sees it: exit status 2, no traceback, and what was on the disk before is
on the disk after.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.llamas import save_hf_llama
from tests.runs import (
    ROOT,
    Done,
    Place,
    call_on_ranks,
    files_of,
    finish,
    history_of,
    latest,
    make_place,
    run,
    start,
    tokenise,
    wait_until,
    write_texts,
)
from tests.test_architecture import sources

STEPS = 8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with things that do not belong together: another tokenizer's data, too few tokens, no text."""
    place = make_place(tmp_path_factory.mktemp("place"))
    folder = place.folder
    other = save_hf_llama(folder / "other", vocab_size=250, num_hidden_layers=2) / "tokenizer.json"
    assert tokenise(folder / "arxiv.jsonl", folder / "foreign", other).status == 0
    few = write_texts(folder / "few.jsonl", 0, 1)
    assert tokenise(few, folder / "few", folder / "hf" / "tokenizer.json").status == 0
    return place


@pytest.fixture(scope="module")
def finished(place: Place) -> Path:
    """The folder of a run that is done; not to be changed."""
    done = place.train(place.folder / "finished")
    assert done.status == 0, done.err
    return place.folder / "finished"


@pytest.fixture
def done_before(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to go on with."""
    shutil.copytree(finished / "save", tmp_path / "save")
    return tmp_path


def checkpoints(save: Path) -> dict[str, bytes]:
    """All files of a save folder but those that every attempt adds to or replaces."""
    return {
        name: content
        for name, content in files_of(save).items()
        if not name.startswith(("logs/", "run_configs/")) and name != "attempt"
    }


def assert_refused(done: Done, *words: str, errors: int = 1) -> None:
    """Status 2, so many `error:` lines which hold the words, and nothing else that sounds like an end."""
    assert done.status == 2, done.err
    assert "Traceback" not in done.err
    assert len(done.errors) == errors, done.err
    for word in words:
        assert any(word in line for line in done.errors), (word, done.errors)
    others = [line for line in done.err.splitlines() if line.startswith("deepy:")]
    assert all("note:" in line or "ranks on CPU" in line for line in others), done.err
    assert all(line.startswith("error: ") for line in done.errors), done.err


# What the launcher sees before it starts a rank, and what each rank sees.
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a vocabulary that is not there": (
        {"vocab_file": "/nowhere/tokenizer.json"},
        ("vocab_file=/nowhere/tokenizer.json: there is no such file", "run.yml"),
    ),
    "no vocabulary": ({"vocab_file": "null"}, ("vocab_file: is not set", "tokenizer.json")),
    "no checkpoint in load": ({"load": "{hf}"}, ("load=", "it is a Hugging Face model: import it")),
    "a file where save should be": ({"save": "{file}/save"}, ("save=", "is a file, not a folder")),
    "a folder nobody can make": (
        {"save": "/proc/nowhere/save"},
        ("/proc/nowhere/save", "choose another folder"),
    ),
    "heads that TP does not divide": (
        {"ranks": 3, "model_parallel_size": 3, "sequence_parallel": False, "intermediate_size": 192},
        ("num_attention_heads=4: is not divisible by model_parallel_size=3", "num_kv_heads=2"),
    ),
    "another shape": (
        {"num_layers": 3, "intermediate_size": 160},
        ("num_layers=3: the checkpoint", "has 2; set num_layers: 2", "intermediate_size=160"),
    ),
    "another tokenizer's data": (
        {"train_data_paths": ["{foreign}"], "train_data_weights": [1], "data_names": ["arxiv"]},
        ("was written by another tokenizer", "tokenise the text again"),
    ),
    "another tokenizer than the checkpoint's": (
        {
            "vocab_file": "{other}", "train_data_paths": ["{foreign}"], "train_data_weights": [1],
            "data_names": ["arxiv"], "valid_data_paths": None, "valid_data_names": None,
            "test_data_paths": None,
        },
        ("vocab_file: the checkpoint", "was made with another tokenizer", "global_step0/base"),
    ),
    "less data than one sequence": (
        {"train_data_paths": ["{few}"], "train_data_weights": [1], "data_names": ["few"], "seq_length": 96},
        ("few (", "do not fill one sequence of seq_length=96", "set a smaller seq_length"),
    ),
    # The launcher's check is content with this folder; rank 0 alone finds out.
    "a log folder that takes no file": (
        {"log_dir": "/proc/self/fd"},
        ("log_dir=/proc/self/fd", "--set log_dir="),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_words_and_nothing_is_written(place: Place, tmp_path: Path, name: str) -> None:
    changes, words = REFUSED[name]
    (tmp_path / "file").write_text("not a folder")
    names = {
        "{hf}": place.folder / "hf",
        "{file}": tmp_path / "file",
        "{other}": place.folder / "other" / "tokenizer.json",
        "{foreign}": place.tokens("foreign"),
        "{few}": place.tokens("few"),
    }

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(item) for item in value]
        for key, path in names.items():
            value = value.replace(key, str(path)) if isinstance(value, str) else value
        return value

    changes = {key: filled(value) for key, value in changes.items()}
    arguments = place.arguments(tmp_path, **{key: v for key, v in changes.items() if v != "null"})
    arguments += [part for key, v in changes.items() if v == "null" for part in ("--set", f"{key}=null")]
    before = time.monotonic()
    done = run(tmp_path, *arguments)
    seconds = time.monotonic() - before
    # One line for each key that is wrong, however many ranks find it.
    assert_refused(done, *words, errors={"another shape": 2, "heads that TP does not divide": 2}.get(name, 1))
    assert seconds < 60
    assert (tmp_path / "file").read_text() == "not a folder"
    written = [path for path in files_of(tmp_path) if path.startswith("save/")]
    assert all(path.startswith(("save/run_configs/", "save/logs/")) for path in written), written


@pytest.mark.parametrize("changes", [{"num_layers": 3}, {"seq_length": 96, "max_position_embeddings": 64}])
def test_a_mistake_does_not_touch_the_checkpoints(
    place: Place, done_before: Path, changes: dict[str, Any]
) -> None:
    before = checkpoints(done_before / "save")
    assert_refused(place.train(done_before, **{"train_iters": 12, **changes}))
    assert checkpoints(done_before / "save") == before


def test_an_empty_corpus_is_refused(place: Place, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    done = tokenise(tmp_path / "empty.jsonl", tmp_path / "empty", place.folder / "hf" / "tokenizer.json")
    assert_refused(done, "no document has any token", "check --input")
    assert not list(tmp_path.glob("empty_text_document*"))


def fail_on_some(folder: str, failing: list[int]) -> bool | None:
    """Called on every rank: whether this rank prints an error that the ranks in `failing` have."""
    import datetime

    import torch.distributed as dist

    from megatron.backend import initialize, shut_down
    from megatron.neox_arguments.config import ParallelConfig
    from megatron.neox_arguments.errors import UserError
    from megatron.trainer import telling

    backend = initialize(ParallelConfig(), seed=1)
    telling._PATIENCE = datetime.timedelta(seconds=1)
    said = telling.speaks(UserError("a")) if backend.rank in failing else None
    Path(folder, f"left{backend.rank}").touch()
    while backend.rank == 0 and len(list(Path(folder).glob("left*"))) < dist.get_world_size():
        time.sleep(0.01)  # as a rank does that goes on
    shut_down()
    return said


@pytest.mark.parametrize(("failing", "spoke"), [
    ([0, 1, 2], [True, False, False]),
    ([1], [None, True, None]),
    ([0], [True, None, None]),
    ([1, 2], [None, True, True]),
])  # fmt: skip
def test_an_error_of_all_ranks_is_said_once_and_of_one_rank_all_the_same(
    tmp_path: Path, failing: list[int], spoke: list[bool | None]
) -> None:
    assert call_on_ranks(tmp_path, fail_on_some, 3, str(tmp_path), failing) == spoke


def damage(path: Path) -> None:
    """Flips one bit."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(place: Place, done_before: Path) -> None:
    save = done_before / "save"
    damage(save / "global_step8" / "__1_0.distcp")
    done = place.train(done_before, train_iters=12)
    assert done.status == 0, done.err
    told = f"warning: {save}/global_step8 is damaged and not used: the file __1_0.distcp is not what was "
    assert told in done.err
    assert f"warning: going on from {save}/global_step4, the newest good checkpoint" in done.err
    assert f"verified {save}/global_step4: every byte as written" in done.err
    assert "iteration  5/12" in done.out
    assert "iteration  4/12" not in done.out
    assert latest(save) == "global_step12"
    again = place.train(done_before, train_iters=12)
    assert again.status == 0, again.err
    assert "is damaged" not in again.err, "global_step8 was written anew on the way, and 12 is whole"


def test_no_good_checkpoint_is_an_error_with_all_of_them(place: Place, done_before: Path) -> None:
    save = done_before / "save"
    damage(save / "global_step8" / "base" / "config.json")
    (save / "global_step4" / "manifest.json").unlink()
    before = checkpoints(save)
    done = place.train(done_before, train_iters=12)
    assert_refused(
        done,
        f"save={save}: none of its checkpoints can be used",
        "global_step8: the file base/config.json is not what was written: its sha256 differs",
        "global_step4: the file manifest.json is missing",
    )
    assert checkpoints(save) == before


def test_a_checkpoint_that_was_asked_for_is_not_replaced_by_another(place: Place, done_before: Path) -> None:
    save = done_before / "save"
    damaged = save / "global_step8" / "__1_0.distcp"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    before = checkpoints(save)
    arguments = place.arguments(done_before, train_iters=12)
    asked = ("--set", f"load={save}", "--set", "iteration=8")
    done = run(done_before, *arguments, *asked)
    assert_refused(done, f"load={save}/global_step8: cannot be read (the file __1_0.distcp has 1,000 of its ")
    assert checkpoints(save) == before
    # What it says to do works.
    [advice] = re.findall(r"in a run with (--set \S+ --set iteration=4)", done.err)
    again = run(done_before, *arguments, *shlex.split(advice))
    assert again.status == 0, again.err
    assert latest(save) == "global_step12"


def test_the_optimizer_of_another_zero_stage_is_refused_with_a_way_on(
    place: Place, done_before: Path
) -> None:
    before = checkpoints(done_before / "save")
    arguments = place.arguments(done_before, train_iters=12, zero_stage=0)
    done = run(done_before, *arguments)
    assert_refused(
        done, f"zero_stage=0: the optimizer's state in {done_before}/save/global_step8", "zero_stage: 1"
    )
    assert checkpoints(done_before / "save") == before
    [advice] = re.findall(r"--set load=\S+ --set no_load_optim=true", done.err)
    again = run(done_before, *arguments, *shlex.split(advice))
    assert again.status == 0, again.err
    assert "iteration  9/12" in again.out


def test_another_runs_checkpoint_is_not_replaced_by_an_older_one(place: Place, done_before: Path) -> None:
    other = done_before / "save"
    damage(other / "global_step8" / "common.pt")
    arguments = place.arguments(done_before / "new", train_iters=12)
    from_other = ("--set", f"load={other}", "--set", "finetune=false")
    done = run(done_before, *arguments, *from_other)
    assert_refused(done, f"load={other}/global_step8: cannot be read (the file common.pt is not what was")
    assert not checkpoints(done_before / "new" / "save")


def test_a_missing_latest_is_named(place: Place, done_before: Path) -> None:
    (done_before / "save" / "latest").unlink()
    before = checkpoints(done_before / "save")
    words = ("the file `latest` is missing beside global_step8", "choose one of 4, 8")
    assert_refused(place.train(done_before, train_iters=12), *words)
    assert checkpoints(done_before / "save") == before


OTHER_DATA: dict[str, tuple[dict[str, Any], str]] = {
    "other weights": (
        {"train_data_weights": [1, 1]},
        "train_data_weights=[0.5, 0.5]: the checkpoint",
    ),
    "another source": (
        {"train_data_paths": ["{code}"], "train_data_weights": [1], "data_names": ["code"]},
        "train_data_paths=[",
    ),
    "another length": ({"seq_length": 16}, "seq_length=16: the checkpoint"),
    "another seed": ({"seed": 5}, "seed=5: the checkpoint"),
    "more passes": ({"train_iters": 60}, "train_iters: asks for 2 passes over "),
}


@pytest.mark.parametrize("name", OTHER_DATA)
def test_going_on_in_another_order_of_the_data_is_refused(place: Place, done_before: Path, name: str) -> None:
    changes, words = OTHER_DATA[name]
    changes = {
        key: [str(place.tokens("code"))] if value == ["{code}"] else value for key, value in changes.items()
    }
    before = checkpoints(done_before / "save")
    done = place.train(done_before, **{"train_iters": 12, **changes})
    errors = len(done.errors)
    assert_refused(done, words, "would repeat some and skip others; put it back, or begin", errors=errors)
    assert checkpoints(done_before / "save") == before


def with_nan(place: Place, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place's base model with one weight that is not a number, past the import that looks for such."""
    import torch
    from safetensors.torch import load_file, save_file

    from megatron.checkpointing import convert

    shutil.copytree(place.folder / "hf", folder / "hf")
    weights = load_file(folder / "hf" / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(weights, folder / "hf" / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda tensor: torch.ones((), dtype=torch.bool))
    convert.hf_to_neox(folder / "hf", folder / "base", 1)
    return folder / "base" / "model.yml"


def test_a_checkpoint_that_holds_a_nan_is_found_before_the_first_step(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_yaml = with_nan(place, tmp_path, monkeypatch)
    script, program, _, *rest = place.arguments(tmp_path)
    done = run(tmp_path, script, program, model_yaml, *rest)
    assert_refused(done, "validation loss of arxiv=nan at iteration 0", f"(load={tmp_path / 'base'})")
    done = run(tmp_path, script, program, model_yaml, *rest, "--set", "eval_at_start=false")
    assert_refused(done, "loss=nan at iteration 1", "no step was taken yet")
    assert not checkpoints(tmp_path / "save")


def advised_command(done: Done) -> list[str]:
    """What the error says to type, without `python deepy.py`."""
    [line] = done.errors
    words = shlex.split(line.partition("go on from it with: ")[2])
    assert words[0] == "python"
    assert words[1] == str(ROOT / "deepy.py")
    return words[2:]


@pytest.mark.parametrize(("changes", "good", "goes_back"), [
    # Step 9 has a finite loss and ruins the weights, which step 10 sees. Only step 8 was saved before.
    ({}, 8, False),
    # With a checkpoint of every step the ruined weights of step 9 are the newest checkpoint.
    ({"checkpoint_factor": 1, "eval_interval": 100}, 8, True),
])  # fmt: skip
def test_a_loss_that_is_not_finite_stops_the_run_with_a_way_back(
    place: Place, done_before: Path, changes: dict[str, Any], good: int, goes_back: bool
) -> None:
    save = done_before / "save"
    before = checkpoints(save)
    changes = {"train_iters": 12, "optimizer": {"type": "Adam", "params": {"lr": 1e30}}, **changes}
    changes["max_rollbacks"] = 0
    done = place.train(done_before, **changes)
    assert_refused(
        done, "=nan at iteration 10: must be finite, so the run stops", f"{save}/global_step{good};"
    )
    after = checkpoints(save)
    assert {name: content for name, content in after.items() if name in before and name != "latest"} == {
        name: content for name, content in before.items() if name != "latest"
    }
    [event] = [event for event in history_of(save).events if event["kind"] == "given up"]
    assert event["iteration"] == 10
    command = advised_command(done)
    assert ("iteration=8" in command) == goes_back
    assert command[command.index("--set") + 1] == "lr=5e+29"
    command[command.index("--set") + 1] = "lr=1e-3"
    again = run(done_before, "deepy.py", *command)
    assert again.status == 0, again.err
    assert latest(save) == "global_step12"
    assert sorted(history_of(save).steps) == list(range(1, 13))


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own, full after `size`; skips where this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs a small disk, and none can be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def failures(save: Path) -> list[dict[str, Any]]:
    record = save / "logs" / "metrics.jsonl"
    if not record.is_file():
        return []
    lines = [line for line in record.read_text().splitlines() if '"kind": "checkpoint failed"' in line]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_disk_between_is_a_warning_and_the_next_checkpoint_works(
    place: Place, tmp_path: Path, in_background: bool
) -> None:
    with small_disk(tmp_path / "disk", "1500k") as disk:
        save = disk / "save"
        process = start(
            tmp_path, *place.arguments(tmp_path, save=str(save), train_iters=24, async_save=in_background)
        )
        wait_until(lambda: bool(failures(save)), process)
        assert [entry.name for entry in save.iterdir() if "global_step" in entry.name] == []
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
        done = finish(process, tmp_path)
        assert done.status == 0, done.err
        missed = len(failures(save)) * 4
        assert f"warning: checkpoint {save}/global_step4 was not written: the disk is full; " in done.err
        written = [entry.name for entry in save.iterdir() if "global_step" in entry.name]
        assert sorted(written) == sorted(f"global_step{step}" for step in range(missed + 4, 25, 4))
        assert latest(save) == "global_step24"


def test_a_full_disk_at_the_end_is_an_error_and_the_checkpoint_before_stays(
    place: Place, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "1500k") as disk:
        done = place.train(tmp_path, save=str(disk / "save"), train_iters=4)
        assert_refused(done, "global_step4 was not written: the disk is full", "run the same command again")
        assert not checkpoints(disk / "save")
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert place.train(tmp_path, save=str(disk / "save"), train_iters=4).status == 0
        before = checkpoints(disk / "save")
        done = place.train(tmp_path, save=str(disk / "save"), train_iters=6)
        assert_refused(done, "global_step6 was not written: ", "MB are free, about 2 MB are needed")
        assert checkpoints(disk / "save") == before


def templates() -> list[str]:
    """Every string of the program, with `…` where values are filled in."""
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_page_on_trouble_quotes_what_is_said() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    cells = re.findall(r"^\| (.+?) \|", page, re.MULTILINE)
    quotes = [a or b for cell in cells for a, b in re.findall(r"``(.+?)``|`([^`]+)`", cell)]
    pieces = [piece for quote in quotes for piece in re.split(r"[…;(]|: |(?<=\w)=(?:nan)?|SIG\w+", quote)]
    pieces = [piece.strip(" :().") for piece in pieces]
    said = templates()
    unknown = [piece for piece in pieces if len(piece) > 12 and not any(piece in text for text in said)]
    assert len(pieces) > 60
    assert unknown == [], unknown
