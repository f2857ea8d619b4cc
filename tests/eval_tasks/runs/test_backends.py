# SPDX-License-Identifier: Apache-2.0
"""Models that are not there or cannot be read are told in one line, with their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval_tasks.runs.backends import ModelChoice, choice_problems, open_hf
from megatron.neox_arguments.errors import UserError
from tests.llamas import save_hf_llama


def choice(checkpoint: str) -> ModelChoice:
    return ModelChoice(checkpoint, "hf", None, batch_size=1, seed=0)


def test_a_path_is_no_name_at_the_hub(tmp_path: Path) -> None:
    for name in ("../nothere", "./nothere", str(tmp_path / "nothere"), "nothere/"):
        (problem,) = choice_problems(choice(name), 1)
        assert str(problem).startswith(f"CHECKPOINT={name}: no such folder")
    assert [str(problem) for problem in choice_problems(choice("EleutherAI/llemma_7b"), 1)] == []
    (problem,) = choice_problems(choice(str(tmp_path)), 1)
    assert "holds no model" in str(problem)


@pytest.mark.parametrize(("name", "content"), [
    ("model.safetensors", None), ("config.json", b"{"), ("config.json", b'{"model_type": "llama", "vocab_size": "x"}'),
    ("tokenizer.json", b'{"version": 7}'),
])  # fmt: skip
def test_a_broken_model_is_told_in_one_line(name: str, content: bytes | None, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs requirements/requirements-eval.txt")
    folder = save_hf_llama(tmp_path / "hf")
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(UserError) as caught:
        open_hf(choice(str(folder)))
    assert str(caught.value).startswith(f"{path if content is None else folder}: transformers cannot read it (")
    assert "\n" not in str(caught.value)
