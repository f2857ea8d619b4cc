# SPDX-License-Identifier: Apache-2.0
"""What `recompute: auto` becomes: the cheapest of all that fit, found by trying all; 7B on one GPU."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import product

import pytest

from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.loader import load_config
from megatron.planning import recompute
from megatron.planning.gpus import GIB, find_typed_gpu
from megatron.planning.machine import RESERVED_BYTES, USED_SHARE
from megatron.planning.measured import Building
from megatron.planning.memory import Choice, choice_of, fullest_stage
from megatron.planning.recompute import described, flops_again, settle, settled_here, without_recompute
from tests.planning.test_plan import CONFIGS, ROOT, llemma

VOCAB = 32016


def one_gpu(*more: str) -> RunConfig:
    names = ["llemma_7b", "proof_pile_2", "one_gpu_7b", *more]
    return load_config([CONFIGS / f"{name}.yml" for name in names], [], check_files=False)[0]


def planned_bytes(gpu: str) -> int:
    found = find_typed_gpu(gpu)
    assert found is not None
    return int(USED_SHARE * int(found.usable_gib * GIB))


def needs(cfg: RunConfig, choice: Choice, ranks: int) -> int:
    accumulation = cfg.batch.batch_shape(ranks // cfg.parallel.model_ranks).accumulation
    return fullest_stage(cfg, choice, VOCAB, ranks, accumulation)[1].total + RESERVED_BYTES


@pytest.mark.parametrize("changes", [
    (),
    ("seq_length=32768", "max_position_embeddings=32768"),
    ("pipe_parallel_size=4", "model_parallel_size=2"),
    ("norm_position=after", "qk_norm=projection"),
])  # fmt: skip
def test_nothing_cheaper_fits(changes: tuple[str, ...]) -> None:
    """Against every number of whole layers with every set of parts that auto may choose."""
    ranks = 8
    cfg = llemma(
        "7b",
        "checkpoint_activations=auto",
        "model_parallel_size=1",
        "train_micro_batch_size_per_gpu=1",
        *changes,
    )
    run = choice_of(cfg, ranks)
    layers = cfg.model.num_layers // run.pipeline
    norms = ["layernorm"] if cfg.model.norm_position == "before" else []
    sets = [(), ("mlp_act",), *([(*norms,), (*norms, "mlp_act"), (*norms, "mlp")] if norms else [])]
    tried = [
        replace(run, recompute="full", recompute_modules=parts, recompute_num_layers=whole)
        if whole
        else replace(run, recompute="selective" if parts else "none", recompute_modules=parts)
        for whole, parts in product(range(layers + 1), sets)
    ]
    costs = []
    for most_bytes in range(needs(cfg, tried[-1], ranks), needs(cfg, tried[0], ranks) + GIB, GIB // 2):
        fitting = [one for one in tried if needs(cfg, one, ranks) <= most_bytes]
        _, settled = settle(cfg, ranks, VOCAB, most_bytes)
        assert settled.memory.total <= most_bytes
        assert settled.memory.total == needs(cfg, settled.choice, ranks)
        cheapest = min(flops_again(cfg, one) for one in fitting)
        assert flops_again(cfg, settled.choice) == pytest.approx(cheapest)
        costs.append(flops_again(cfg, settled.choice))
    assert costs == sorted(costs, reverse=True), "more memory never costs more"
    assert costs[-1] == 0.0 < costs[0]


def test_where_nothing_fits_all_is_computed_again() -> None:
    cfg, settled = settle(llemma("7b", "checkpoint_activations=auto"), 2, VOCAB, 10 * GIB)
    assert described(settled.choice) == "full"
    assert settled.memory.total > 10 * GIB
    assert (cfg.parallel.recompute, cfg.parallel.recompute_method) == ("full", "uniform")


def test_what_it_became_is_a_configuration_that_loads() -> None:
    """As it is frozen: the keys are those that a person could have written."""
    cfg, _ = settle(one_gpu("one_gpu_7b_80gb"), 1, VOCAB, planned_bytes("h100"))
    assert cfg.parallel.recompute_method == "block"
    assert RunConfig.model_validate_json(cfg.frozen_bytes()) == cfg
    written = [f"{key}={value}" for key, value in {
        "checkpoint_activations": cfg.parallel.recompute,
        "recompute_method": cfg.parallel.recompute_method,
        "recompute_num_layers": cfg.parallel.recompute_num_layers,
        "recompute_modules": f"[{','.join(cfg.parallel.recompute_modules)}]",
    }.items()]  # fmt: skip
    files = [
        CONFIGS / f"{name}.yml" for name in ("llemma_7b", "proof_pile_2", "one_gpu_7b", "one_gpu_7b_80gb")
    ]
    again, _ = load_config(files, written, check_files=False)
    assert again.parallel == cfg.parallel
    assert without_recompute(cfg).parallel.recompute == "none"


@pytest.mark.parametrize(("more", "gpu", "becomes"), [
    ((), "h200", "selective (layernorm)"),
    (("one_gpu_7b_80gb",), "h100", "full in the first"),
])  # fmt: skip
def test_7b_fits_one_gpu(more: tuple[str, ...], gpu: str, becomes: str) -> None:
    """Built on paper, with what auto chose; the arithmetic that chose it is within 1% of all memory."""
    most_bytes = planned_bytes(gpu)
    cfg, settled = settle(one_gpu(*more), 1, VOCAB, most_bytes)
    assert described(settled.choice).startswith(becomes)
    assert settled.nothing_again.total > most_bytes, "nothing would have had to be computed again"
    [built] = Building(cfg, VOCAB, VOCAB, [0], 1).wait()
    assert built.parameters == 6_738_546_688
    total = built.memory.total + RESERVED_BYTES
    assert total <= most_bytes
    assert settled.memory.total == pytest.approx(total, rel=0.01)
    for kind in ("weights", "gradients", "optimizer"):
        assert getattr(settled.memory, kind) == getattr(built.memory, kind), kind


def test_a_dry_run_says_what_auto_becomes() -> None:
    command = [
        sys.executable, ROOT / "deepy.py", ROOT / "train.py", CONFIGS / "llemma_7b.yml",
        CONFIGS / "one_gpu_7b.yml", "--dry-run", "--world-size", "1",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "recompute     auto is settled when the run starts" in done.stdout


def test_what_auto_becomes_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's answer is a stand-in."""
    cfg = one_gpu()
    assert settled_here(cfg, 1, on_gpu=False).startswith("auto becomes none on CPUs")
    monkeypatch.setattr(recompute, "gpu_here", lambda: ("NVIDIA H200", 150_754_820_096))
    said = settled_here(cfg, 1, on_gpu=True)
    assert said.startswith("on NVIDIA H200: recompute auto: selective (layernorm); a GPU needs 131.")
    monkeypatch.setattr(recompute, "gpu_here", lambda: None)
    assert "--plan --gpu NAME" in settled_here(cfg, 1, on_gpu=True)
