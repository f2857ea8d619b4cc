# SPDX-License-Identifier: Apache-2.0
"""The published prompts: their hashes, and word for word what lm-eval itself has of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from eval_tasks import prompts

lm_eval = pytest.importorskip("lm_eval", reason="needs requirements/requirements-eval.txt")


def test_every_text_has_its_hash_and_source() -> None:
    texts = {path.stem: path.read_bytes() for path in prompts.FOLDER.glob("*.txt")}
    assert set(texts) == set(prompts.sources())
    for name, content in texts.items():
        prompt = prompts.prompt(name)
        assert prompt.sha256 == hashlib.sha256(content).hexdigest() == prompts.sources()[name]["sha256"]
        assert prompt.text.encode() == content
        assert len(prompt.source) > 20


def test_a_changed_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in prompts.FOLDER.glob("*"):
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    changed = tmp_path / "wei_gsm8k_8_shot.txt"
    changed.write_bytes(changed.read_bytes().replace(b"trees", b"tree", 1))
    monkeypatch.setattr(prompts, "FOLDER", tmp_path)
    prompts.prompt.cache_clear()
    try:
        with pytest.raises(ValueError, match="restore the file"):
            prompts.prompt("wei_gsm8k_8_shot")
    finally:
        prompts.prompt.cache_clear()


def test_the_math_prompt_is_lm_evals_but_for_a_brace() -> None:
    from lm_eval.tasks.minerva_math.utils import list_fewshot_samples

    theirs = "\n\n".join(
        f"Problem:\n{shot['problem']}\n\nSolution: {shot['solution']}" for shot in list_fewshot_samples()
    ).replace("Solution: ", "Solution:\n")
    ours = prompts.prompt("minerva_math_4_shot").text
    brace = "$\\frac{\\sqrt{x-2}}{\\sqrt{5-x}}$.}"
    assert ours.count(brace) == 1
    assert ours.replace(brace, brace[:-1]) == theirs


def test_the_gsm8k_prompt_is_lm_evals() -> None:
    file = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k-cot.yaml"
    shots = yaml.safe_load(file.read_text())["fewshot_config"]["samples"]
    theirs = "\n\n".join(f"Q: {shot['question']}\nA: {shot['target']}" for shot in shots)
    assert prompts.prompt("wei_gsm8k_8_shot").text == theirs


def test_the_choices_are_added_to_the_problems_of_the_math_prompt() -> None:
    """Minerva made the one from the other: the same four answers, each in a box, and a letter."""
    text = prompts.prompt("minerva_multiple_choice_4_shot").text
    shots = text.split("Problem:\n")[1:]
    letters = []
    for shot, boxed in zip(shots, ("[2,5)", "24", "16", "-\\frac{2}{3}"), strict=True):
        question, solution = shot.split("\nSolution:\n")
        assert "\\boxed{" + boxed + "}" in solution
        letter = solution.split("The final answer is (")[1][0]
        choice = question.split(f"({letter}) ")[1].split(", (")[0].strip("$")
        assert choice == boxed
        letters.append(letter)
    assert letters == ["B", "D", "C", "A"]
