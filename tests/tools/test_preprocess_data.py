# SPDX-License-Identifier: Apache-2.0
"""The command as it is typed: ids against sentencepiece through megatron-core's reader, kills, bad input."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import sympy
import zstandard

from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.data.token_file import Sidecar, TokenFile
from tests.data.corpora import latex_texts, python_texts, shared_folder, train_sentencepiece

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(ROOT / "tools" / "preprocess_data.py")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(tmp_path_factory.mktemp("spm"))


def arguments(model: Path, prefix: Path, *inputs: Path, workers: int = 1, eod: bool = True) -> list[str]:
    return [
        *COMMAND,
        "--input",
        *map(str, inputs),
        "--output-prefix",
        str(prefix),
        "--tokenizer-type",
        "SPMTokenizer",
        "--vocab-file",
        str(model),
        "--workers",
        str(workers),
        *(["--append-eod"] if eod else []),
    ]


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, **options)


def succeed(command: list[str]) -> str:
    done = run(command)
    assert done.returncode == 0, done.stderr
    return done.stderr


def fail(command: list[str], **options: Any) -> str:
    """A command that fails as a user's error does: status 2, a message, no traceback."""
    done = run(command, **options)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr
    return done.stderr


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def ids_on_disk(prefix: Path) -> list[list[int]]:
    dataset = IndexedDataset(str(prefix))
    return [dataset[number].tolist() for number in range(len(dataset))]


def ids_of(model: Path, texts: list[str], eod: list[int]) -> list[list[int]]:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return [ids + eod for text in texts if (ids := processor.encode(text))]


def test_ids_on_disk_are_those_of_sentencepiece(tmp_path: Path, model: Path) -> None:
    texts = ["", *python_texts(), "x", *latex_texts(), ""]
    source = write_lines(tmp_path / "c.jsonl", texts)
    shown = succeed(arguments(model, tmp_path / "out", source, workers=2))
    assert ids_on_disk(tmp_path / "out_text_document") == ids_of(model, texts, [2])
    empty = texts.count("")
    assert f"{empty} empty documents left out" in shown
    assert re.search(r"tokens of [\d.]+ MB of text in [\d.]+ s \([\d.]+ MB/s\)", shown)
    sidecar = TokenFile.open(tmp_path / "out_text_document").sidecar
    assert isinstance(sidecar, Sidecar)
    assert sidecar.empty_documents == empty
    assert sidecar.documents == len(texts) - empty
    assert sidecar.text_bytes == sum(len(text.encode()) for text in texts)
    assert sidecar.tokenizer.eod_id == 2
    assert sidecar.tokenizer.eod_appended
    assert sidecar.engine.startswith("gigatoken ")
    assert (sidecar.checked_documents > 0, sidecar.reference_documents) == (True, 0)


def test_ids_on_disk_are_those_of_llama_2(tmp_path: Path) -> None:
    model = shared_folder() / "llama2_tokenizer.model"
    folder = Path(sympy.__file__).parent / "ntheory"
    command = arguments(model, tmp_path / "out", folder, workers=2)
    succeed([*command, "--text-suffixes", ".py"])
    files = (Path(place, name) for place, _, names in sorted(os.walk(folder)) for name in sorted(names))
    texts = [path.read_text() for path in files if path.suffix == ".py"]
    assert ids_on_disk(tmp_path / "out_text_document") == ids_of(model, texts, [2])


def test_the_output_does_not_depend_on_the_number_of_workers(tmp_path: Path, model: Path) -> None:
    texts = [*python_texts(), *latex_texts()] * 4  # several chunks
    source = write_lines(tmp_path / "c.jsonl", texts)
    outputs = []
    for workers in (1, 3):
        (tmp_path / str(workers)).mkdir()
        succeed(arguments(model, tmp_path / str(workers) / "out", source, workers=workers))
        outputs.append(files_of(tmp_path / str(workers)))
    assert list(outputs[0]) == ["out_text_document.bin", "out_text_document.idx", "out_text_document.json"]
    assert outputs[0] == outputs[1]


def test_several_inputs_of_several_formats(tmp_path: Path, model: Path) -> None:
    lines = write_lines(tmp_path / "a.jsonl", ["first", "second"]).read_bytes()
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(lines.replace(b"first", b"third")))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.replace(b"first", b"fourth")))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "e.tex").write_text("fifth")
    inputs = [tmp_path / "c.jsonl.gz", tmp_path / "d", tmp_path / "a.jsonl", tmp_path / "b.jsonl.zst"]
    succeed(arguments(model, tmp_path / "out", *inputs))
    texts = ["fourth", "second", "fifth", "first", "second", "third", "second"]
    assert ids_on_disk(tmp_path / "out_text_document") == ids_of(model, texts, [2])
    sidecar = TokenFile.open(tmp_path / "out_text_document").sidecar
    assert sidecar is not None
    assert [Path(source.path).name for source in sidecar.sources] == [
        "c.jsonl.gz",
        "a.jsonl",
        "b.jsonl.zst",
        "d",
    ]


def test_another_key_and_no_end_of_document(tmp_path: Path, model: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"content": "hello"}\n')
    command = [*arguments(model, tmp_path / "out", tmp_path / "c.jsonl", eod=False), "--json-key", "content"]
    assert "warning: without --append-eod" in succeed(command)
    assert ids_on_disk(tmp_path / "out_content_document") == ids_of(model, ["hello"], [])
    command += ["--append-eod", "--eod-token", "unk0", "--overwrite"]
    succeed(command)
    assert ids_on_disk(tmp_path / "out_content_document") == ids_of(model, ["hello"], [0])


def test_a_broken_line_stops_before_anything_is_overwritten(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    succeed(arguments(model, out / "p", write_lines(tmp_path / "good.jsonl", ["good"])))
    before = files_of(out)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "one"}\nnot json\n{"text": "two"}\n')
    command = [*arguments(model, out / "p", bad), "--overwrite"]
    message = fail(command)
    assert f"{bad}:2: is not JSON" in message
    assert "--on-bad-line skip" in message
    assert files_of(out) == before
    shown = succeed([*command, "--on-bad-line", "skip"])
    assert f"skipped: {bad}:2: is not JSON" in shown
    assert "1 broken lines left out" in shown
    assert ids_on_disk(out / "p_text_document") == ids_of(model, ["one", "two"], [2])
    sidecar = TokenFile.open(out / "p_text_document").sidecar
    assert sidecar is not None
    assert sidecar.broken_lines == 1


def test_what_is_refused_before_any_work(tmp_path: Path, model: Path) -> None:
    good = write_lines(tmp_path / "good.jsonl", ["good"])
    assert "does not exist; give the tokenizer" in fail(arguments(tmp_path / "no", tmp_path / "out", good))
    assert "does not exist; give a file or a folder" in fail(
        arguments(model, tmp_path / "o", tmp_path / "no")
    )
    assert "cannot be written" in fail(arguments(model, good / "out", good))
    assert "has no name" in fail(arguments(model, Path("/"), good))
    assert "is not a file or folder but a pipe" in fail(arguments(model, tmp_path / "o", Path("/dev/null")))
    succeed(arguments(model, tmp_path / "out", good))
    other = write_lines(tmp_path / "other.jsonl", ["good"])
    assert "exists; pass --overwrite" in fail(arguments(model, tmp_path / "out", other))
    assert "is below 1" in fail(arguments(model, tmp_path / "new", good, workers=0))


def test_a_finished_job_that_is_started_again_does_nothing(tmp_path: Path, model: Path) -> None:
    """As after a kill between the last rename and the end, or where a scheduler requeues it."""
    source = write_lines(tmp_path / "c.jsonl", ["one", "two"])
    command = arguments(model, tmp_path / "out" / "p", source)
    succeed(command)
    made = files_of(tmp_path / "out")
    (tmp_path / "out" / "p_text_document.parts").mkdir()
    assert "is there, of these inputs and this tokenizer; nothing to do" in succeed(command)
    assert files_of(tmp_path / "out") == made
    assert parts_of(tmp_path / "out") == []
    for changed in (
        arguments(model, tmp_path / "out" / "p", source, eod=False),
        [*command, "--eod-token", "unk0"],
    ):
        assert "exists; pass --overwrite" in fail(changed)
    write_lines(source, ["one", "owt"])  # of the same size
    assert "exists; pass --overwrite" in fail(command)
    assert files_of(tmp_path / "out") == made


def test_an_output_inside_an_input_folder(tmp_path: Path, model: Path) -> None:
    """Or the command would read what it writes, the next time or at once."""
    corpus = tmp_path / "c"
    (corpus / "sub").mkdir(parents=True)
    (corpus / "a.tex").write_text("text")
    (tmp_path / "link").symlink_to(corpus)
    for source, prefix in (
        (corpus, corpus / "p"),
        (corpus, corpus / "sub" / "p"),
        (corpus, tmp_path / "link" / "p"),
        (tmp_path / "link", corpus / "p"),
    ):
        assert f"lies in the --input folder {source}" in fail(arguments(model, prefix, source))
    assert sorted(path.name for path in corpus.rglob("*")) == ["a.tex", "sub"]
    chat = [*arguments(model, corpus / "p", corpus), "--prompt-key", "q"]
    assert "lies in" in fail(chat) or "are read from .jsonl" in fail(chat)
    expected = ids_of(model, ["text"], [2])
    for folder in (".hidden", "own"):
        command = arguments(model, corpus / folder / "p", corpus)
        if folder == "own":
            command += ["--text-suffixes", ".tex"]
        succeed(command)
        assert ids_on_disk(corpus / folder / "p_text_document") == expected
        assert "nothing to do" in succeed(command)


def test_names_that_are_not_utf8_and_keys_with_a_slash(tmp_path: Path, model: Path) -> None:
    name = os.fsdecode(b"bad\xff.jsonl")
    (tmp_path / name).write_text('{"meta/text": "hello"}\n')
    command = [*arguments(model, tmp_path / "out", tmp_path / name), "--json-key", "meta/text"]
    succeed(command)
    assert ids_on_disk(tmp_path / "out_meta_text_document") == ids_of(model, ["hello"], [2])
    sidecar = TokenFile.open(tmp_path / "out_meta_text_document").sidecar
    assert sidecar is not None
    assert sidecar.sources[0].path == f"{tmp_path}/bad\\xff.jsonl"
    assert "nothing to do" in succeed(command)
    assert "must be UTF-8" in fail(arguments(model, tmp_path / os.fsdecode(b"o\xff"), tmp_path / name))
    (tmp_path / "chat.jsonl").write_text('{"a/b": [{"role": "assistant", "content": "x"}]}\n')
    succeed([*arguments(model, tmp_path / "out", tmp_path / "chat.jsonl"), "--chat-key", "a/b"])
    assert (tmp_path / "out_a_b_document_loss_mask.bin").exists()


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": ""}\n'])
def test_an_empty_corpus(tmp_path: Path, model: Path, content: str) -> None:
    (tmp_path / "c.jsonl").write_text(content)
    message = fail(arguments(model, tmp_path / "out", tmp_path / "c.jsonl"))
    assert "no document has any token" in message
    assert list(files_of(tmp_path)) == ["c.jsonl"]


def test_a_disk_that_fills_up(tmp_path: Path, model: Path) -> None:
    """A limit on the size of files is met where a full disk would be: in the middle of writing."""
    out = tmp_path / "out"
    out.mkdir()
    succeed(arguments(model, out / "p", write_lines(tmp_path / "good.jsonl", ["good"])))
    before = files_of(out)
    many = write_lines(tmp_path / "many.jsonl", [*python_texts()] * 8)
    limit = 1 << 20
    message = fail(
        [*arguments(model, out / "p", many), "--overwrite"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert "cannot be written (File too large); nothing that was there has changed" in message
    assert files_of(out) == before


def end_of(process: subprocess.Popen[bytes]) -> None:
    """Wait until the process and all it started are gone."""
    process.wait(timeout=240)
    deadline = time.monotonic() + 20
    while True:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline, "workers outlive the command"
        time.sleep(0.05)


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_at_a_random_moment_leaves_the_old_output(tmp_path: Path, model: Path, seed: int) -> None:
    out = tmp_path / "out"
    out.mkdir()
    old = ["old", "documents"]
    succeed(arguments(model, out / "p", write_lines(tmp_path / "old.jsonl", old)))
    new = [*python_texts()] * 8
    command = [
        *arguments(model, out / "p", write_lines(tmp_path / "new.jsonl", new), workers=2),
        "--overwrite",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    if seed:
        time.sleep(random.Random(seed).uniform(0.0, 1.5))
    else:  # in the middle of writing
        while process.poll() is None and not (
            (out / "p_text_document.bin.partial").exists()
            and (out / "p_text_document.bin.partial").stat().st_size > 0
        ):
            time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    end_of(process)
    TokenFile.open(out / "p_text_document")
    written = ids_on_disk(out / "p_text_document")
    assert written in (ids_of(model, old, [2]), ids_of(model, new, [2]))
    succeed(command)
    assert ids_on_disk(out / "p_text_document") == ids_of(model, new, [2])
    assert len(files_of(out)) == 3


@pytest.mark.parametrize(
    ("number", "status", "delay_seconds"),
    [(signal.SIGINT, 130, 0.1), (signal.SIGINT, 130, 0.4), (signal.SIGTERM, 143, 0.2)],
)
def test_being_stopped_leaves_no_partial_files(
    tmp_path: Path, model: Path, number: int, status: int, delay_seconds: float
) -> None:
    source = write_lines(tmp_path / "new.jsonl", [*python_texts()] * 160)
    command = arguments(model, tmp_path / "out" / "p", source, workers=2)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    while process.poll() is None and not (tmp_path / "out" / "p_text_document.bin.partial").exists():
        time.sleep(0.01)
    time.sleep(delay_seconds)
    if number == signal.SIGINT:  # a terminal sends it to all processes of the command
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, shown = process.communicate(timeout=240)
    end_of(process)
    assert process.returncode == status, shown
    assert b"Traceback" not in shown
    assert files_of(tmp_path / "out") == {}


def write_files(folder: Path, count: int) -> Path:
    """So many files of JSON lines, of each kind; each is a part at least."""
    folder.mkdir()
    texts = [*python_texts(), *latex_texts()]
    for number in range(count):
        lines = write_lines(folder / f"{number:02}.jsonl", texts[number % 7 :: 3])
        if number % 3:
            kind = ("gz", "zst")[number % 3 - 1]
            content = (
                gzip.compress(lines.read_bytes()) if kind == "gz" else zstandard.compress(lines.read_bytes())
            )
            (folder / f"{number:02}.jsonl.{kind}").write_bytes(content)
            lines.unlink()
    return folder


def parts_of(out: Path) -> list[Path]:
    return sorted((out / "p_text_document.parts").glob("*-*.json"))


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, model: Path) -> None:
    """Killed at random moments until it is through: the same bytes as of a run in one piece."""
    source = write_files(tmp_path / "in", 15)
    succeed(arguments(model, tmp_path / "whole" / "p", source))
    out = tmp_path / "out"
    command = arguments(model, out / "p", source, workers=2)
    generator = random.Random(7)
    kept = 0
    for _ in range(3):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
        while process.poll() is None and len(parts_of(out)) < kept + 2:
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.2))
        process.send_signal(generator.choice([signal.SIGKILL, signal.SIGTERM]))
        process.communicate(timeout=240)
        end_of(process)
        if process.returncode == 0 or (out / "p_text_document.bin").exists():
            break
        kept = len(parts_of(out))
    if process.returncode != 0:  # the last kill may have come after the output was complete
        is_done = (out / "p_text_document.bin").exists()
        succeed([*command, "--overwrite"] if is_done else command)
    assert files_of(out) == files_of(tmp_path / "whole")
    assert not (out / "p_text_document.parts").exists()


def interrupted(command: list[str], out: Path, parts: int) -> list[Path]:
    """Run until so many parts are done, and kill it; returns the parts."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and len(parts_of(out)) < parts:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    end_of(process)
    assert process.returncode == -signal.SIGKILL
    return parts_of(out)


@pytest.mark.parametrize("changed", ["nothing", "a file", "the settings", "a part"])
def test_parts_are_kept_as_long_as_their_text_and_settings_are(
    tmp_path: Path, model: Path, changed: str
) -> None:
    """A part that was kept is known by a mark: another id in its place."""
    source, out = write_files(tmp_path / "in", 40), tmp_path / "out"
    command = arguments(model, out / "p", source, workers=1)
    parts = interrupted(command, out, 1)
    for part in parts:
        ids = part.with_suffix(".bin")
        ids.write_bytes(b"\x07\x00" * (ids.stat().st_size // 2))
    if changed == "a file":
        for path in source.iterdir():
            os.utime(path, ns=(1, 1))
    elif changed == "the settings":
        command += ["--eod-token", "<s>"]
    elif changed == "a part":
        for part in parts:
            with open(part.with_suffix(".bin"), "r+b") as file:
                file.truncate(2)
    succeed(command)
    marked = sum(set(ids) == {7} for ids in ids_on_disk(out / "p_text_document"))
    assert (marked > 0) == (changed == "nothing")


def test_a_line_of_ten_million_bytes_and_the_memory_of_workers(tmp_path: Path) -> None:
    """Code with literal tokens, emoji, tabs and NUL; the kernel tells the most memory of every process."""
    model = shared_folder() / "llama2_tokenizer.model"
    piece = "\n".join([*latex_texts(), "a <s> b</s>\t\t\x00 \U0001f600 \u2581", *python_texts()])
    texts = [piece * (10_000_000 // len(piece) + 1), "<s>", "\x00", "short"]
    source = write_lines(tmp_path / "c.jsonl", texts)
    command = arguments(model, tmp_path / "out", source, workers=1)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    peak_kib = 0
    while process.poll() is None:
        for child in [process.pid, *map(int, children.read_text().split())]:
            with contextlib.suppress(OSError, StopIteration, ProcessLookupError):
                status = Path(f"/proc/{child}/status").read_text().splitlines()
                peak_kib = max(peak_kib, int(next(x for x in status if x.startswith("VmHWM")).split()[1]))
        time.sleep(0.01)
    assert process.wait(240) == 0
    assert ids_on_disk(tmp_path / "out_text_document") == ids_of(model, texts, [2])
    assert 0 < peak_kib * 1024 < 300_000_000


def test_shares_fill_one_folder_and_the_last_puts_all_together(tmp_path: Path, model: Path) -> None:
    """Side by side, as tasks of a SLURM array and as ranks; then with a share that was lost."""
    source = write_files(tmp_path / "in", 9)
    succeed(arguments(model, tmp_path / "whole" / "p", source))
    out = tmp_path / "out"
    command = [*arguments(model, out / "p", source), "--share", "auto"]
    array = {"SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_MAX": "6"}
    processes = [
        subprocess.Popen(
            command,
            env=dict(os.environ, **array, SLURM_ARRAY_TASK_ID=str(task), SLURM_ARRAY_TASK_STEP="1"),
            stderr=subprocess.PIPE,
            text=True,
        )
        for task in (4, 5, 6)
    ]
    shown = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], shown
    assert files_of(out) == files_of(tmp_path / "whole")
    assert sum("the share that ends last" in text for text in shown) == 2

    out = tmp_path / "again"
    whole = arguments(model, out / "p", source)
    shown_0 = succeed([*whole, "--share", "0/2"])
    assert "share 0/2 (--share): " in shown_0
    assert files_of(out) == {}
    kept = {path: path.stat().st_mtime_ns for path in parts_of(out)}
    assert kept
    succeed(whole)  # in place of the share that was lost
    assert files_of(out) == files_of(tmp_path / "whole")
    assert "nothing to do" in succeed([*whole, "--share", "0/2"])
    write_lines(source / "more.jsonl", ["other"])
    assert "exists; pass --overwrite" in fail([*whole, "--share", "0/2"])
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_share_that_cannot_put_all_together_fails(tmp_path: Path, model: Path) -> None:
    """Not only where there is no former output."""
    source, out = write_files(tmp_path / "in", 6), tmp_path / "out"
    succeed(arguments(model, tmp_path / "whole" / "p", source))
    whole = files_of(tmp_path / "whole")
    limit = len(whole["p_text_document.bin"]) - 100
    succeed(arguments(model, out / "p", write_lines(tmp_path / "old.jsonl", ["old"])))
    before = files_of(out)
    command = [*arguments(model, out / "p", source), "--overwrite", "--share"]
    succeed([*command, "0/2"])
    message = fail(
        [*command, "1/2"], preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    assert "File too large" in message
    assert "puts all together" not in message
    assert files_of(out) == before
    succeed([*command, "1/2"])
    assert files_of(out) == whole


def test_shares_of_different_options_are_told(tmp_path: Path, model: Path) -> None:
    source, out = write_files(tmp_path / "in", 4), tmp_path / "out"
    command = arguments(model, out / "p", source)
    succeed([*command, "--share", "0/2"])
    more = write_lines(tmp_path / "more.jsonl", ["x"])
    for changed, words in (
        ([*command, "--eod-token", "unk0"], r"share 0 was started with end of document 2 \(here 0\),"),
        (arguments(model, out / "p", source, eod=False), r"end of document 2 \(here None\)"),
        (arguments(model, out / "p", source, workers=2), r"--workers 1 \(here 2\)"),
        ([*command, "--on-bad-line", "skip"], r"--on-bad-line skip False \(here True\)"),
        ([*command, "--engine", "library"], r"--engine gigatoken \S+ \(here sentencepiece \S+\)"),
        (arguments(model, out / "p", source, more), r"inputs \w+ \(here \w+\), so that the shares"),
    ):
        assert re.search(words, fail([*changed, "--share", "1/2"]))
    succeed([*command, "--share", "1/2"])
    assert ids_on_disk(out / "p_text_document")
    assert parts_of(out) == []


def test_an_input_that_is_given_twice_is_read_twice(tmp_path: Path, model: Path, monkeypatch: Any) -> None:
    """By any number of workers, under any of its names."""
    monkeypatch.chdir(tmp_path)
    texts = [*latex_texts()[:2], "end"]
    lines = write_lines(tmp_path / "a.jsonl", texts)
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(lines.read_bytes()))
    (tmp_path / "c.txt").write_text("text")
    archive, text = Path("b.jsonl.zst"), Path("c.txt")
    twice = [Path("a.jsonl"), lines, archive, archive.absolute(), text, text]
    for workers in (1, 3):
        succeed(arguments(model, tmp_path / f"out{workers}", *twice, workers=workers))
        expected = ids_of(model, [*texts * 4, "text", "text"], [2])
        assert ids_on_disk(tmp_path / f"out{workers}_text_document") == expected


def test_a_tokenizer_that_gigatoken_cannot_follow(tmp_path: Path) -> None:
    model = train_sentencepiece(tmp_path, model_type="unigram")
    source = write_lines(tmp_path / "c.jsonl", [*latex_texts(), ""])
    shown = succeed(arguments(model, tmp_path / "out", source))
    assert "note: tokenising with sentencepiece" in shown
    assert "which is slower: it is not a BPE model" in shown
    assert ids_on_disk(tmp_path / "out_text_document") == ids_of(model, [*latex_texts()], [2])
    sidecar = TokenFile.open(tmp_path / "out_text_document").sidecar
    assert sidecar is not None
    assert (sidecar.checked_documents, sidecar.reference_documents) == (0, len(latex_texts()) + 1)
    assert sidecar.engine.startswith("sentencepiece ")


def test_a_worker_that_is_killed_ends_the_command(tmp_path: Path, model: Path) -> None:
    source = write_lines(tmp_path / "new.jsonl", [*python_texts()] * 40)
    command = arguments(model, tmp_path / "out" / "p", source, workers=2)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers: list[int] = []
    while process.poll() is None and len(workers) < 2:
        started = [int(child) for child in children.read_text().split()]
        workers = [pid for pid in started if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        time.sleep(0.01)
    os.kill(workers[-1], signal.SIGKILL)
    _, shown = process.communicate(timeout=240)
    end_of(process)
    assert process.returncode == 2, shown
    assert b"--workers 2: a process was killed" in shown
    assert files_of(tmp_path / "out") == {}


def test_progress_tells_rate_and_time_left(tmp_path: Path, model: Path) -> None:
    source = write_lines(tmp_path / "c.jsonl", [*python_texts()] * 8)
    shown = succeed([*arguments(model, tmp_path / "out", source), "--log-interval", "0"])
    parts = ["[0-9.]+%", "N documents", "N tokens", "[0-9.]+ MB/s", "N documents/s", r"0:00:\d\d left"]
    line = r" \| ".join(parts).replace("N", "[0-9,]+")
    lines = re.findall(f"^ *{line}$", shown, re.MULTILINE)
    assert len(lines) >= 2
    assert lines[-1].lstrip().startswith("100.0%")


def test_help_starts_without_torch() -> None:
    code = "import runpy, sys; sys.argv = ['x', '--help']\n"
    code += f"try: runpy.run_path({COMMAND[1]!r}, run_name='__main__')\n"
    code += "except SystemExit: pass\nassert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    done = run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    assert "--on-bad-line" in done.stdout
