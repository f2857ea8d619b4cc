# SPDX-License-Identifier: Apache-2.0
"""What is asked for goes with the tasks it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval_tasks.runs.catalogue import chosen
from eval_tasks.runs.run import Asked, TaskPlan, make_all
from eval_tasks.runs.sampling import Model
from eval_tasks.runs.settings import Settings, keep_settings
from megatron.neox_arguments.errors import ConfigError


def test_k_is_of_the_tasks_that_draw(tmp_path: Path) -> None:
    greedy, drawn = chosen(["llemma_gsm8k", "llemma_gsm8k_maj"])
    both = Asked(tmp_path, [greedy, drawn], {}, samples_per_item=4)
    assert not both.problems()
    assert (both.samples_of(greedy), both.samples_of(drawn)) == (1, 4)
    (problem,) = Asked(tmp_path, [greedy], {}, samples_per_item=4).problems()
    assert str(problem).startswith("--k=4: none of the tasks draws")
    assert Asked(tmp_path, [drawn], {}).samples_of(drawn) == 100


def test_a_run_that_was_begun_again_by_others_while_the_model_was_opened_makes_nothing(
    tmp_path: Path,
) -> None:
    (entry,) = chosen(["llemma_gsm8k"])
    asked, mine = Asked(tmp_path, [entry], {}), Settings({"name": "m"}, {"llemma_gsm8k": {"limit": 5}})
    keep_settings(tmp_path, mine, False)
    keep_settings(tmp_path, Settings({"name": "m"}, {"llemma_gsm8k": {"limit": 2}}), True)
    with pytest.raises(ConfigError, match="limit=5: was 2 here"):
        make_all(asked, [TaskPlan(entry, [], [])], Model(None, 1, True), print, mine)
