# SPDX-License-Identifier: Apache-2.0
"""A stage: the same bytes for any number of workers and after any kill, exact counts, nothing mixed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from megatron.neox_arguments.errors import UserError
from tests.tools.proof_pile_2.corpora import (
    AtLeast,
    Fails,
    Halves,
    kill_at_random,
    read_lines,
    sentences,
    stage,
    tree,
    write_lines,
)
from tools.proof_pile_2.outputs import finished_report
from tools.proof_pile_2.pipeline import Document, ReadOptions, Stage, plan_shards, run_stage

ROOT = Path(__file__).resolve().parents[3]


def inputs(folder: Path, files: int = 3, documents: int = 30) -> list[Path]:
    return [write_lines(folder / f"{seed}.jsonl", sentences(seed, documents), lang=f"l{seed % 2}")
            for seed in range(files)]  # fmt: skip


def run(stage: Stage, paths: list[Path], output: Path, workers: int = 1, overwrite: bool = False) -> None:
    run_stage(stage, lambda: plan_shards(paths, ReadOptions()), output, workers=workers, overwrite=overwrite)


def test_what_is_kept_and_counted(tmp_path: Path) -> None:
    paths = inputs(tmp_path / "in")
    run(stage(), paths, tmp_path / "out")
    kept = [record for path in sorted((tmp_path / "out/documents").iterdir()) for record in read_lines(path)]
    all_texts = [text for seed in range(3) for text in sentences(seed, 30)]
    assert [record["text"] for record in kept] == [text for text in all_texts if len(text.split()) >= 8]
    assert kept[0]["meta"] == {"n": kept[0]["meta"]["n"], "lang": "l0"}
    report = json.loads((tmp_path / "out/report.json").read_text())
    by_language = Counter(record["meta"]["lang"] for record in kept)
    nbytes = sum(len(record["text"].encode()) for record in kept if record["meta"]["lang"] == "l0")
    assert report["written"]["documents"]["l0"] == [by_language["l0"], nbytes]
    dropped = {
        rule: sum(count[0] for count in languages.values()) for rule, languages in report["dropped"].items()
    }
    assert dropped == {"length: empty": 3, "length: too short": len(all_texts) - 3 - len(kept)}
    assert report["into"]["length"]["l1"][0] == 30
    assert len(report["examples"]["length: too short"]) == 3
    assert "| length: too short | l0 |" in (tmp_path / "out/report.md").read_text()


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path) -> None:
    paths = inputs(tmp_path / "in", files=5)
    run(stage(), paths, tmp_path / "one")
    run(stage(), paths, tmp_path / "three", workers=3)
    assert tree(tmp_path / "one") == tree(tmp_path / "three")


def test_what_is_finished_is_kept_and_what_changed_is_made_anew(tmp_path: Path) -> None:
    paths, output = inputs(tmp_path / "in"), tmp_path / "out"
    run(stage(), paths, output)
    first = {path.name: path.stat().st_mtime_ns for path in (output / "documents").iterdir()}
    write_lines(paths[1], sentences(9, 40))
    (output / "documents/00002.jsonl.zst").write_bytes(b"cut")
    run(stage(), paths, output)
    second = {path.name: path.stat().st_mtime_ns for path in (output / "documents").iterdir()}
    assert [name for name in first if first[name] == second[name]] == ["00000.jsonl.zst"]
    run(stage(), paths, tmp_path / "fresh")
    assert tree(output) == tree(tmp_path / "fresh")


def test_other_options_steps_or_inputs_are_refused(tmp_path: Path) -> None:
    paths, output = inputs(tmp_path / "in"), tmp_path / "out"
    run(stage(seed=1), paths, output)
    before = tree(output)
    with pytest.raises(UserError, match="seed=1 and not 2.*--overwrite"):
        run(stage(seed=2), paths, output)
    with pytest.raises(UserError, match="other versions of length"):
        run(stage(9, seed=1), paths, output)
    with pytest.raises(UserError, match="inputs that are not given any more"):
        run(stage(seed=1), paths[:2], output)
    assert tree(output) == before
    run(stage(9, seed=1), paths[:2], output, overwrite=True)
    run(stage(9, seed=1), paths[:2], tmp_path / "fresh")
    assert tree(output) == tree(tmp_path / "fresh")


def test_a_second_run_is_told(tmp_path: Path) -> None:
    import fcntl

    paths, output = inputs(tmp_path / "in"), tmp_path / "out"
    output.mkdir()
    with open(output / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run is writing"):
            run(stage(), paths, output)


def test_a_document_cut_in_pieces_is_counted_once_going_in(tmp_path: Path) -> None:
    paths = inputs(tmp_path / "in", files=1)
    run(Stage("Test", (AtLeast(8), Halves(), AtLeast(6, "again"))), paths, tmp_path / "out")
    report = finished_report(tmp_path / "out", "00000")
    assert report is not None
    into, out = report.into["halves"]["l0"].documents, report.out_of["halves"]["l0"].documents
    assert (into, out) == (report.out_of["length"]["l0"].documents, 2 * into)
    assert report.into["again"]["l0"].documents == out


def test_a_step_that_fails_on_a_document_is_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", ["let it be", "group", "let"], path="a.py")
    run(Stage("Test", (Fails(),)), [path], tmp_path / "out")
    report = finished_report(tmp_path / "out", "00000")
    assert report is not None
    assert report.broken == {"step 'fails' failed": 2}
    assert report.broken_at[0] == "a.py: step 'fails' failed: ValueError: begins with let"
    assert report.total("written").documents == 1


def test_a_full_disk_ends_with_a_message_and_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, output = inputs(tmp_path / "in", files=2), tmp_path / "out"
    run(stage(), paths, output)
    write_lines(paths[1], sentences(5, 9))
    whole = os.fsync

    def refuse(descriptor: int) -> None:
        if "documents" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match="No space left.*what is finished is kept"):
        run(stage(), paths, output)
    assert not list(output.rglob("*.partial"))
    monkeypatch.undo()
    run(stage(), paths, output)
    run(stage(), paths, tmp_path / "fresh")
    assert tree(output) == tree(tmp_path / "fresh")


PROGRAM = (
    f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    + """
from pathlib import Path
from tests.tools.proof_pile_2.corpora import stage
from tools.proof_pile_2.pipeline import ReadOptions, plan_shards, run_stage
if __name__ == "__main__":
    paths = sorted(Path(sys.argv[1]).iterdir())
    run_stage(stage(), lambda: plan_shards(paths, ReadOptions()), Path(sys.argv[2]), workers=int(sys.argv[3]))
"""
)


STOPS = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"


def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    inputs(tmp_path / "in", files=6, documents=800)
    (tmp_path / "program.py").write_text(PROGRAM)

    def command(output: Path, workers: int) -> list[str]:
        return [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "in"), str(output), str(workers)]

    started = time.monotonic()
    subprocess.run(command(tmp_path / "whole", 1), timeout=120, check=True)
    seconds = time.monotonic() - started
    kill_at_random(command(tmp_path / "killed", 1), tmp_path / "killed", seconds, kills=3, seed=3)
    subprocess.run(command(tmp_path / "killed", 2), timeout=120, check=True)
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def test_asked_to_stop_it_ends_at_once_and_leaves_nothing_half(tmp_path: Path) -> None:
    inputs(tmp_path / "in", files=3, documents=12_000)
    (tmp_path / "program.py").write_text(STOPS + PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "in"), str(tmp_path / "out"), "2"]
    process = subprocess.Popen(command)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("out/documents/.*.partial")) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_text_that_json_cannot_hold_is_broken(tmp_path: Path) -> None:
    class Surrogate:
        name, version = "surrogate", "1"

        def __call__(self, document: Document) -> Document:
            return document.with_text("\ud800")

    path = write_lines(tmp_path / "in.jsonl", ["a"])
    run(Stage("Test", (Surrogate(),)), [path], tmp_path / "out")
    report = finished_report(tmp_path / "out", "00000")
    assert report is not None
    assert report.broken == {"cannot be written as JSON": 1}
