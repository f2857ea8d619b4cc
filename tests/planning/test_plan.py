# SPDX-License-Identifier: Apache-2.0
"""deepy.py --plan as a user types it, for Llemma's two runs and for what does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron.neox_arguments.checks import check_world
from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import ConfigError, UserError
from megatron.neox_arguments.loader import load_config
from megatron.planning.layouts import candidates
from megatron.planning.machine import Machine, machine_of, parse_bytes
from megatron.planning.plan import make_plan
from megatron.planning.report import as_data, in_words
from tests.ranks import run_ranks
from tests.test_deepy import ROOT, deepy

CONFIGS = ROOT / "configs"
CLUSTER = ("--nodes", 32, "--gpus-per-node", 8, "--gpu", "a100", "--gpu-memory", "40GiB")


def llemma(size: str, *overrides: str) -> RunConfig:
    files = [CONFIGS / f"llemma_{size}.yml", CONFIGS / "proof_pile_2.yml"]
    return load_config(files, overrides, check_files=False)[0]


def cluster(nodes: int = 32, gpus_per_node: int = 8, memory: str = "40GiB", gpu: str = "a100") -> Machine:
    return machine_of(
        nodes=nodes, gpus_per_node=gpus_per_node, gpu_name=gpu, gpu_memory=memory, disk_speed="2GB/s"
    )


def test_34b_on_256_gpus_in_1_gib(tmp_path: Path) -> None:
    saved = tmp_path / "plan.json"
    program = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
        "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "print(done.stdout, done.stderr)\n"
    )
    command = [
        sys.executable, ROOT / "deepy.py", ROOT / "train.py", CONFIGS / "llemma_34b.yml",
        CONFIGS / "proof_pile_2.yml", "--plan", *CLUSTER, "--json", saved,
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, command)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    first, words = done.stdout.split("\n", 1)
    status, kibibytes = first.split()
    assert status == "0", words
    plan = json.loads(saved.read_text())
    assert plan["parameters_per_rank"] == 4_218_691_584
    assert plan["tokens_per_step"] == 4_194_304
    assert plan["data_parallel_size"] == 32
    assert plan["memory_is_measured"]
    memory = plan["memory_bytes_per_rank"]
    assert memory["weights"] == pytest.approx(2 * 4_218_691_584, rel=1e-3)
    assert memory["gradients"] == pytest.approx(4 * 4_218_691_584, rel=1e-3)
    assert memory["optimizer"] == pytest.approx(12 * 4_218_691_584 / 32, rel=1e-3)
    assert memory["total"] == sum(amount for kind, amount in memory.items() if kind != "total")
    assert "fits: " in words
    assert "47,000 A100-hours for 12,000 steps, 50 B tokens" in words
    assert int(kibibytes) * 1024 < 2**30


@pytest.mark.usefixtures("without_torch")
def test_7b_on_256_gpus() -> None:
    plan = make_plan(llemma("7b"), cluster())
    data = as_data(plan)
    assert (data["data_parallel_size"], data["sequences_per_step"]) == (128, 1024)
    assert data["tokens_per_step"] == 4_194_304
    assert data["parameters_per_rank"] == 3_369_406_464  # (6,738,546,688 - 65 norms of 4,096) / 2 + norms
    assert not data["memory_is_measured"]
    words = in_words(plan)
    assert "torch and megatron.core not installed" in words
    assert "arxiv_text_document.idx is not there" in words


@pytest.mark.usefixtures("without_torch")
def test_a_plan_accounts_for_each_second() -> None:
    """Of a step, and of the run: steps, evaluations, saves; and it says what its time hangs on."""
    plan = make_plan(llemma("34b"), cluster())
    data, words = as_data(plan), in_words(plan)
    assert sum(data["step_parts_seconds"].values()) == pytest.approx(data["step_seconds"])
    length = data["length"]
    parts = (length[f"{kind}_seconds"] for kind in ("training", "evaluating", "saving"))
    assert sum(parts) == pytest.approx(length["total_seconds"])
    assert length["training_seconds"] * 256 / 3600 == pytest.approx(data["gpu_hours"])
    assert "the links in a node: tensor parallel communication" in words
    assert "the network between nodes: reducing gradients" in words
    assert [link["is_between_nodes"] for link in data["links"]] == [False, True, True]
    assert "49 times 25 batches of 3 sources, at the end 25 batches of 3 test sources; 3,750 batches" in words
    assert "network of a GPU: 6.25 GB/s, a quarter; 50 GB/s, twice" in words
    assert data["calibrated"] == []
    assert "times of matrix products" in words
    # A given share stretches all of it; the step by the cost model is what it was.
    half = as_data(make_plan(llemma("34b"), cluster(), mfu=data["mfu"] / 2))
    assert half["length"]["training_seconds"] == pytest.approx(2 * length["training_seconds"])
    assert half["length"]["evaluating_seconds"] == pytest.approx(2 * length["evaluating_seconds"])
    assert half["step_seconds"] == data["step_seconds"]


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize(("size", "tokens_per_second", "mfu"), [("7b", 2128, 0.314), ("34b", 297.5, 0.210)])
def test_the_papers_hours_imply_a_utilisation(size: str, tokens_per_second: float, mfu: float) -> None:
    """42,000 x 2^22 / 23,000 h / 3,600 = 2,128; x (6 x 6,607,409,152 + 12 x 32 x 4,096 x 4,096) / 312e12."""
    published = as_data(make_plan(llemma(size), cluster()))["published"]
    assert published["tokens_per_second_per_gpu"] == pytest.approx(tokens_per_second, rel=1e-3)
    assert published["mfu"] == pytest.approx(mfu, abs=1e-3)


@pytest.mark.usefixtures("without_torch")
def test_a_given_utilisation_is_what_time_is_counted_with() -> None:
    plan = make_plan(llemma("7b"), cluster(), mfu=0.5)
    flops = 6 * 6_607_409_152 + 12 * 32 * 4096 * 4096
    assert plan.tokens_per_second == pytest.approx(0.5 * 256 * 312e12 / flops, rel=1e-4)
    assert plan.gpu_hours == pytest.approx(48_000 * 4_194_304 * flops / 0.5 / 312e12 / 3600, rel=1e-4)
    with pytest.raises(UserError, match="--mfu=40"):
        make_plan(llemma("7b"), cluster(), mfu=40)


@pytest.mark.usefixtures("without_torch")
def test_what_does_not_fit_is_said_with_the_nearest_that_does() -> None:
    plan = make_plan(llemma("34b", "recompute=none", "checkpoint_activations=null"), cluster(memory="36GiB"))
    assert not plan.fits
    words = in_words(plan)
    assert "DOES NOT FIT" in words
    nearest = plan.remedies[0]
    assert len(nearest.changes(plan.run)) <= 2
    assert nearest.memory.total <= 0.95 * plan.machine.memory_bytes
    settings = {"recompute": "none", **nearest.changes(plan.run)}
    overrides = [f"{key}={str(value).lower()}" for key, value in settings.items()]
    again = make_plan(llemma("34b", "checkpoint_activations=null", *overrides), cluster(memory="36GiB"))
    assert again.fits
    assert "No layout" in in_words(make_plan(llemma("34b"), cluster(nodes=1, memory="10GiB")))


@pytest.mark.usefixtures("without_torch")
def test_a_run_that_fills_a_gpu_does_not_fit() -> None:
    need = make_plan(llemma("34b"), cluster()).fullest.memory.total
    full = make_plan(llemma("34b"), cluster(memory=str(need)))
    assert not full.fits
    assert "GiB there (no margin is left); a plan uses at most 95% of it" in in_words(full)
    assert make_plan(llemma("34b"), cluster(memory=str(round(need / 0.95) + 1))).fits
    assert as_data(full)["planned_memory_bytes"] == int(0.95 * need)


def test_memory_is_what_a_process_can_have() -> None:
    """Of an A100 with 40 GB that is 39.4 GiB, as CUDA says; what is typed is taken as it stands."""
    machine = machine_of(nodes=1, gpus_per_node=8, gpu_name="a100", gpu_memory=None, disk_speed=None)
    assert machine.memory_bytes == int(39.4 * 2**30)
    assert cluster(memory="40GiB").memory_bytes == 40 * 2**30


@pytest.mark.usefixtures("without_torch")
def test_one_of_a_thing_is_not_many() -> None:
    words = in_words(make_plan(llemma("7b"), cluster(nodes=1)))
    assert "1 node x 8 GPUs" in words
    assert "over 1 node\n" in words
    torn = in_words(make_plan(llemma("34b"), cluster(nodes=2, gpus_per_node=4)))
    assert "1 tensor parallel group lies on more than one node, such as" in torn


def groups_on_paper(ranks: int) -> int:
    """Called in a process of its own: how many process groups the last of `ranks` ranks has."""
    import torch.distributed as dist

    from megatron.backend.paper import initialize_on_paper

    initialize_on_paper(llemma("7b").parallel, ranks - 1, ranks)
    return len(dist.distributed_c10d._world.pg_map)


def test_what_is_built_does_not_grow_with_the_ranks() -> None:
    assert run_ranks(groups_on_paper, 1, 4096) == run_ranks(groups_on_paper, 1, 16)
    with pytest.raises(UserError, match="8,000,000, and a plan is made for at most 262,144"):
        cluster(nodes=1_000_000)


@pytest.mark.usefixtures("without_torch")
def test_suggestions_fit_are_ranked_and_keep_the_batch() -> None:
    plan = make_plan(llemma("34b"), cluster())
    times = [one.time.total for one in plan.suggestions]
    assert times == sorted(times)
    assert times[0] < plan.run.time.total
    for one in plan.suggestions:
        assert one.memory.total <= 0.95 * plan.machine.memory_bytes
        data = 256 // (one.choice.tensor * one.choice.pipeline)
        assert one.choice.micro * one.accumulation * data == 1024
        assert sum(one.time.shares().values()) > 0.95


BF16_START = ("fp8_format=hybrid", "first_last_layers_bf16=true", "num_layers_at_start_in_bf16=30")
BLOCKWISE = ("fp8_format=hybrid", "fp8_recipe=blockwise")


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize(
    ("size", "keys", "excluded"),
    [
        # A stage of 24 layers has no 30 first ones.
        ("34b", BF16_START, lambda choice: choice.pipeline > 1),
        ("7b", ("tp_comm_overlap=true",), lambda choice: choice.tensor == 1),
        ("34b", (*BLOCKWISE, "model_parallel_size=4"), lambda choice: choice.tensor == 8),
        ("34b", ("num_kv_heads=2", "model_parallel_size=2"), lambda choice: choice.tensor > 2),
    ],
)
def test_what_is_suggested_can_be_started(size: str, keys: tuple[str, ...], excluded: Any) -> None:
    cfg = llemma(size, *keys)
    found = list(candidates(cfg, cluster(gpu="h100", memory="79GiB"), 32016, 1024))
    assert found
    assert not any(excluded(one.choice) for one in found)
    for one in found[:: len(found) // 8 + 1]:
        settings = {**one.settings(), "recompute_modules": list(one.choice.recompute_modules)}
        loaded = llemma(size, *keys, *(f"{key}={json.dumps(value)}" for key, value in settings.items()))
        assert not check_world(loaded, 256)


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize(
    ("gpu", "recipe", "words"),
    [
        ("a100", "tensorwise", "fp8_format=hybrid: needs a GPU with fp8, and A100 has none; plan for a GPU"),
        ("a40", "mxfp8", "and A40 has none"),
        ("h100", "mxfp8", "fp8_recipe=mxfp8: needs a GPU of the generation Blackwell, and H100 is Hopper;"),
        ("l40s", "blockwise", "Hopper or Blackwell, and L40S is Ada; use fp8_recipe: tensorwise"),
        ("h100", "delayed", None),
        ("l40s", "tensorwise", None),
        ("b200", "mxfp8", None),
    ],
)
def test_fp8_is_planned_where_the_gpu_has_it(gpu: str, recipe: str, words: str | None) -> None:
    cfg = llemma("7b", "fp8_format=hybrid", f"fp8_recipe={recipe}")
    if words is None:
        assert make_plan(cfg, cluster(gpu=gpu)).run.time.total > 0
        return
    with pytest.raises(ConfigError) as caught:
        make_plan(cfg, cluster(gpu=gpu))
    assert words in str(caught.value)


@pytest.mark.usefixtures("without_torch")
def test_tensor_parallel_groups_over_nodes_are_warned_of() -> None:
    plan = make_plan(llemma("34b"), cluster(nodes=64, gpus_per_node=4))
    assert "32 tensor parallel groups lie on more than one node" in in_words(plan)
    assert as_data(plan)["tensor_parallel_groups_over_nodes"][0] == list(range(8))


@pytest.mark.usefixtures("without_torch")
def test_wrong_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not divide 12 ranks"):
        make_plan(llemma("34b"), cluster(nodes=3, gpus_per_node=4))
    with pytest.raises(ConfigError, match="vocab_size"):
        make_plan(llemma("34b", "vocab_size=null"), cluster())
    for name in ("abacus", "", "RTX A1000", "A4000", "A10G", "a100-64gb", "A100-SXM4-40GB MIG 1g.5gb"):
        with pytest.raises(UserError, match=f"--gpu={name}: is not in"):
            cluster(gpu=name)
    names = ("A100", "a100-40gb", "a100 80", "NVIDIA A100-SXM4-80GB")
    assert [cluster(gpu=name).gpu.memory_gb for name in names] == [40, 40, 80, 80]
    with pytest.raises(UserError, match="is 40 bytes, less than any GPU has; write 40GiB"):
        cluster(memory="40")
    for text in ("forty", "0", "-3GiB", "1e400"):
        with pytest.raises(UserError, match="--gpu-memory"):
            parse_bytes("--gpu-memory", text)
    assert parse_bytes("", "40GiB") == 40 * 2**30
    assert parse_bytes("", "2GB/s") == parse_bytes("", "2e9") == 2 * 10**9


def test_a_program_reads_the_plan_from_the_standard_output(tmp_path: Path) -> None:
    machine = ["--nodes", "2", "--gpus-per-node", "8"]
    done = deepy(tmp_path, ROOT / "train.py", CONFIGS / "llemma_7b.yml", "--plan", *machine, "--json", "-")
    assert json.loads(done.stdout)["world_size"] == 16, done.stderr
    assert not (tmp_path / "-").exists()


@pytest.mark.parametrize(("arguments", "words"), [
    (["--nodes", "2"], "--nodes goes with --plan"),
    (["--plan", "--dry-run"], "leave out the other"),
    (["--plan", "--nodes", "2", "--world-size", "16"], "is set beside --world-size"),
    (["--plan", "--world-size", "12"], "no whole number of nodes"),
    (["--plan", "--nodes", "0"], "--nodes=0"),
])  # fmt: skip
def test_options_that_contradict_each_other(tmp_path: Path, arguments: list[Any], words: str) -> None:
    done = deepy(tmp_path, ROOT / "train.py", CONFIGS / "llemma_7b.yml", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
