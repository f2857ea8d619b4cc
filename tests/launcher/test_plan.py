# SPDX-License-Identifier: Apache-2.0
"""How many ranks a run gets, and what it amounts to on them in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron.launcher.devices import GpuCount
from megatron.launcher.plan import describe, plan_ranks, tokens_per_step, torn_groups
from megatron.neox_arguments.errors import ConfigError
from megatron.planning.groups import Layout, crossing, span
from tests.launcher.runs import small_run

NO_GPU, EIGHT = GpuCount(0, "/dev/nvidia*"), GpuCount(8, "nvidia-smi -L")


def test_without_gpus_one_copy_of_the_model(tmp_path: Path) -> None:
    assert plan_ranks(small_run(tmp_path), NO_GPU).ranks == 1
    plan = plan_ranks(small_run(tmp_path, model_parallel_size=2, pipe_parallel_size=2), NO_GPU)
    assert (plan.ranks, plan.on_gpu) == (4, False)
    assert "no GPU here" in str(plan)


def test_one_rank_a_gpu_unless_told_otherwise(tmp_path: Path) -> None:
    assert (plan_ranks(small_run(tmp_path), EIGHT).ranks, plan_ranks(small_run(tmp_path), EIGHT).on_gpu) == (
        8,
        True,
    )
    assert plan_ranks(small_run(tmp_path, num_gpus=4), EIGHT).ranks == 4
    on_cpu = plan_ranks(small_run(tmp_path, cpu_ranks=3), EIGHT)
    assert (on_cpu.ranks, on_cpu.on_gpu) == (3, False)
    assert "8 GPUs left alone" in str(on_cpu)


@pytest.mark.parametrize(("gpus", "remedy"), [(NO_GPU, "leave num_gpus out"), (EIGHT, "use num_gpus=8")])
def test_more_gpus_than_there_are_is_refused(tmp_path: Path, gpus: GpuCount, remedy: str) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_ranks(small_run(tmp_path, num_gpus=9), gpus)
    assert "num_gpus=9" in str(refused.value)
    assert remedy in str(refused.value)


def test_the_description_counts_as_a_reader_would(tmp_path: Path) -> None:
    cfg = small_run(
        tmp_path, model_parallel_size=2, train_data_paths=["a/arxiv", "a/web"], train_data_weights=[1, 3]
    )
    # 8 ranks / TP 2 = 4 copies; 2 x 3 x 4 = 24 sequences; x 128 = 3,072 tokens; x 10 = 30,720
    assert tokens_per_step(cfg, 8) == 3072
    text = describe(cfg, 8)
    assert "8 ranks = tensor parallel 2 x pipeline 1 x data parallel 4" in text
    assert "2 sequences x 3 accumulation steps x 4 data parallel = 24 sequences a step" in text
    assert "3,072 tokens a step" in text
    assert "10 iterations = 30,720 tokens" in text
    assert "arxiv 25.0%, web 75.0%" in text
    assert "nothing is kept" in text


@pytest.mark.parametrize(("keys", "words"), [
    ({"decay_lr_to": 0.1, "warmup_iters": 2}, "2 iterations up to 0.001, cosine down to 0.0001"),
    ({"lr_decay_style": "constant"}, "then constant"),
    ({"lr_decay_style": "wsd", "wsd_decay_iters": 4}, "over the last 4"),
])  # fmt: skip
def test_the_learning_rate_in_words(tmp_path: Path, keys: dict[str, object], words: str) -> None:
    assert words in describe(small_run(tmp_path, **keys), 1)


@pytest.mark.parametrize(("machines", "each", "tensor"), [
    (4, 7, 2), (4, 8, 2), (1, 7, 7), (6, 4, 3), (4, 8, 16), (3, 4, 12), (5, 6, 10),
])  # fmt: skip
def test_tensor_parallel_groups_over_machines_are_counted(machines: int, each: int, tensor: int) -> None:
    expected = crossing(Layout(tensor, 1, machines * each // tensor), each)
    found = torn_groups([each] * machines, tensor)
    assert (found is None) == (not expected)
    if found is not None:
        assert found.startswith(f"{len(expected)} tensor parallel group")
        assert f"such as ranks {span(expected[0])}:" in found


def test_machines_may_differ_in_size() -> None:
    assert torn_groups([4, 2, 2], 2) is None
    assert str(torn_groups([3, 2, 1], 2)).startswith("2 tensor parallel groups lie")
