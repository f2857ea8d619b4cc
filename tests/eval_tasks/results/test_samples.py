# SPDX-License-Identifier: Apache-2.0
"""The records of a results folder: what was written is read again, whatever the text; a kill costs at most
the append under way; broken and contradicting lines are named."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_tasks.results.json_lines import Appender, read_lines
from eval_tasks.results.samples import (
    Sample,
    SampleWriter,
    Verdict,
    Vote,
    iterate_samples,
    natural_order,
    read_samples,
    read_verdicts,
    read_votes,
    samples_file,
    tasks_in,
    write_records,
)
from megatron.neox_arguments.errors import UserError

ROOT = Path(__file__).parents[3]


def a_sample(number: int = 0, item: str = "algebra/1", generation: str = "The answer is $4$.") -> Sample:
    return Sample(
        "llemma_math", item, number, "2 + 2?", "$\\boxed{4}$", 1, "Algebra", "ab" * 32, generation, 7
    )


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    first, second = a_sample(0), a_sample(1)
    with SampleWriter(tmp_path, "llemma_math") as writer:
        writer.append([first])
        writer.append([second])
    assert read_samples(samples_file(tmp_path, "llemma_math"), "llemma_math") == {
        first.key: first,
        second.key: second,
    }
    assert tasks_in(tmp_path) == ["llemma_math"]
    line = json.loads(samples_file(tmp_path, "llemma_math").read_text().splitlines()[0])
    assert line == {
        "task": "llemma_math", "item": "algebra/1", "sample": 0, "problem": "2 + 2?",
        "reference": "$\\boxed{4}$", "level": 1, "subject": "Algebra",
        "prompt_sha256": "ab" * 32, "generation": "The answer is $4$.", "tokens": 7,
    }  # fmt: skip


def test_a_sample_of_likelihood_and_other_fields(tmp_path: Path) -> None:
    sample = Sample(
        "ppl", "1", 0, "p", "r", loglikelihood=-3.5, bytes=9, more={"choices": {"A": -1.0}, "x": None}
    )
    with SampleWriter(tmp_path, "ppl") as writer:
        writer.append([sample])
    assert list(iterate_samples(samples_file(tmp_path, "ppl"))) == [sample]
    assert "generation" not in samples_file(tmp_path, "ppl").read_text()


@given(st.text(), st.floats(), st.integers())
def test_any_text_and_number_is_one_line(text: str, number: float, whole: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.jsonl"
        with Appender(path) as file:
            file.append([{"text": text, "number": number, "whole": whole}, {"text": "next"}])
        lines = [line for _, line in read_lines(path)]
    assert len(lines) == 2
    assert lines[0]["text"] == text
    assert lines[0]["number"] == (number if abs(number) < float("inf") else None)
    assert lines[0]["whole"] == whole


def test_half_a_surrogate_pair_does_not_stop_a_run(tmp_path: Path) -> None:
    with SampleWriter(tmp_path, "t") as writer:
        writer.append([a_sample(generation="cut \ud83d")])
    assert next(iterate_samples(samples_file(tmp_path, "t"))).generation == "cut ?"
    escaped = tmp_path / "of_others.jsonl"
    escaped.write_text('{"generation": "cut \\ud83d", "big": 123456789012345678901234567890, "n": NaN}\n')
    assert [line for _, line in read_lines(escaped)] == [
        {"generation": "cut ?", "big": 123456789012345678901234567890, "n": None}
    ]


@pytest.mark.parametrize(("left", "kept"), [
    (b'{"a": 1}\n{"a": 2', [1]),
    (b'{"a": 1}\n{"a": 2}', [1, 2]),
    (b'{"a": 1}\n', [1]),
    (b'{"a"', []),
    (b"", []),
    (b'{"a": 1}\n' + b'{"a": "' + b"x" * 200_000, [1]),
])  # fmt: skip
def test_a_last_line_that_was_cut_short_is_dropped(tmp_path: Path, left: bytes, kept: list[int]) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(left)
    assert [line["a"] for _, line in read_lines(path)] == kept
    with Appender(path) as file:
        file.append([{"a": 3}])
    assert [line["a"] for _, line in read_lines(path)] == [*kept, 3]
    assert path.read_bytes().count(b"\n") == len(kept) + 1


def test_two_writers_are_one_too_many(tmp_path: Path) -> None:
    with SampleWriter(tmp_path, "t"), pytest.raises(UserError, match="another process writes to it"):
        SampleWriter(tmp_path, "t")
    SampleWriter(tmp_path, "t").close()


def test_a_file_that_is_removed_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock, removals = tmp_path / "x.jsonl", fcntl.flock, [1]

    def removed_first(descriptor: int, how: int) -> None:
        if removals:
            removals.pop()
            path.unlink()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with Appender(path) as file:
        file.append([{"a": 1}])
    assert path.read_text() == '{"a":1}\n'


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = samples_file(tmp_path, "t")
    with SampleWriter(tmp_path, "t") as writer:
        writer.append([a_sample(0)])
        before = path.read_bytes()
        real = os.write

        def write_some(descriptor: int, content: bytes) -> int:
            if len(content) < 50:
                raise OSError(28, "No space left on device")
            return real(descriptor, bytes(content)[:50])

        monkeypatch.setattr(os, "write", write_some)
        with pytest.raises(UserError, match="No space left"):
            writer.append([a_sample(1)])
        monkeypatch.undo()
        assert path.read_bytes() == before
        writer.append([a_sample(2)])
    assert [key[1] for key in read_samples(path)] == [0, 2]


def test_repetitions_count_once_and_contradictions_are_named(tmp_path: Path) -> None:
    path = samples_file(tmp_path, "t")
    lines = [json.dumps(a_sample(n).as_fields()) for n in (0, 1, 0)]
    path.write_text("\n".join(lines) + "\n")
    assert len(list(iterate_samples(path))) == 2
    path.write_text("\n".join([*lines, json.dumps(a_sample(1, generation="5").as_fields())]) + "\n")
    with pytest.raises(
        UserError, match=r"samples_t\.jsonl:4: item=algebra/1 sample=1: line 2 says otherwise"
    ):
        read_samples(path)


@pytest.mark.parametrize(("change", "message"), [
    ({"sample": "0"}, r":1: sample='0': is not int"),
    ({"sample": True}, r":1: sample=True: is not int"),
    ({"item": None}, r":1: item=None: is not str"),
    ({"generation": 4}, r":1: generation=4: is not str or null"),
])  # fmt: skip
def test_wrong_kinds_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = samples_file(tmp_path, "t")
    path.write_text(json.dumps(a_sample().as_fields() | change) + "\n")
    with pytest.raises(UserError, match=message):
        read_samples(path)


def test_missing_fields_broken_lines_and_other_tasks_are_named(tmp_path: Path) -> None:
    path = samples_file(tmp_path, "t")
    fields = a_sample().as_fields()
    del fields["reference"]
    path.write_text(json.dumps(fields) + "\n")
    with pytest.raises(UserError, match=r"samples_t\.jsonl:1: has no 'reference'"):
        read_samples(path)
    path.write_text("\n[1]\n")
    with pytest.raises(UserError, match=r"samples_t\.jsonl:2: is no JSON object"):
        read_samples(path)
    path.write_text(json.dumps(a_sample().as_fields()) + "\n")
    with pytest.raises(UserError, match=r":1: task=llemma_math: the file holds samples of t"):
        read_samples(path, "t")
    assert read_samples(tmp_path / "none.jsonl") == {}
    with pytest.raises(UserError, match="cannot be read"):
        read_verdicts(tmp_path / "none.jsonl")


def test_verdicts_and_votes(tmp_path: Path) -> None:
    program = {"code": "print(1)", "output": "1\n", "error": None}
    verdicts = [Verdict("1", 0, "4", True, None, True), Verdict("1", 1, None, None, None, False, program)]
    write_records(tmp_path / "v.jsonl", verdicts)
    assert list(read_verdicts(tmp_path / "v.jsonl").values()) == verdicts
    votes = [Vote("1", "4", {"4": 3, "5": 1}, True), Vote("2", None, {}, False)]
    write_records(tmp_path / "w.jsonl", votes)
    assert list(read_votes(tmp_path / "w.jsonl").values()) == votes


@given(st.lists(st.from_regex(r"(a|b)?[0-9]{0,3}(c[0-9]{1,2})?", fullmatch=True), max_size=6))
def test_natural_order_is_that_of_integers(texts: list[str]) -> None:
    def by_integers(text: str) -> list[tuple[int, object]]:
        parts = re.split("([0-9]+)", text)
        return [(0, int(part)) if at % 2 else (1, part) for at, part in enumerate(parts)]

    assert sorted(texts, key=natural_order) == sorted(
        sorted(texts, key=lambda text: (text,)), key=by_integers
    )


def test_names_of_any_number_of_digits_have_an_order() -> None:
    small, large = "1" * 5_000, "2" * 5_000
    assert sorted([large, small, "1" * 5_001, "3"], key=natural_order) == ["3", small, large, "1" * 5_001]


def test_natural_order() -> None:
    assert sorted(["a10", "a2", "10", "9", "b", "a"], key=natural_order) == ["9", "10", "a", "a2", "a10", "b"]


WRITES = """
import sys
from pathlib import Path
from eval_tasks.results.samples import Sample, SampleWriter, read_samples, samples_file
folder = Path(sys.argv[1])
done = read_samples(samples_file(folder, "t"))
with SampleWriter(folder, "t") as writer:
    print("ready", flush=True)
    for item in range(300):
        samples = [Sample("t", str(item), n, "p" * 3000, "r", generation="g" * item) for n in range(3)]
        writer.append([sample for sample in samples if sample.key not in done])
"""


def test_killed_at_random_moments_and_resumed_the_file_holds_all(tmp_path: Path) -> None:
    chance = random.Random(6)
    for kills in range(40):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITES, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if kills < 6:
            time.sleep(chance.random() * 0.05)
            process.send_signal(signal.SIGKILL)
        ended = process.wait(timeout=120)
        process.stdout.close()
        if ended == 0:
            break
    samples = read_samples(samples_file(tmp_path, "t"), "t")
    assert len(samples) == 900
    assert all(sample.generation == "g" * int(sample.item) for sample in samples.values())
    assert len(samples_file(tmp_path, "t").read_bytes().splitlines()) == 900
