# SPDX-License-Identifier: Apache-2.0
"""A results folder from its samples: every file, numbers recomputed by hand, the same for any order of
samples, what is comparable, comparison of two folders, rescoring of anyone's generations."""

from __future__ import annotations

import html
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval_tasks.answers.workers import Graders
from eval_tasks.rescore import rescore
from eval_tasks.results.compare import compare_folders, comparison_markdown
from eval_tasks.results.published import FIGURES, differences
from eval_tasks.results.samples import (
    Sample,
    SampleWriter,
    Verdict,
    read_samples,
    read_verdicts,
    read_votes,
    samples_file,
    verdicts_file,
    votes_file,
)
from eval_tasks.results.scoring import score_folder
from eval_tasks.results.task_table import TASKS, task_named
from megatron.neox_arguments.errors import UserError
from tests.data.corpora import shared_folder

ITEMS, SAMPLES = 30, 4


@pytest.fixture(scope="module")
def graders() -> Iterator[Graders]:
    with Graders(1) as pool:
        yield pool


def gsm8k_samples(seed: int, task: str = "llemma_gsm8k_maj", samples: int = SAMPLES) -> list[Sample]:
    """Item i is answered rightly by (i + s) % 3 == 0; otherwise with one of two wrong numbers, or none."""
    chance = random.Random(seed)
    made = []
    for item in range(ITEMS):
        for number in range(samples):
            right = chance.random() < item / ITEMS
            answer = f"The answer is {item if right else 100 + chance.randrange(2)}."
            made.append(
                Sample(
                    task, f"q{item}", number, f"Question {item}?", f"#### {item}", item % 2 + 1, "numbers",
                    generation=answer if chance.random() < 0.9 else "I do not know.", tokens=5,
                )
            )  # fmt: skip
    return made


def write(folder: Path, samples: list[Sample]) -> Path:
    for task in {sample.task for sample in samples}:
        with SampleWriter(folder, task) as writer:
            writer.append([sample for sample in samples if sample.task == task])
    return folder


def quiet(_: str) -> None:
    """Says nothing."""


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if not path.name.startswith("samples_llemma")
    }


def test_a_folder_is_scored_whole_and_alike_for_any_order_of_samples(
    tmp_path: Path, graders: Graders
) -> None:
    samples = gsm8k_samples(1)
    content = score_folder(write(tmp_path / "a", samples), graders=graders, tell=quiet)
    shuffled = random.Random(2).sample(samples, len(samples))
    told: list[str] = []
    assert score_folder(write(tmp_path / "b", shuffled), graders=graders, tell=told.append) == content
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert told[0].startswith("llemma_gsm8k_maj: 30 items x 4: accuracy ")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {
        "samples_llemma_gsm8k_maj.jsonl", "verdicts_llemma_gsm8k_maj.jsonl", "votes_llemma_gsm8k_maj.jsonl",
        "disagreements_llemma_gsm8k_maj.jsonl", "results.json", "results.md", "accuracy.png",
        "samples_llemma_gsm8k_maj.png",
    }  # fmt: skip
    assert (tmp_path / "a" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "a" / "results.json").read_text()) == content
    # And again: nothing changes.
    before = files(tmp_path / "a")
    score_folder(tmp_path / "a", graders=graders, tell=quiet)
    assert files(tmp_path / "a") == before


def test_the_numbers_are_those_of_a_plain_count(tmp_path: Path, graders: Graders) -> None:
    samples = gsm8k_samples(3)
    fields = score_folder(write(tmp_path, samples), graders=graders, tell=quiet)["tasks"]["llemma_gsm8k_maj"]
    right = [f"The answer is {sample.reference[5:]}." == sample.generation for sample in samples]
    by_item = [right[at : at + SAMPLES] for at in range(0, len(right), SAMPLES)]
    value = {name: metric["value"] for name, metric in fields["metrics"].items()}
    assert (fields["items"], fields["samples_per_item"]) == (ITEMS, SAMPLES)
    assert value["accuracy"] == pytest.approx(sum(right) / len(right))
    assert value["maj@1"] == pytest.approx(value["accuracy"], abs=0.03)
    assert value["pass@1"] == pytest.approx(value["accuracy"])
    assert value["pass@4"] == pytest.approx(sum(map(any, by_item)) / ITEMS)
    assert value["answered"] == pytest.approx(
        sum("answer" in str(sample.generation) for sample in samples) / len(samples)
    )
    verdicts = read_verdicts(verdicts_file(tmp_path, "llemma_gsm8k_maj"))
    assert [verdicts[sample.key].correct for sample in samples] == right
    votes = read_votes(votes_file(tmp_path, "llemma_gsm8k_maj"))
    assert value["maj@4"] == pytest.approx(sum(vote.correct for vote in votes.values()) / ITEMS)
    for item, verdict_list in zip(range(ITEMS), by_item, strict=True):
        if sum(verdict_list) > SAMPLES / 2:
            assert votes[f"q{item}"].correct
        if not any(verdict_list):
            assert not votes[f"q{item}"].correct
    odd = [share for item, share in enumerate(by_item) if item % 2 == 0]
    assert fields["by_level"]["1"]["value"] == pytest.approx(sum(map(sum, odd)) / (len(odd) * SAMPLES))
    assert fields["by_subject"]["numbers"]["items"] == ITEMS
    for metric in fields["metrics"].values():
        assert metric["low"] <= metric["value"] <= metric["high"]


def test_markdown_stands_beside_the_published_figures(tmp_path: Path, graders: Graders) -> None:
    score_folder(write(tmp_path, gsm8k_samples(4, "llemma_gsm8k", 1)), graders=graders, tell=quiet)
    page = (tmp_path / "results.md").read_text()
    row = next(
        line
        for line in page.splitlines()
        if line.startswith("| llemma_gsm8k | accuracy | ") and "no:" in line
    )
    assert " 10.5 | 29.6 | 36.4 | 51.5 | 64.2 | no: 30 of 1,319 items; how the samples were decoded" in row
    assert "arXiv:2310.10631; Shao et al. 2024" in page


@pytest.mark.parametrize(("settings", "why"), [
    ({"precision": "bfloat16"}, []),
    ({"precision": "float32"}, ["precision float32; published: bfloat16"]),
    ({}, ["precision not known; published: bfloat16"]),
    ({"precision": "bfloat16", "local_data": "mine.jsonl"}, ["problems of a local file, mine.jsonl"]),
])  # fmt: skip
def test_precision_and_local_data_are_reasons(settings: dict[str, Any], why: list[str]) -> None:
    assert differences(FIGURES["sat"], 32, 32, 1, {"max_new_tokens": 1024, **settings}) == why


def test_an_unfinished_task_keeps_no_other_from_its_results(tmp_path: Path, graders: Graders) -> None:
    write(tmp_path, gsm8k_samples(6, "llemma_gsm8k", 1) + gsm8k_samples(6)[:-1])
    run = {"model": {}, "tasks": {"llemma_gsm8k": {"items": ITEMS, "k": 1}}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    told: list[str] = []
    content = score_folder(tmp_path, graders=graders, tell=told.append)
    assert list(content["tasks"]) == ["llemma_gsm8k"]
    assert content["tasks"]["llemma_gsm8k"]["unfinished"] is None
    assert told[-1].startswith("not measured: task=llemma_gsm8k_maj: item q29 has 3 samples, others up to 4")
    samples_file(tmp_path, "llemma_sat").touch()
    assert list(score_folder(tmp_path, graders=graders, tell=quiet)["tasks"]) == ["llemma_gsm8k"]
    assert "| llemma_gsm8k | 30 | 1 | accuracy |" in (tmp_path / "results.md").read_text()


def test_what_is_measured_of_an_unfinished_task_is_called_so(tmp_path: Path, graders: Graders) -> None:
    write(tmp_path, gsm8k_samples(6, "llemma_gsm8k", 1)[:3])
    run = {
        "model": {"dtype": "bfloat16"},
        "tasks": {"llemma_gsm8k": {"items": 8, "k": 1, "max_new_tokens": 1024}},
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    told: list[str] = []
    fields = score_folder(tmp_path, graders=graders, tell=told.append)["tasks"]["llemma_gsm8k"]
    assert fields["unfinished"] == "3 of 8: unfinished"
    assert fields["comparable"] == "3 of 8: unfinished; 3 of 1,319 items"
    assert told[0].startswith("llemma_gsm8k: 3 items x 1 (3 of 8: unfinished): accuracy")
    assert "| llemma_gsm8k | 3 of 8: unfinished | 1 | accuracy |" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(("samples", "settings", "why"), [
    (1, {"temperature": 0.0, "max_new_tokens": 1024}, []),
    (1, {"max_new_tokens": 1024}, []),
    (256, {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 1024}, []),
    (1, {"temperature": 0.6, "max_new_tokens": 1024}, ["temperature 0.6; published: 0"]),
    (256, {"temperature": 0.6, "max_new_tokens": 1024}, ["top-p 1; published: 0.95"]),
    (64, {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 1024},
     ["64 samples an item; published: 256 samples an item"]),
    (1, {"temperature": 0.0, "max_new_tokens": 512}, ["at most 512 new tokens; published: 1,024"]),
    (1, None, ["how the samples were decoded is not recorded"]),
])  # fmt: skip
def test_what_may_stand_beside_the_published_figures(
    samples: int, settings: dict[str, Any] | None, why: list[str]
) -> None:
    settings = None if settings is None else {**settings, "precision": "bfloat16"}
    assert differences(FIGURES["math"], 5_000, 5_000, samples, settings) == why
    assert differences(FIGURES["math"], 5_000, 40, samples, settings) == ["40 of 5,000 items", *why]


def test_the_settings_of_the_run_decide_what_is_comparable(tmp_path: Path, graders: Graders) -> None:
    samples = [
        Sample("llemma_sat", str(at), 0, f"p{at}", "(A)", generation="Final Answer: The final answer is (A).")
        for at in range(32)
    ]
    samples += [
        Sample(
            "llemma_ocwcourses", str(at), 0, f"p{at}", "5", generation="Final answer: The final answer is 5."
        )
        for at in range(272)
    ]
    write(tmp_path, samples)
    decoding = {"temperature": 0.0, "max_new_tokens": 1024, "k": 1}
    run = {
        "model": {"name": "m", "dtype": None},
        "tasks": {"llemma_sat": decoding, "llemma_ocwcourses": decoding},
        "told": {"precision": "bfloat16", "data": {"llemma_ocwcourses": "mine.jsonl"}},
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    content = score_folder(tmp_path, graders=graders, tell=quiet)
    assert content["tasks"]["llemma_sat"]["comparable"] is True
    assert content["tasks"]["llemma_sat"]["metrics"]["accuracy"] == {
        "value": 1.0, "low": pytest.approx(0.893, abs=0.001), "high": 1.0, "interval": "wilson"
    }  # fmt: skip
    assert content["tasks"]["llemma_sat"]["published"]["Llemma 7B"] == {
        "accuracy": 0.531, "maj@16": 0.781, "source": "Azerbayev et al. 2023, arXiv:2310.10631"
    }  # fmt: skip
    why = str(content["tasks"]["llemma_ocwcourses"]["comparable"])
    assert why.startswith("zero, negative numbers")
    assert why.endswith("; problems of a local file, mine.jsonl")
    assert content["model"] == {"name": "m", "dtype": None}


def test_likelihoods_become_bits_per_byte(tmp_path: Path) -> None:
    rows = [(-10.0, 20), (-30.5, 31), (-4.25, 9)]
    samples = [
        Sample("llemma_math_perplexity", str(at), 0, "", "r", loglikelihood=sum_, bytes=length)
        for at, (sum_, length) in enumerate(rows)
    ]
    fields = score_folder(write(tmp_path, samples), tell=quiet)["tasks"]["llemma_math_perplexity"]
    assert fields["metrics"]["bits_per_byte"]["value"] == pytest.approx(44.75 / 60 / 0.6931471805599453)
    assert fields["metrics"]["byte_perplexity"]["value"] == pytest.approx(2.718281828459045 ** (44.75 / 60))
    assert (fields["comparable"], fields["published"]) == ("nothing was published", None)
    broken = Sample("llemma_math_perplexity", "9", 0, "", "r", loglikelihood=float("-inf"), bytes=3)
    with SampleWriter(tmp_path, "llemma_math_perplexity") as writer:
        writer.append([broken])
    with pytest.raises(UserError, match=r"item=9: has no finite loglikelihood"):
        score_folder(tmp_path, tell=quiet)


def test_programs_are_judged_by_who_can_run_them(tmp_path: Path) -> None:
    samples = [
        Sample("llemma_gsm8k_python", str(at), number, "p", "5", generation="def solution(): return 5")
        for at in range(3)
        for number in range(2)
    ]
    write(tmp_path, samples)
    with pytest.raises(UserError, match="its answers are programs"):
        score_folder(tmp_path, tell=quiet)
    ran: list[str] = []

    def judge(rule: str, given: Any) -> Any:
        for sample in given:
            ran.append(rule)
            program = {"code": sample.generation, "output": "5", "error": None}
            yield Verdict(sample.item, sample.sample, "5", None, None, sample.sample == 0, program)

    fields = score_folder(tmp_path, judge_programs=judge, tell=quiet)["tasks"]["llemma_gsm8k_python"]
    assert ran == ["gsm8k_python"] * 6
    assert fields["metrics"]["pass@2"]["value"] == 1.0
    assert fields["metrics"]["accuracy"]["value"] == 0.5
    assert not votes_file(tmp_path, "llemma_gsm8k_python").exists()


def test_disagreements_of_the_graders_are_listed(tmp_path: Path, graders: Graders) -> None:
    texts = ["Final Answer: The final answer is $4$.", "So it is $\\boxed{4}$."]
    samples = [
        Sample("llemma_math", str(at), 0, "p", "$\\boxed{4}$", generation=text)
        for at, text in enumerate(texts)
    ]
    fields = score_folder(write(tmp_path, samples), graders=graders, tell=quiet)["tasks"]["llemma_math"]
    (line,) = (tmp_path / "disagreements_llemma_math.jsonl").read_text().splitlines()
    assert {name: json.loads(line)[name] for name in ("item", "minerva", "math_verify")} == {
        "item": "1", "minerva": False, "math_verify": True
    }  # fmt: skip
    assert fields["grader_disagreements"] == 1
    assert "disagree on 1 samples" in (tmp_path / "results.md").read_text()


def test_folders_that_cannot_be_scored_are_named(tmp_path: Path, graders: Graders) -> None:
    with pytest.raises(UserError, match="holds no samples_<task>.jsonl"):
        score_folder(tmp_path, tell=quiet)
    write(tmp_path / "a", [Sample("other", "1", 0, "p", "r", generation="g")])
    with pytest.raises(UserError, match="--task=other: no such task; there are llemma_math"):
        score_folder(tmp_path / "a", tell=quiet)
    with pytest.raises(UserError, match="holds no samples_<task>.jsonl"):
        score_folder(tmp_path / "a", tell=quiet, left_out={"other"})
    write(tmp_path / "b", gsm8k_samples(5)[:-1])
    with pytest.raises(UserError, match="item q29 has 3 samples, others up to 4; finish the run"):
        score_folder(tmp_path / "b", graders=graders, tell=quiet)
    (tmp_path / "c").mkdir()
    samples_file(tmp_path / "c", "llemma_sat").touch()
    with pytest.raises(UserError, match="holds no sample; finish the run"):
        score_folder(tmp_path / "c", graders=graders, tell=quiet)
    (tmp_path / "c" / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json: cannot be read"):
        score_folder(tmp_path / "c", graders=graders, tell=quiet)


def test_judging_needs_neither_torch_nor_lm_eval() -> None:
    program = (
        "import sys, eval_tasks.rescore, eval_tasks.results.compare, eval_tasks.results.plots\n"
        "print([name for name in ('torch', 'lm_eval', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout == "[]\n", done.stderr


def test_names_of_tasks() -> None:
    assert task_named("llemma_math_maj") is TASKS["llemma_math"]
    with pytest.raises(UserError, match="did you mean llemma_math?"):
        task_named("lemma_math")


# ---- two folders


def test_two_folders_are_compared_item_by_item(tmp_path: Path, graders: Graders) -> None:
    first, second = gsm8k_samples(1), [sample for sample in gsm8k_samples(9) if sample.item != "q3"]
    for name, samples in (("a", first), ("b", second)):
        score_folder(write(tmp_path / name, samples), graders=graders, tell=quiet)
    rows = compare_folders(tmp_path / "a", tmp_path / "b")
    assert [(row.task, row.measure, row.left_out) for row in rows] == [
        ("llemma_gsm8k_maj", "accuracy", 1), ("llemma_gsm8k_maj", "majority vote", 1)
    ]  # fmt: skip
    votes = [read_votes(votes_file(tmp_path / name, "llemma_gsm8k_maj")) for name in ("a", "b")]
    wins = [(votes[0][item].correct, votes[1][item].correct) for item in votes[1]]
    found = rows[1].comparison
    assert (found.only_first, found.only_second) == (wins.count((True, False)), wins.count((False, True)))
    assert found.difference.value == pytest.approx(
        (wins.count((False, True)) - wins.count((True, False))) / 29
    )
    table = comparison_markdown(tmp_path / "a", tmp_path / "b", rows)
    assert "| llemma_gsm8k_maj | majority vote | 29 |" in table
    assert "llemma_gsm8k_maj: 1 items left out" in table


def test_one_sample_an_item_is_compared_with_the_vote_of_several(tmp_path: Path, graders: Graders) -> None:
    several = gsm8k_samples(1)
    single = [sample for sample in gsm8k_samples(2) if sample.sample == 0]
    for name, samples in (("a", single), ("b", several)):
        score_folder(write(tmp_path / name, samples), graders=graders, tell=quiet)
    rows = {row.measure: row.comparison for row in compare_folders(tmp_path / "a", tmp_path / "b")}
    voted = rows["majority vote"]
    right = [
        read_votes(votes_file(tmp_path / "b", several[0].task))[sample.item].correct for sample in single
    ]
    verdicts = read_verdicts(verdicts_file(tmp_path / "a", several[0].task))
    alone = [verdicts[sample.key].correct for sample in single]
    assert rows["accuracy"].p_value is None
    assert voted.only_first == sum(one and not other for one, other in zip(alone, right, strict=True))
    assert voted.only_second == sum(other and not one for one, other in zip(alone, right, strict=True))
    assert voted.p_value is not None
    text = comparison_markdown(
        tmp_path / "a", tmp_path / "b", compare_folders(tmp_path / "a", tmp_path / "b")
    )
    assert "Without p: items have several samples" in text


def test_likelihoods_are_compared_as_ratios(tmp_path: Path) -> None:
    for name, factor in (("a", 1.0), ("b", 1.1)):
        samples = [
            Sample(
                "llemma_math_perplexity", str(at), 0, "", "r", loglikelihood=-factor * (at + 3), bytes=10 + at
            )
            for at in range(40)
        ]
        write(tmp_path / name, samples)
    (row,) = compare_folders(tmp_path / "a", tmp_path / "b")
    assert row.comparison.second == pytest.approx(1.1 * row.comparison.first)
    assert row.comparison.difference.low > 0
    assert row.comparison.p_value is None


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    samples = gsm8k_samples(1, "llemma_gsm8k", 1)
    write(tmp_path / "a", samples)
    write(tmp_path / "b", [Sample("llemma_sat", "1", 0, "p", "(A)", generation="")])
    with pytest.raises(UserError, match=r"share no task \(llemma_gsm8k and llemma_sat\)"):
        compare_folders(tmp_path / "a", tmp_path / "b")
    write(tmp_path / "c", samples)
    with pytest.raises(UserError, match="is not there; make it with evaluate.py --rescore"):
        compare_folders(tmp_path / "a", tmp_path / "c")
    write(tmp_path / "d", [Sample("llemma_gsm8k", "q1", 0, "another", "#### 1", generation="")])
    with pytest.raises(UserError, match="item q1 is not the same problem in both"):
        compare_folders(tmp_path / "a", tmp_path / "d")
    write(tmp_path / "e", [Sample("llemma_gsm8k", "z", 0, "another", "#### 1", generation="")])
    with pytest.raises(UserError, match="share no item"):
        compare_folders(tmp_path / "a", tmp_path / "e")


# ---- anyone's generations


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_anyones_generations_are_rescored(tmp_path: Path, graders: Graders) -> None:
    rows: list[dict[str, Any]] = [
        {"problem": "1 &lt; 2?", "generation": "a &lt; b. The answer is 5.", "reference": "#### 5",
         "correct": True},
        {"problem": "p", "generation": "The answer is 6.", "reference": "5", "correct": True, "level": 3,
         "note": "x"},
        {"problem": "p", "generation": "none", "reference": "7"},
    ]  # fmt: skip
    told: list[str] = []
    found = rescore(
        write_rows(tmp_path / "s.jsonl", rows),
        "llemma_gsm8k",
        tmp_path / "out",
        True,
        graders=graders,
        tell=told.append,
    )
    assert [(each.agreeing, each.of, each.differing) for each in found.agreements] == [
        (1, 2, (2,)),
        (1, 2, (2,)),
    ]
    assert told[-2:] == [
        "the paper's rule agrees with `correct` on 1 of 2; not on lines 2",
        "math-verify agrees with `correct` on 1 of 2; not on lines 2",
    ]
    lines = [
        json.loads(line) for line in samples_file(tmp_path / "out", "llemma_gsm8k").read_text().splitlines()
    ]
    assert (lines[0]["problem"], lines[0]["generation"]) == ("1 < 2?", "a < b. The answer is 5.")
    assert [(line["item"], line["sample"], line["level"]) for line in lines] == [
        ("1", 0, None),
        ("2", 0, 3),
        ("3", 0, None),
    ]
    verdicts = read_verdicts(verdicts_file(tmp_path / "out", "llemma_gsm8k"))
    assert [verdict.correct for verdict in verdicts.values()] == [True, False, False]
    # The same command again ends alike; another one is refused, and a folder that is something else.
    before = files(tmp_path / "out")
    (tmp_path / "out" / "results.json").unlink()
    rescore(tmp_path / "s.jsonl", "llemma_gsm8k", tmp_path / "out", True, graders=graders, tell=quiet)
    assert files(tmp_path / "out") == before
    with pytest.raises(UserError, match="holds samples of another file; choose a new folder"):
        rescore(tmp_path / "s.jsonl", "llemma_gsm8k", tmp_path / "out", graders=graders, tell=quiet)
    assert files(tmp_path / "out") == before
    with pytest.raises(UserError, match="is not empty; choose a new folder"):
        rescore(tmp_path / "s.jsonl", "llemma_gsm8k", tmp_path, graders=graders, tell=quiet)


def test_generations_with_items_and_samples_are_voted_on(tmp_path: Path, graders: Graders) -> None:
    rows = [
        {"item": 7, "sample": at, "problem": "p", "generation": f"The answer is {answer}.", "reference": "5"}
        for at, answer in enumerate([5, 6, 5])
    ]
    found = rescore(
        write_rows(tmp_path / "s.jsonl", rows),
        "llemma_gsm8k_maj",
        tmp_path / "out",
        graders=graders,
        tell=quiet,
    )
    assert found.results["tasks"]["llemma_gsm8k_maj"]["metrics"]["maj@3"]["value"] == 1.0
    assert found.agreements == []


@pytest.mark.parametrize(("rows", "message"), [
    ([{"problem": "p", "generation": "g"}], r"s\.jsonl:1: has no text under 'reference'"),
    ([{"problem": "p", "generation": 5, "reference": "r"}], r"has no text under 'generation'"),
    ([{"problem": "p", "generation": "g", "reference": "5", "correct": "yes"}],
     r"correct='yes': is not true or false"),
    ([{"item": "a", "problem": "p", "generation": "g", "reference": "5"}] * 2,
     r"s\.jsonl:2: item=a sample=0: stands in line 1"),
    ([{"item": [], "problem": "p", "generation": "g", "reference": "5"}], r"are not a name and a number"),
    ([{"problem": "p", "generation": "g", "reference": "none"}], r"holds no answer for the rule 'gsm8k'"),
    ([], r"holds no line"),
])  # fmt: skip
def test_broken_generations_are_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    good = {"problem": "p", "generation": "g", "reference": "5"}
    for before in ([], [good] * 0):
        with pytest.raises(UserError, match=message):
            rescore(
                write_rows(tmp_path / "s.jsonl", [*before, *rows]),
                "llemma_gsm8k",
                tmp_path / "out",
                tell=quiet,
            )
    with pytest.raises(UserError, match="is measured by likelihood"):
        rescore(tmp_path / "s.jsonl", "llemma_math_perplexity", tmp_path / "out")


def generation(item: str, sample: int = 0, **fields: Any) -> dict[str, Any]:
    return {"item": item, "sample": sample, "problem": "p", "generation": "The answer is 5.",
            "reference": "5"} | fields  # fmt: skip


@pytest.mark.parametrize(("rows", "message"), [
    ([generation("a"), generation("a", 1, problem="q")],
     r"s\.jsonl:2: item=a: is not the problem and reference of line 1"),
    ([generation("a"), generation("b"), generation("a", 1, reference="6")],
     r"s\.jsonl:3: item=a: is not the problem and reference of line 1"),
    ([generation("a"), generation("b"), generation("a", 1), generation("c")],
     r"s\.jsonl: 2 items have fewer samples than the 2 of others: b \(1\), c \(1\); complete them"),
])  # fmt: skip
def test_items_of_anyones_generations_are_one_problem_and_alike(
    tmp_path: Path, rows: list[dict[str, Any]], message: str, graders: Graders
) -> None:
    path, output = write_rows(tmp_path / "s.jsonl", rows), tmp_path / "out"
    with pytest.raises(UserError, match=message):
        rescore(path, "llemma_gsm8k", output, graders=graders, tell=quiet)
    assert not output.exists()
    # The repaired file goes to the same folder.
    write_rows(path, [generation("a"), generation("a", 1)])
    rescore(path, "llemma_gsm8k", output, graders=graders, tell=quiet)


def test_levels_and_subjects_are_read_as_those_of_data(tmp_path: Path, graders: Graders) -> None:
    rows = [
        generation("a", level="Level 5", type="Counting &amp; Probability"),
        generation("b", level=4, subject="algebra"),
    ]
    path, output = write_rows(tmp_path / "s.jsonl", rows), tmp_path / "out"
    rescore(path, "llemma_gsm8k", output, True, graders=graders, tell=quiet)
    found = list(read_samples(samples_file(output, "llemma_gsm8k")).values())
    assert [(sample.level, sample.subject) for sample in found] == [
        (5, "counting_and_probability"), (4, "algebra"),
    ]  # fmt: skip


def test_a_last_line_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "s.jsonl", [generation("a"), generation("b")])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"s\.jsonl:2: is no JSON object: the file is cut short"):
        rescore(path, "llemma_gsm8k", tmp_path / "out", tell=quiet)
    path.write_text(json.dumps(generation("a"))[:-1] + ', "level": ' + "9" * 5_000 + "}\n")
    with pytest.raises(UserError, match=r"s\.jsonl:1: has a number of too many digits"):
        rescore(path, "llemma_gsm8k", tmp_path / "out", tell=quiet)


def test_a_file_that_breaks_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    good = {"problem": "p", "generation": "g", "reference": "5"}
    path = write_rows(tmp_path / "s.jsonl", [good] * 3_000)
    path.write_text(path.read_text() + "[]\n")
    with pytest.raises(UserError, match=r"s\.jsonl:3001: is no JSON object"):
        rescore(path, "llemma_gsm8k", tmp_path / "out", tell=quiet)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "task", "rule", "math_verify", "of"), [
    ("math_llemma34b_samples", "llemma_math", 350, 347, 350),
    ("ocw_courses_llemma34b_samples", "llemma_ocwcourses", 27, 29, 30),
])  # fmt: skip
def test_agreement_with_the_record_of_real_generations(
    tmp_path: Path, name: str, task: str, rule: int, math_verify: int, of: int, graders: Graders
) -> None:
    path = shared_folder() / f"{name}.jsonl"
    assert html.unescape("&lt;") == "<"
    found = rescore(path, task, tmp_path / "out", True, graders=graders, tell=quiet)
    assert [(each.agreeing, each.of) for each in found.agreements] == [(rule, of), (math_verify, of)]
