# SPDX-License-Identifier: Apache-2.0
"""GSM8k+Python, MATH+Python, miniF2F and ProofNet: prompts, stops, verdicts, on rows as the hub has them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from eval_tasks.programs.sandbox import Limits
from eval_tasks.programs.verdicts import gsm8k_program, math_program
from eval_tasks.prompts import prompt
from eval_tasks.runs.catalogue import catalogue
from eval_tasks.runs.local_data import LocalFile
from eval_tasks.tasks.programs import utils as programs
from eval_tasks.tasks.proofs.utils import problem_kind, written_results
from tests.eval_tasks.programs.boxes import sandbox_or_skip
from tests.eval_tasks.runs.files import write_rows
from tests.eval_tasks.shared_data import shared_rows

pytest.importorskip("lm_eval", reason="needs requirements/requirements-eval.txt")

ROW = {
    "problem_name": "mathd_numbertheory_1",
    "informal_statement": "Show that $\\frac{4}{2}$ is 2.",
    "informal_proof": "Clear.",
    "formal_statement": 'theorem mathd_numbertheory_1:\n  "4 div 2 = (2::nat)"',
}


def items(task: str, rows: list[dict[str, Any]], folder: Path) -> list[Any]:
    from eval_tasks.runs.requests import items_of

    return items_of(catalogue()[task], LocalFile(write_rows(folder / "rows.jsonl", rows)), None, 1024)


def test_the_gsm8k_prompt_ends_as_llemmas_harness_has_it(tmp_path: Path) -> None:
    (item,) = items("llemma_gsm8k_python", [{"question": "How many?", "answer": "2\n#### 2"}], tmp_path)
    text = prompt("pal_gsm8k_8_shot").text
    assert item.prompt == f"{text}\n\n\n\n\n\nQ: How many?\n\n# solution in Python:"
    # Every part has the form of the others.
    for part in item.prompt.split("\n\n\n\n\n\n")[:-1]:
        question = re.match(r"Q: (.*)\n\n# solution in Python:\n\n\ndef solution\(\):\n", part)
        assert question is not None
        assert f'    """{question[1]}"""\n' in part
        assert part.endswith("\n    return result")
    assert item.arguments[1]["until"] == ["Q:"]
    assert item.doc["reference"] == "2\n#### 2"


def test_the_examples_of_gsm8k_compute_the_answers_of_chain_of_thought() -> None:
    """The same eight questions as Wei et al.'s, whose answers are in words."""
    parts = prompt("pal_gsm8k_8_shot").text.split("\n\n\n\n\n\n")
    answers = dict(re.findall(r"Q: (.*)\nA: .*The answer is (\d+)\.", prompt("wei_gsm8k_8_shot").text))
    answers = {re.sub(r"\W+", "", question.lower()): answer for question, answer in answers.items()}
    box = sandbox_or_skip()
    for part in parts:
        question, _, program = part.partition("\n\n# solution in Python:")
        code = gsm8k_program(program)
        assert code is not None
        assert box.run(code).output.strip() == answers[re.sub(r"\W+", "", question[3:].lower())]


def test_the_math_prompt_ends_in_an_open_fence(tmp_path: Path) -> None:
    row = {"problem": "Find $x$.", "solution": "$\\boxed{2}$", "level": "Level 4", "type": "Algebra"}
    (item,) = items("llemma_math_python", [row], tmp_path)
    end = f"I hope my solution is correct.\n\nProblem:\nFind $x$.\n\n{programs.MATH_INSTRUCTION}\n```"
    assert (
        item.prompt
        == prompt("llemma_math_python_5_shot").text.removesuffix("I hope my solution is correct.") + end
    )
    assert item.prompt.count(f"\n\n{programs.MATH_INSTRUCTION}\n```") == 6
    assert item.arguments[1]["until"] == ["I hope my solution is correct."]
    assert len(catalogue()["llemma_math_python"].leaves) == 7


def test_the_examples_of_math_are_programs() -> None:
    parts = prompt("llemma_math_python_5_shot").text.split(programs.MATH_INSTRUCTION)[1:]
    box = sandbox_or_skip(Limits(cpu_seconds=60))
    pytest.importorskip("sympy")
    values = []
    for part in parts:
        code = math_program(part.removeprefix("\n```"))
        assert code is not None
        values.append(json.loads(box.run(code, "answer").value or "null")["text"])
    # The third has a name that is defined nowhere; the first is a list, which the scorer calls wrong.
    assert values == ["[20/3]", "24", "", "0.36328125", "17"]


def test_lm_evals_own_command_scores_by_the_same_rules() -> None:
    sandbox_or_skip()
    doc = {"reference": "#### 3", "problem": "", "extra": ""}
    assert programs.gsm8k_results(doc, ["def solution(): return 3"]) == {"correct": 1.0}
    assert programs.gsm8k_results(doc, ["def solution(): return 4"]) == {"correct": 0.0}
    written = "\nanswer = 3\n```\nThe imports required for this program are\n```\n\n```\n"
    assert programs.math_results({**doc, "reference": "$\\boxed{3}$"}, [written]) == {"correct": 1.0}
    assert written_results(doc, [" "]) == {"written": 0.0}
    assert written_results(doc, [["", "by simp"]]) == {"written": 1.0}


def test_minif2f_in_the_form_of_draft_sketch_prove(tmp_path: Path) -> None:
    other = {**ROW, "problem_name": "algebra_1", "formal_statement": 'theorem algebra_1: "x"'}
    first, second = items("llemma_minif2f_isabelle", [ROW, other], tmp_path)
    end = (
        "\n\n\n\nInformal:\n(*### Problem\n\nShow that $\\frac{4}{2}$ is 2.\n\n### Solution\n\nClear. *)\n\n"
        'Formal:\ntheorem mathd_numbertheory_1:\n  "4 div 2 = (2::nat)"'
    )
    assert first.prompt == prompt("dsp_isabelle_numbertheory").text + end
    assert second.prompt.startswith(prompt("dsp_isabelle_other").text + "\n\n\n\nInformal:")
    assert first.doc["reference"] == ROW["formal_statement"]
    assert json.loads(first.doc["extra"])["name"] == "mathd_numbertheory_1"
    assert first.arguments[1]["until"] == ["\n\n\n"]


def test_theorems_that_are_examples_are_left_out(tmp_path: Path) -> None:
    shown = {**ROW, "problem_name": "mathd_numbertheory_188"}
    assert len(items("llemma_minif2f_isabelle_validation", [ROW, shown], tmp_path)) == 1


def test_backslashes_of_the_prompts_are_whole() -> None:
    for kind in ("numbertheory", "other"):
        text = prompt(f"dsp_isabelle_{kind}").text
        assert set("\a\b\f\r\t\v") & set(text) == set()
        assert "\\frac{9x^2\\sin^2 x + 4}{x\\sin x}" in text
        assert "\\<le>" in text
    assert "\\begin{align*}" in prompt("dsp_isabelle_numbertheory").text
    assert "\n\\\\\\Rightarrow\\qquad" in prompt("dsp_isabelle_numbertheory").text


def test_the_statements_of_the_examples_are_those_of_the_data() -> None:
    rows = {row["problem_name"]: row for row in shared_rows("minif2f_isabelle_dsp_aligned")}
    found = 0
    for kind in ("numbertheory", "other"):
        for example in prompt(f"dsp_isabelle_{kind}").text.split("\n\n\n\n"):
            name = re.search(r"theorem (\w+):", example)
            assert name is not None
            if name[1] in rows and name[1] != "mathd_numbertheory_48":  # given otherwise in the data
                assert rows[name[1]]["formal_statement"] in example
                found += 1
    assert found == 9


def test_all_theorems_of_the_data_become_prompts(tmp_path: Path) -> None:
    found = items("llemma_minif2f_isabelle", shared_rows("minif2f_isabelle_dsp_aligned"), tmp_path)
    assert len(found) == 488 - 9
    kinds = [problem_kind(item.doc["reference"]) for item in found]
    assert kinds.count("numbertheory") == 136 - 6
    assert len({item.name for item in found}) == len(found)


def test_proofnet_goes_on_from_the_statement(tmp_path: Path) -> None:
    row = {
        "id": "Rudin|exercise_1_1", "nl_statement": "Prove it.", "nl_proof": "Clear.",
        "lean4_src_header": "import Mathlib\n",
        "lean4_formalization": "theorem exercise_1_1 (x : ℝ) : x = x :=\n  sorry",
    }  # fmt: skip
    (item,) = items("llemma_proofnet", [row], tmp_path)
    assert item.prompt.endswith(
        "\n\n\n\nInformal:\n/- ### Problem\n\nProve it.\n\n### Solution\n\nClear. -/\n\n"
        "Formal:\ntheorem exercise_1_1 (x : ℝ) : x = x := by"
    )
    assert json.loads(item.doc["extra"])["header"] == "import Mathlib\n"
