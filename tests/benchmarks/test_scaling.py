# SPDX-License-Identifier: Apache-2.0
"""Lines through points, the pages made of them, and the corpora of the benchmarks of scaling."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scaling_parts import training
from benchmarks.scaling_parts.corpora import endless, summary, write_corpus
from benchmarks.scaling_parts.lines import Page, fit
from benchmarks.startup import VOCABULARY, write_configuration, write_tokenizer, write_tokens


def test_a_line_is_found_and_what_lies_off_it() -> None:
    line = fit([1, 10, 100, 1000], [5, 23, 203, 2003])
    assert [line.intercept, line.slope] == pytest.approx([3, 2])
    assert line.largest_deviation == pytest.approx(0, abs=1e-9)
    assert fit([1, 2, 4, 8], [1, 4, 16, 64]).largest_deviation > 0.2, "a parabola is none"


def page() -> Page:
    return Page(
        "Cost", "x", "things", {"y": "cost"}, "seconds",
        {"x": "Things", "y": "Seconds", "z": "None"}, ["A note."],
    )  # fmt: skip


def test_a_page_is_written_with_its_points_line_and_picture(tmp_path: Path) -> None:
    found = page()
    found.rows += [{"x": x, "y": 1.0 + 2 * x, "z": None} for x in (1, 2, 4, 8000)]
    found.found.append("It is straight.")
    machine: dict[str, Any] = {
        "command": "python cost.py", "date": "today", "commit": "abc", "device": "CPU", "threads": 1,
        "processor": "x86_64", "nvidia-smi": "",
        "python": "3.11", "versions": {"torch": "2", "triton": "not installed"},
    }  # fmt: skip
    found.write(machine, tmp_path / "cost.json")
    text = (tmp_path / "cost.md").read_text()
    for said in ("`python cost.py`, today, commit abc", "| 8,000 | 16,001 | – |", "A note.",
                 "It is straight.",
                 "![Cost](cost.png)", "cost: 1 + 2 x", "0.0% off", "torch 2"):  # fmt: skip
        assert said in text
    assert "triton" not in text
    assert json.loads((tmp_path / "cost.json").read_text())["lines"]["y"]["slope"] == pytest.approx(2)
    assert (tmp_path / "cost.png").read_bytes()[:4] == b"\x89PNG"


def test_attention_by_the_clock_is_compared_with_its_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose every FLOP takes as long: the two shares are the same."""

    def time_step(shape: training.Shape, micro: int, options: argparse.Namespace) -> dict[str, Any]:
        flops, causal = shape.flops_per_token()
        return {
            "microseconds_per_token": causal / 1e3,
            "gigaflops_per_token": flops / 1e9,
            "gigaflops_per_token_causal": causal / 1e9,
        }

    monkeypatch.setattr(training, "time_step", time_step)
    options = argparse.Namespace(most=16384, dtype="bfloat16", steps=3, dropped=1)
    found = training.by_length(options)
    assert [row["tokens"] for row in found.rows] == list(training.LENGTHS)
    assert found.lines()["microseconds_per_token"].largest_deviation < 1e-6
    assert "attention's FLOPs cost 1.00 times as much" in found.found[0]
    # 6 N against 6 L d s
    shape = training.base_shape()
    matrices = shape.flops_per_token()[0] - 12 * shape.layers * shape.heads * shape.head_dim * shape.tokens
    equal = matrices / (6 * shape.layers * shape.heads * shape.head_dim)
    assert f"equal at {equal:,.0f} tokens" in found.found[0]


def test_a_point_that_fails_ends_the_page_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "in_own_process", lambda request, limit: {"error": "out of memory"})
    options = argparse.Namespace(most=8, dtype="bfloat16", steps=3, dropped=1, limit_seconds=1.0)
    found = training.by_micro_batch(options)
    assert found.rows == []
    assert found.found[0] == "1: out of memory."


def test_a_corpus_has_the_size_asked_for_and_other_words_each_time(tmp_path: Path) -> None:
    texts = ["let x = 1 and the rest\n" * 20_000, "é" * 1000]
    size = write_corpus(tmp_path / "corpus.jsonl", texts, 2)
    written = (tmp_path / "corpus.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line)["text"] for line in written.splitlines()]
    assert size == pytest.approx(sum(len(line.encode()) for line in lines) / 1e6)
    assert 2 <= size < 2.7
    assert lines[0] == texts[0]
    assert "x = 1 1 and the 1 rest" in lines[2]
    three = endless(["a = b"])
    assert [next(three) for _ in range(3)] == ["a = b", "a = 1 b", "a = 2 b"]


def test_a_run_can_be_started_on_what_the_benchmark_of_start_up_makes(tmp_path: Path) -> None:
    from megatron.data.token_file import TokenFile
    from megatron.neox_arguments.loader import load_config

    vocab_file = tmp_path / "tokenizer.json"
    write_tokenizer(vocab_file)
    write_tokens(tmp_path / "tokens", 5000, vocab_file)
    file = TokenFile.open(tmp_path / "tokens")
    assert file.documents == 5000
    assert 14 < file.tokens / file.documents < 18
    cfg, _ = load_config([write_configuration(tmp_path, tmp_path / "tokens", vocab_file)])
    assert cfg.data.train_data_paths == (tmp_path / "tokens",)
    assert replace(training.SMALL, vocab=VOCABULARY).model_keys()["vocab_size"] == VOCABULARY


def test_of_several_turns_the_one_with_the_least_cpu_time_counts() -> None:
    turns = [
        {"text_mb": 100.0, "wall_seconds": wall, "cpu_seconds": cpu} for wall, cpu in ((9, 5), (6, 4), (7, 8))
    ]
    found = summary(turns)
    assert (found["wall_seconds"], found["cpu_seconds"], found["slowest_cpu_seconds"]) == (6, 4, 8)
    assert (found["mb_per_cpu_second"], found["turns"]) == (25.0, 3)
