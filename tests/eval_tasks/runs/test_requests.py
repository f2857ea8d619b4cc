# SPDX-License-Identifier: Apache-2.0
"""Items, their names, and the requests made of them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from eval_tasks.runs.catalogue import catalogue
from eval_tasks.runs.local_data import LocalFile
from eval_tasks.runs.requests import Item, item_names, items_of, requests_of
from eval_tasks.runs.sampling import batches
from eval_tasks.runs.settings import task_settings
from tests.eval_tasks.runs.files import MATH_ROWS, write_rows

pytest.importorskip("lm_eval", reason="needs requirements/requirements-eval.txt")


def items(folder: Path, task: str = "llemma_math_maj", limit: int | None = None) -> list[Item]:
    file = LocalFile(write_rows(folder / "rows.jsonl", MATH_ROWS))
    return items_of(catalogue()[task], file, limit, 77)


def test_names_come_from_the_problem_alone() -> None:
    names = item_names(["a", "b", "a", "a"])
    assert names[0] == hashlib.sha256(b"a").hexdigest()[:16]
    assert names[2:] == [f"{names[0]}-2", f"{names[0]}-3"]
    assert len(set(names)) == 4


def test_a_limit_takes_the_first(tmp_path: Path) -> None:
    assert [item.name for item in items(tmp_path, limit=2)] == [item.name for item in items(tmp_path)][:2]


def test_requests_of_an_item_lie_together_and_differ_in_seed(tmp_path: Path) -> None:
    entry = catalogue()["llemma_math_maj"]
    found = items(tmp_path)
    requests = requests_of(entry, found, 3, seed=5)
    assert [request.sample for request in requests] == [0, 1, 2] * len(MATH_ROWS)
    lengths = [len(request.item.prompt) for request in requests]
    assert lengths == sorted(lengths, reverse=True)
    seeds = [request.seed for request in requests]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 1 << 31 for seed in seeds)
    # The order of the data, and what else there is, change neither names nor seeds.
    again = requests_of(entry, found[::-1][:2], 3, seed=5)
    by_key = {request.key: request.seed for request in requests}
    assert {request.key: request.seed for request in again}.items() <= by_key.items()
    assert seeds != [request.seed for request in requests_of(entry, found, 3, seed=6)]


def test_settings_of_a_sample_do_not_reach_another(tmp_path: Path) -> None:
    entry = catalogue()["llemma_math_maj"]
    first, second = requests_of(entry, items(tmp_path, limit=1), 2, seed=0)
    settings = first.instance({"seed": 1}).arguments[1]
    assert settings == {
        "until": ["I hope it is correct."], "do_sample": True, "temperature": 0.6, "top_p": 0.95,
        "max_gen_toks": 77, "seed": 1,
    }  # fmt: skip
    assert "seed" not in second.instance({}).arguments[1]


def test_a_saved_sample_tells_all_of_its_item(tmp_path: Path) -> None:
    (request,) = requests_of(catalogue()["llemma_math"], items(tmp_path, "llemma_math", 1), 1, 0)
    sample = request.sample_of("seven", 3)
    assert (sample.task, sample.sample, sample.generation, sample.tokens) == ("llemma_math", 0, "seven", 3)
    assert (sample.problem, sample.reference) == (MATH_ROWS[0]["problem"], MATH_ROWS[0]["solution"])
    assert (sample.level, sample.subject) == (1, "number_theory")
    assert sample.prompt_sha256 == hashlib.sha256(request.item.prompt.encode()).hexdigest()
    (request,) = requests_of(
        catalogue()["llemma_math_perplexity"], items(tmp_path, "llemma_math_perplexity", 1), 1, 0
    )
    sample = request.sample_of((-2.5, True), None)
    assert (sample.loglikelihood, sample.bytes) == (-2.5, len(MATH_ROWS[0]["solution"].encode()) + 1)


def test_settings_know_all_of_the_data_that_a_sample_holds() -> None:
    def settings(**changed: str) -> dict[str, Any]:
        doc = {"problem": "?", "reference": "1", "level": 1, "subject": "x", "extra": "{}"} | changed
        item = Item("name", doc, ("prompt", {}), None)
        return task_settings(catalogue()["llemma_math"], [item], None, 1, None)

    before = settings()
    for changed, name in (
        ({"reference": "2"}, "references_and_choices"),
        ({"extra": '{"choices": ["a"]}'}, "references_and_choices"),
        ({"level": 2}, "levels_and_subjects"),
        ({"subject": "y"}, "levels_and_subjects"),
    ):
        now = settings(**changed)
        assert [key for key in before if before[key] != now[key]] == [name]


def test_batches_hold_all_requests_in_order(tmp_path: Path) -> None:
    requests = requests_of(catalogue()["llemma_math_maj"], items(tmp_path), 3, seed=5)
    cut = list(batches(requests, 5))
    assert [len(batch) for batch in cut] == [5, 5, 2]
    assert [request for batch in cut for request in batch] == requests
