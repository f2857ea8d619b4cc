# SPDX-License-Identifier: Apache-2.0
"""The frozen object itself: derived values, the batch, and the way to a file and back."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from megatron.neox_arguments import ConfigError, RunConfig, UserError
from megatron.neox_arguments.config import (
    BatchConfig,
    ModelConfig,
    OptimizerConfig,
    RotaryScaling,
    ScheduleConfig,
    llama_intermediate_size,
    source_names,
)

from .files import CONFIGS, load, small, unhurried, written


def _run() -> RunConfig:
    return load(CONFIGS / "llemma_34b.yml", CONFIGS / "proof_pile_2.yml")


def test_nothing_can_be_changed_or_added() -> None:
    cfg = _run()
    with pytest.raises(ValidationError):
        cfg.model.num_layers = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        ModelConfig(num_layers=1, hidden_size=8, num_attention_heads=1, seq_length=8, hidden=3)  # type: ignore[call-arg]


# Widths of Llama 2 7B, 13B and Code Llama 34B, as in their config.json.
@pytest.mark.parametrize(("hidden", "width"), [(4096, 11008), (5120, 13824), (8192, 22016)])
def test_width_of_the_mlp(hidden: int, width: int) -> None:
    assert llama_intermediate_size(hidden) == width


def test_derived_values(tmp_path: Path) -> None:
    cfg = load(small(tmp_path, save="out", model_parallel_size="2"))
    assert (cfg.model.num_kv_heads, cfg.model.head_dim, cfg.model.max_position_embeddings) == (4, 16, 32)
    assert cfg.parallel.sequence_parallel
    assert cfg.schedule.lr_decay_iters == 100
    assert cfg.logging.log_dir == Path("out/logs")
    assert cfg.logging.tensorboard_dir == Path("out/logs/tensorboard")
    assert load(small(tmp_path)).logging.log_dir is None


def test_derived_values_without_the_loader() -> None:
    cfg = RunConfig(
        model=ModelConfig(num_layers=1, hidden_size=64, num_attention_heads=2, seq_length=8),
        optimizer=OptimizerConfig(lr=1e-3),
        schedule=ScheduleConfig(train_iters=10, decay_lr_to=0.1),
    )
    assert math.isclose(cfg.schedule.min_lr, 1e-4)


def test_freeze_and_thaw(tmp_path: Path) -> None:
    cfg = _run()
    path = tmp_path / "new" / "run.json"
    cfg.freeze(path)
    assert RunConfig.thaw(path) == cfg
    assert os.listdir(path.parent) == ["run.json"]


def test_freezing_again_replaces_the_file_in_one_step(tmp_path: Path) -> None:
    path, other_name = tmp_path / "run.json", tmp_path / "hard-link"
    path.write_text("old")
    os.link(path, other_name)
    _run().freeze(path)
    assert other_name.read_text() == "old"  # the old file was left whole, and another put in its place
    assert RunConfig.thaw(path) == _run()


def test_rotary_scaling_survives(tmp_path: Path) -> None:
    cfg = load(small(tmp_path, rotary_scaling="{type: llama3, factor: 8.0}"))
    assert cfg.model.rotary_scaling == RotaryScaling(type="llama3", factor=8)
    cfg.freeze(tmp_path / "run.json")
    assert RunConfig.thaw(tmp_path / "run.json") == cfg
    assert load(written(tmp_path, "again.yml", cfg.to_yaml())) == cfg


def test_freezing_leaves_the_old_file_where_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, path = _run(), tmp_path / "run.json"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        cfg.freeze(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"model": 3}', "\0"])
def test_thawing_something_else(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="is not a run frozen by this version"):
        RunConfig.thaw(written(tmp_path, "run.json", text))
    with pytest.raises(UserError, match="cannot be read"):
        RunConfig.thaw(tmp_path / "missing.json")


def test_yaml_loads_to_an_equal_run(tmp_path: Path) -> None:
    cfg = load(CONFIGS / "llemma_34b.yml", CONFIGS / "proof_pile_2.yml", CONFIGS / "local_cpu.yml")
    assert load(written(tmp_path, "again.yml", cfg.to_yaml())) == cfg


@unhurried
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_any_text_survives_yaml(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("yaml")
    cfg = load(small(folder))
    cfg = cfg.model_copy(update={"logging": cfg.logging.model_copy(update={"wandb_group": text})})
    again = load(written(folder, "again.yml", cfg.to_yaml()))
    assert again.logging.wandb_group == text


@unhurried
@given(micro=st.integers(1, 50), accumulation=st.integers(1, 50), ranks=st.integers(1, 300))
def test_two_of_three_give_the_third(micro: int, accumulation: int, ranks: int) -> None:
    names = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")
    values = dict(zip(names, (micro, accumulation, micro * accumulation * ranks), strict=True))
    for left_out in (*names, None):
        given_ = {name: value for name, value in values.items() if name != left_out}
        shape = BatchConfig(**given_).batch_shape(ranks)
        assert (shape.micro, shape.accumulation, shape.data_parallel) == (micro, accumulation, ranks)
        assert shape.global_ == micro * accumulation * ranks


@unhurried
@given(
    micro=st.none() | st.integers(1, 9),
    accumulation=st.none() | st.integers(1, 9),
    total=st.none() | st.integers(1, 99),
    ranks=st.integers(1, 9),
)
def test_a_batch_is_exact_or_refused(
    micro: int | None, accumulation: int | None, total: int | None, ranks: int
) -> None:
    batch = BatchConfig(
        train_micro_batch_size_per_gpu=micro, gradient_accumulation_steps=accumulation, train_batch_size=total
    )
    impossible = total is not None and total % ((micro or 1) * (accumulation or 1) * ranks) != 0
    disagree = (
        None not in (micro, accumulation, total) and (micro or 0) * (accumulation or 0) * ranks != total
    )
    if impossible or disagree or (micro is None and total is None):
        with pytest.raises(ConfigError) as caught:
            batch.batch_shape(ranks)
        assert len(caught.value.problems) == 1
        return
    shape = batch.batch_shape(ranks)
    assert shape.micro * shape.accumulation * ranks == shape.global_
    assert micro in (None, shape.micro)
    assert accumulation in (None, shape.accumulation)
    assert total in (None, shape.global_)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/arxiv_text_document", "b/web_text_document"], ("arxiv", "web")),
        (["arxiv/train_text_document", "web/train_text_document"], ("arxiv", "web")),
        (["x/train", "x/train"], ("x", "x-2")),
        (["plain", "plain"], ("plain", "plain-2")),
        ([], ()),
    ],
)
def test_names_of_sources(paths: list[str], names: tuple[str, ...]) -> None:
    assert source_names([Path(path) for path in paths]) == names


@unhurried
@given(st.lists(st.sampled_from(["a/x", "b/x", "x-2", "c/x-2", "a/x_text_document", "b", "a"]), max_size=6))
def test_names_of_sources_are_distinct(paths: list[str]) -> None:
    names = source_names([Path(path) for path in paths])
    assert len(set(names)) == len(paths)
