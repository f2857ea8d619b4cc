# SPDX-License-Identifier: Apache-2.0
"""The tasks: whole prompts against lm-eval's own tasks, and our way of reading YAML against lm-eval's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from eval_tasks.runs.catalogue import FOLDER, catalogue, resolved
from eval_tasks.runs.local_data import LocalFile
from eval_tasks.runs.requests import Item, items_of
from megatron.neox_arguments.errors import UserError
from tests.eval_tasks.runs.files import MATH_ROWS, write_rows

pytest.importorskip("lm_eval", reason="needs requirements/requirements-eval.txt")

# k and temperature of the paper's majority voting (Llemma, section 3.1); stops and the longest answer.
PUBLISHED = {
    "llemma_math_maj": (256, 0.6, "I hope it is correct."),
    "llemma_math500_maj": (256, 0.6, "I hope it is correct."),
    "llemma_gsm8k_maj": (100, 0.6, "\n\n"),
    "llemma_ocwcourses_maj": (100, 0.6, "I hope it is correct."),
    "llemma_mmlu_stem_maj": (16, 0.3, "I hope it is correct."),
    "llemma_sat_maj": (16, 0.3, "I hope it is correct."),
}


def items(task: str, rows: list[dict[str, Any]], folder: Path, **options: Any) -> list[Item]:
    file = LocalFile(write_rows(folder / "rows.jsonl", rows), options.pop("fields", {}))
    return items_of(catalogue()[task], file, options.pop("limit", None), options.pop("tokens", 1024))


def test_decoding_is_the_papers() -> None:
    sampled = {name: entry for name, entry in catalogue().items() if entry.is_sampled}
    assert PUBLISHED.keys() <= sampled.keys()
    for name, (k, temperature, stop) in PUBLISHED.items():
        for leaf in sampled[name].leaves.values():
            settings = leaf["generation_kwargs"]
            assert (leaf["repeats"], settings["temperature"], settings["top_p"]) == (k, temperature, 0.95)
            assert (settings["until"], settings["max_gen_toks"]) == ([stop], 1024)
        greedy = catalogue()[name.removesuffix("_maj")]
        assert greedy.samples_per_item == 1
        assert greedy.generation == {
            "until": [stop], "do_sample": False, "temperature": 0.0, "max_gen_toks": 1024,
        }  # fmt: skip
    assert len(catalogue()["llemma_math"].leaves) == 7
    assert len(catalogue()["llemma_mmlu_stem"].leaves) == 18


def test_lm_eval_reads_the_same_from_the_files() -> None:
    """The names, the members of groups, and each member's settings where a group overrides them."""
    from lm_eval.tasks import TaskManager

    index = TaskManager(include_defaults=False, include_path=str(FOLDER)).task_index
    assert set(catalogue()) <= set(index)
    leaves = {name for entry in catalogue().values() for name in entry.leaves}
    assert {name for name in index if index[name].yaml_path} == set(catalogue()) | leaves


def test_lm_eval_makes_the_same_prompts_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from lm_eval.tasks import TaskManager

    ours = items("llemma_math_perplexity", MATH_ROWS, tmp_path)

    def rows_of(path: str, name: str, **_: Any) -> Any:
        wanted = [
            row for row in MATH_ROWS if row["type"].lower().replace("&", "and") == name.replace("_", " ")
        ]
        return datasets.DatasetDict({"test": datasets.Dataset.from_list(wanted or MATH_ROWS[:1])})

    monkeypatch.setattr(datasets, "load_dataset", rows_of)
    loaded = TaskManager(include_defaults=False, include_path=str(FOLDER)).load(["llemma_math_perplexity"])
    theirs: dict[str, tuple[str, str]] = {}
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=0)
        task.build_all_requests()
        theirs |= {instance.doc["problem"]: instance.args for instance in task.instances}
    assert {item.doc["problem"]: item.arguments for item in ours} == theirs


def test_the_math_prompt_is_that_of_lm_evals_minerva_math(tmp_path: Path) -> None:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks.minerva_math import utils

    theirs = ConfigurableTask(
        config={
            "task": "theirs",
            "custom_dataset": lambda **_: {"test": __import__("datasets").Dataset.from_list(MATH_ROWS)},
            "test_split": "test",
            "process_docs": utils.process_docs,
            "doc_to_text": utils.doc_to_text,
            "doc_to_target": "{{answer if few_shot is undefined else solution}}",
            "num_fewshot": 4,
            "fewshot_config": {"sampler": "first_n", "samples": utils.list_fewshot_samples},
            "output_type": "generate_until",
            "generation_kwargs": {"until": ["Problem:"]},
        }
    )
    theirs.set_fewshot_seed(seed=0)
    theirs.build_all_requests()
    for item, instance in zip(items("llemma_math", MATH_ROWS, tmp_path), theirs.instances, strict=True):
        # lm-eval puts a blank where Minerva has a line end, and has lost a brace.
        assert (
            instance.args[0].replace("Solution: ", "Solution:\n").replace("$.\n", "$.}\n", 1) == item.prompt
        )


@pytest.mark.parametrize(("task", "row", "end", "reference"), [
    ("llemma_gsm8k", {"question": "How many?", "answer": "Two.\n#### 2"},
     "23 - 15 dollars left. 23 - 15 is 8. The answer is 8.\n\nQ: How many?\nA:", "Two.\n#### 2"),
    ("llemma_ocwcourses", {"problem": "Find $x$.", "solution": "$\\boxed{2}$", "answer": "2"},
     "I hope it is correct.\n\nProblem:\nFind $x$.\nSolution:", "$\\boxed{2}$"),
    ("llemma_mmlu_stem", {"question": "Which?", "choices": list("abcd"), "answer": 2, "subject": "biology"},
     "is correct.\n\nProblem:\nWhich?\nWhat of the following is the right choice? Explain your answer.\n"
     "(A) a, (B) b, (C) c, (D) d\nSolution:", "(C)"),
    ("llemma_sat", {"Question": "Which?", "Possible Answers": "A) 1 B) 2 C) 3 D) 4", "Answer": "D"},
     "\n\nProblem:\nWhich?\nWhat of the following is the right choice? Explain your answer.\n"
     "A) 1 B) 2 C) 3 D) 4\nSolution:", "(D)"),
    ("llemma_math500", {"problem": "Find $x$.", "solution": "$\\boxed{2}$", "answer": "2", "level": 3},
     "I hope it is correct.\n\nProblem:\nFind $x$.\n\nSolution:", "$\\boxed{2}$"),
])  # fmt: skip
def test_rows_of_the_hub_become_prompts(
    task: str, row: dict[str, Any], end: str, reference: str, tmp_path: Path
) -> None:
    (item,) = items(task, [row], tmp_path)
    assert item.prompt.endswith(end)
    assert item.doc["reference"] == reference
    assert item.doc["level"] == row.get("level")
    assert item.doc["subject"] == row.get("subject")


def test_likelihood_is_of_the_reference_after_the_problem(tmp_path: Path) -> None:
    (item,) = items("llemma_gsm8k_perplexity", [{"question": "How many?", "answer": "Two."}], tmp_path)
    assert item.arguments == ("Question: How many?\nAnswer:", " Two.")
    (item,) = items("llemma_math_perplexity", MATH_ROWS[:1], tmp_path)
    solution = MATH_ROWS[0]["solution"]
    assert item.arguments == (f"Problem: {MATH_ROWS[0]['problem']}\nAnswer:", f" {solution}")


def test_levels_and_subjects(tmp_path: Path) -> None:
    found = items("llemma_math", MATH_ROWS, tmp_path)
    assert [item.doc["level"] for item in found] == [1, 5, None, 3]
    assert [item.doc["subject"] for item in found] == [
        "number_theory", "algebra", "counting_and_probability", "algebra",
    ]  # fmt: skip


def test_what_a_row_lacks_is_said(tmp_path: Path) -> None:
    lacking = (
        r"rows\.jsonl:2: has no problem.*it has text, solution; .*--data-field llemma_math\.problem=NAME"
    )
    with pytest.raises(UserError, match=lacking):
        items("llemma_math", [MATH_ROWS[0], {"text": "Find $x$.", "solution": "2"}], tmp_path)
    with pytest.raises(UserError, match="has no choices"):
        items("llemma_sat", [{"problem": "Which?", "reference": "(A)"}], tmp_path)
    told = {"problem": "text", "reference": "gold"}
    (item,) = items("llemma_math", [{"text": "Find $x$.", "gold": "2"}], tmp_path, fields=told)
    assert item.doc["problem"] == "Find $x$."
    assert item.doc["reference"] == "2"


def test_no_other_field_is_taken_for_a_told_one(tmp_path: Path) -> None:
    row = {"question": "?", "answer": "Tom has 3, gets 4, so 7.", "gold": 7, "text": ""}
    (item,) = items("llemma_gsm8k", [row], tmp_path, fields={"reference": "gold"})
    assert item.doc["reference"] == "7"
    with pytest.raises(UserError, match=r"rows\.jsonl:1: problem=.*: is not text"):
        items("llemma_gsm8k", [row], tmp_path, fields={"problem": "text"})
    choice = {"question": "?", "choices": list("abcd"), "answer": 1, "gold": "seven"}
    with pytest.raises(UserError, match=r"rows\.jsonl:1: reference=seven: is not 0 to 3"):
        items("llemma_mmlu_stem", [choice], tmp_path, fields={"reference": "gold"})


@pytest.mark.parametrize(("task", "row", "said"), [
    ("llemma_math", {"problem": 5, "solution": "2"}, "problem=5: is not text"),
    ("llemma_math", {"problem": "?", "solution": None}, "solution=null: is not text"),
    ("llemma_mmlu_stem", {"question": "?", "choices": list("abc"), "answer": 1}, "is not a list of 4"),
    ("llemma_mmlu_stem", {"question": "?", "choices": list("abcd"), "answer": "7"},
     "answer=7: is not 0 to 3 or A to D"),
    ("llemma_mmlu_stem", {"question": "?", "choices": list("abcd"), "answer": 4}, "answer=4: is not 0 to 3"),
])  # fmt: skip
def test_a_field_of_the_wrong_kind_is_not_called_absent(
    task: str, row: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"rows\.jsonl:1: .*{said}.*--data-field {task}\."):
        items(task, [row], tmp_path)


@pytest.mark.parametrize(("task", "row"), [
    ("llemma_gsm8k", {"question": "?", "answer": "It is five.\n#### five"}),
    ("llemma_gsm8k_maj", {"question": "?", "answer": "#### five"}),
    ("llemma_gsm8k_python", {"question": "?", "answer": "#### five"}),
    ("llemma_math", {"problem": "?", "solution": "$\\boxed{}$"}),
    ("llemma_math_python", {"problem": "?", "solution": "$\\boxed{}$"}),
])  # fmt: skip
def test_a_reference_without_an_answer_is_refused_before_there_are_samples(
    task: str, row: dict[str, Any], tmp_path: Path
) -> None:
    good = {"question": "?", "problem": "?", "answer": "#### 5", "solution": "$\\boxed{5}$"}
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: reference=.* holds no answer .*{task}\.reference"):
        items(task, [good, row], tmp_path)
    assert len(items(task, [good, row], tmp_path, limit=1)) == 1


def test_choices_of_the_sat_under_another_name(tmp_path: Path) -> None:
    row = {"Question": "Which?", "options": "A) 1 B) 2 C) 3 D) 4", "Answer": "D"}
    (item,) = items("llemma_sat", [row], tmp_path, fields={"choices": "options"})
    assert item.prompt.endswith("A) 1 B) 2 C) 3 D) 4\nSolution:")


def test_without_the_hub_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach the hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"openai/gsm8k cannot be had from the hub .*--data"):
        items_of(catalogue()["llemma_gsm8k"], None, None, 1024)


@pytest.mark.parametrize(("task", "row", "right", "wrong"), [
    ("llemma_math", MATH_ROWS[3], "Final Answer: The final answer is $0.5$.",
     "Final Answer: The final answer is $2$."),
    ("llemma_gsm8k", {"question": "?", "answer": "#### 1,200"},
     "So. The answer is 1200.", "The answer is 12."),
    ("llemma_sat", {"Question": "Which?", "Possible Answers": "A) 1 B) 2", "Answer": "B"},
     "Final Answer: The final answer is (B).", "Final Answer: The final answer is (A)."),
    ("llemma_ocwcourses", {"problem": "?", "solution": "$\\boxed{0.5}$"},
     "Final answer: The final answer is $\\frac{1}{2}$.", "Final answer: The final answer is 7."),
])  # fmt: skip
def test_lm_evals_own_command_scores_by_the_same_rules(
    task: str, row: dict[str, Any], right: str, wrong: str, tmp_path: Path
) -> None:
    (item,) = items(task, [row], tmp_path)
    process = resolved(catalogue()[task].first)["process_results"]
    assert process(item.doc, [right]) == {"correct": 1.0}
    assert process(item.doc, [wrong]) == {"correct": 0.0}
    # take_first_k leaves all samples in one list: the majority decides, invalid ones do not vote.
    assert process(item.doc, [[wrong, right, "none", right]]) == {"correct": 1.0}
    assert process(item.doc, [["none", "neither"]]) == {"correct": 0.0}


def test_lm_eval_makes_a_perplexity_per_byte(tmp_path: Path) -> None:
    from lm_eval.api.metrics import weighted_perplexity

    (item,) = items("llemma_gsm8k_perplexity", [{"question": "?", "answer": "é"}], tmp_path)
    process = resolved(catalogue()["llemma_gsm8k_perplexity"].first)["process_results"]
    found = process(item.doc, [(-6.0, False)])
    assert found == {"byte_perplexity": (-6.0, 3)}
    assert weighted_perplexity([found["byte_perplexity"]]) == pytest.approx(math.exp(2))
