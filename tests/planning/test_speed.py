# SPDX-License-Identifier: Apache-2.0
"""The cost model: against published runs and kernels, by its own counts, and what holds on any machine."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cost_model import ROOT, Compared, compare, levers
from megatron.neox_arguments.config import ModelConfig, PrecisionConfig
from megatron.planning.flops import flops_per_token
from megatron.planning.gpus import GPUS
from megatron.planning.kernels import KernelClock, attention_flops, layer_matrices
from megatron.planning.length import length_of
from megatron.planning.links import data_ring, send_seconds, tensor_ring
from megatron.planning.machine import Machine, machine_of
from megatron.planning.memory import Choice, choice_of
from megatron.planning.published import published_run
from megatron.planning.rates import assumed_rates, with_attention
from megatron.planning.rings import Ring
from megatron.planning.sensitivity import swings
from megatron.planning.software import Software
from megatron.planning.speed import StepTime, step_time, utilisation
from megatron.planning.stages import stage_seconds
from tests.planning.test_plan import cluster, llemma

CFG_34B = llemma("34b")
LLEMMA_7B, LLEMMA_34B = llemma("7b").model, CFG_34B.model
A100, H100 = cluster(), cluster(gpu="h100")
ALONE = Ring(ranks=1, bytes_per_second=1.0, step_seconds=0.0, crosses_nodes=False)

choices = st.builds(
    Choice,
    tensor=st.sampled_from([1, 2, 4, 8]),
    pipeline=st.sampled_from([1, 2, 4, 8]),
    micro=st.sampled_from([1, 2, 4]),
    recompute=st.sampled_from(["none", "selective", "full"]),
    sequence_parallel=st.booleans(),
)
factors = st.floats(1.0, 20.0)


def clock(gpu: str = "h100", **software: Any) -> KernelClock:
    machine = cluster(gpu=gpu)
    return KernelClock(machine.gpu, machine.rates, Software(**software), 2)


CLOCK = clock()


def step(choice: Choice, machine: Machine = A100, software: Software | None = None) -> StepTime:
    return step_time(CFG_34B, choice, machine, 32000, accumulation=8, software=software)


def published() -> list[Compared]:
    data = json.loads((ROOT / "benchmarks" / "published_speeds.json").read_text())
    return [compare(run, data["models"][run["model"]]) for run in data["runs"]]


def test_published_runs_are_predicted() -> None:
    """Two runs set one figure for each generation of GPUs; the others were not looked at for any."""
    found = published()
    assert [abs(one.error) < 0.01 for one in found if one.is_set_by] == [True, True]
    unseen = [one for one in found if not one.is_set_by and one.is_understood]
    assert len(unseen) > 20
    for one in unseen:
        assert abs(one.error) < 0.10, one.name
    # What the model has no notion of makes runs slower than it says, and never faster.
    assert all(one.error > 0.0 for one in found if not one.is_understood)


def test_published_speeds_are_those_of_their_sources() -> None:
    """MFU as the sources state it, by their own formula, where it is that of flops.py."""
    stated = {
        "llm-foundry 7B, 4,096 tokens, recompute": {"A100-80GB": 0.5484, "H100": 0.4042},
        "llm-foundry 13B, 2,048 tokens": {"A100-80GB": 0.5957},
        "NVIDIA NeMo Llama 3.1 8B, 8 GPUs": {"H100": 0.5937},
        "NVIDIA NeMo Llama 3.1 70B, TP 4, PP 4, 64 GPUs": {"H100": 0.5410},
        "Llemma 7B, TP 2, recompute": {"A100": 0.314},
        "Llemma 34B, TP 8, recompute": {"A100": 0.210},
    }
    for one in published():
        if one.gpu in stated.get(one.name, {}):
            assert one.mfu_measured == pytest.approx(stated[one.name][one.gpu], rel=0.006), one.name


@pytest.mark.parametrize(("model", "name"), [(LLEMMA_7B, "Llemma 7B"), (LLEMMA_34B, "Llemma 34B")])
def test_a_published_run_has_one_speed(model: ModelConfig, name: str) -> None:
    """What a plan says of it is what the model is compared with."""
    run = published_run(model)
    assert run is not None
    assert run.name == name
    compared = [one for one in published() if one.name.startswith(f"{name},")]
    assert len(compared) == 2
    for one in compared:
        assert one.measured == round(run.tokens_per_second_per_gpu)
        assert one.mfu_measured == pytest.approx(run.implied_mfu(model, 32000), rel=2e-3)
        assert f"{run.steps:,} " in one.source


@pytest.mark.parametrize("model", [LLEMMA_7B, LLEMMA_34B])
@given(choice=choices)
def test_the_work_of_all_kernels_is_that_of_the_flops(model: ModelConfig, choice: Choice) -> None:
    """Matrix products three times, attention's two products and their five gradients, over all ranks."""
    tokens = choice.micro * model.seq_length
    matrices = 3 * sum(shape.flops for shape in layer_matrices(model, choice))
    scores = 3 * attention_flops(model, choice)
    output = 6 * tokens * model.hidden_size * 32000
    counted = model.num_layers * choice.tensor * (matrices + scores) + output
    norms = 6 * tokens * (2 * model.num_layers + 1) * model.hidden_size  # no products; 6 N counts them
    assert counted + norms == pytest.approx(flops_per_token(model, 32000)[1] * tokens, rel=1e-9)


@given(choice=choices)
def test_a_step_is_the_sum_of_its_parts(choice: Choice) -> None:
    time = step(choice)
    assert all(seconds >= 0 for seconds in time.parts().values())
    assert time.total == pytest.approx(sum(time.parts().values()))
    assert sum(time.shares().values()) > 0.95
    assert 0 < time.forward_passes < time.total
    copies = 256 // (choice.tensor * choice.pipeline)
    assert 0.01 < utilisation(CFG_34B, A100, 32000, 8 * choice.micro * copies * 4096, time.total) < 0.72


@given(
    choice=choices,
    field=st.sampled_from(["bf16_tflops", "memory_gb_per_second", "node_gb_per_second"]),
    factor=factors,
)
def test_a_better_gpu_is_never_slower(choice: Choice, field: str, factor: float) -> None:
    better = replace(A100.gpu, **{field: factor * getattr(A100.gpu, field)})
    assert step(choice, replace(A100, gpu=better)).total <= step(choice).total * (1 + 1e-9)


@given(choice=choices, factor=factors)
def test_a_better_network_is_never_slower(choice: Choice, factor: float) -> None:
    better = replace(A100, network_bytes_per_second=factor * A100.network_bytes_per_second)
    assert step(choice, better).total <= step(choice).total * (1 + 1e-9)


@given(choice=choices)
def test_what_software_adds_is_never_slower(choice: Choice) -> None:
    """But for fp8, whose casts cost more than they bring where products are small."""
    times = [step(choice, H100, software).total for _, software in list(levers())[:-1]]
    assert times == sorted(times, reverse=True)


@given(choice=choices)
def test_computing_again_costs_time(choice: Choice) -> None:
    none, selective, full = (
        step(replace(choice, recompute=how, recompute_modules=modules)).total
        for how, modules in (("none", ()), ("selective", ("core_attn",)), ("full", ()))
    )
    assert none < selective < full < 1.6 * none


@given(
    tensor=st.sampled_from([1, 2, 4, 8]),
    data=st.integers(1, 512),
    moved=st.floats(1, 1e12),
    more=st.integers(1, 64),
)
def test_more_ranks_never_communicate_less(tensor: int, data: int, moved: float, more: int) -> None:
    """Nodes of 8: the same bytes over more copies take as long, or longer."""
    assert Ring(data, 1e9, 1e-6, False).gather(moved) <= Ring(data + more, 1e9, 1e-6, False).gather(moved)
    assert Ring(data, 1e9, 1e-6, False).in_buckets(moved, more) >= Ring(data, 1e9, 1e-6, False).gather(moved)
    small, large = (
        data_ring(replace(A100, nodes=tensor * ranks), A100.rates, Choice(tensor, 1, 1, "none", True))
        for ranks in (data, data + more)
    )
    assert small.gather(moved) <= large.gather(moved) * (1 + 1e-9)


@given(st.integers(1, 70_000), st.integers(1, 30_000), st.integers(1, 30_000), st.integers(0, 20_000))
def test_larger_products_never_take_less(m: int, n: int, k: int, more: int) -> None:
    product = CLOCK.matrix
    base = product(m, n, k)
    assert base >= 2 * m * n * k / 989e12 * 0.999
    assert min(product(m + more, n, k), product(m, n + more, k), product(m, n, k + more)) >= base


@pytest.mark.parametrize("gpu", [gpu.name.lower().replace(" ", "-") for gpu in GPUS])
def test_every_gpu_has_its_rates(gpu: str) -> None:
    """And none trains faster than its peak, in bfloat16 or float32."""
    machine = machine_of(nodes=4, gpus_per_node=8, gpu_name=gpu, gpu_memory=None, disk_speed=None)
    single = CFG_34B.model_copy(update={"precision": PrecisionConfig(precision="fp32")})
    choice = Choice(8, 1, 1, "none", True)
    times = [step_time(cfg, choice, machine, 32000, 8).total for cfg in (CFG_34B, single)]
    shares = [utilisation(CFG_34B, machine, 32000, 8 * 4 * 4096, time) for time in times]
    assert 0.05 < shares[0] < 0.7
    assert shares[1] < min(shares[0], 0.7 / 16)


def test_a_large_product_reaches_what_was_measured() -> None:
    """794.5 TFLOP/s on an H100, less what a step does not sustain."""
    one = clock()
    shape = (16384, 16384, 8192)
    reached = 2 * shape[0] * shape[1] * shape[2] / one.matrix(*shape) / 1e12 / one.rates.sustained_share
    assert reached == pytest.approx(794.5, rel=0.03)


def test_collectives_take_what_nccl_measures() -> None:
    """Within an eighth: reduce-scatter in a node of 8 H100, and over 32 nodes (the sources in rates.py)."""
    machine = cluster(gpu="h100")
    node = tensor_ring(machine, machine.rates, Choice(8, 1, 1, "none", True))
    for whole, bus in ((134217728, 311.3e9), (1073741824, 349.4e9), (8589934592, 362.2e9)):
        assert whole * 7 / 8 / node.gather(whole) == pytest.approx(bus, rel=0.05)
    nodes = data_ring(machine, machine.rates, Choice(1, 1, 1, "none", False))
    assert nodes.ranks == 256
    assert nodes.crosses_nodes
    assert 2**31 * 255 / 256 / nodes.gather(2**31) == pytest.approx(200e9, rel=0.125)
    assert 2**33 * 255 / 256 / nodes.gather(2**33) == pytest.approx(300e9, rel=0.125)


def test_attention_reaches_what_was_measured() -> None:
    """FlashAttention-3's figure 5, causal, head dimension 128, H100: TFLOP/s forward."""
    measured = {
        "flash": {512: 191, 1024: 260, 2048: 298, 4096: 319, 8192: 333, 16384: 335},
        "cudnn": {512: 315, 1024: 410, 2048: 484, 4096: 518, 8192: 529, 16384: 539},
        "flash3": {1024: 423, 2048: 521, 4096: 579, 8192: 602, 16384: 616},
    }
    gpu = cluster(gpu="h100").gpu
    for kernel, speeds in measured.items():
        rates = replace(with_attention(assumed_rates(gpu), gpu, kernel), sustained_share=1.0)
        one = KernelClock(gpu, rates, Software(), 2)
        for tokens, tflops in speeds.items():
            model = LLEMMA_7B.model_copy(update={"seq_length": tokens})
            choice = Choice(1, 1, 16384 // tokens, "none", False)
            reached = attention_flops(model, choice) / one.attention(model, choice).forward / 1e12
            assert reached == pytest.approx(tflops, rel=0.06), (kernel, tokens)


def test_a_runs_attention_is_the_one_it_names() -> None:
    choice, times = Choice(8, 1, 1, "none", True), {}
    for backend in ("auto", "cudnn", "flash_attn", "torch_flash"):
        cfg = llemma("34b", f"attention_backend={backend}")
        times[backend] = step_time(cfg, choice, H100, 32000, 8).attention
    assert times["auto"] == times["cudnn"]
    assert times["flash_attn"] == times["torch_flash"] > 1.3 * times["cudnn"]


def test_tensor_parallel_collectives_are_counted_as_the_paper_has_them() -> None:
    """Waited for: 4 forward, 2 backward of 4; beside products: 4 (Korthikanti et al. 2022, section 4.2.2)."""
    ring = Ring(8, 1e12, 0.0, False)
    choice = Choice(8, 1, 2, "none", sequence_parallel=True)
    sizes = {"vocabulary": 4000, "is_first": False, "is_last": False}
    found = stage_seconds(clock(), LLEMMA_34B, choice, ring, 1, **sizes)  # type: ignore[arg-type]
    one = ring.gather(2 * 2 * 4096 * 8192)
    assert (found.tensor.forward, found.tensor.backward) == pytest.approx((4 * one, 2 * one))
    assert found.tensor_hidden == pytest.approx(4 * one)
    overlapped = stage_seconds(clock(tensor_overlap=True), LLEMMA_34B, choice, ring, 1, **sizes)  # type: ignore[arg-type]
    assert overlapped.tensor.total + overlapped.tensor_hidden == pytest.approx(10 * one)
    assert overlapped.tensor.total == pytest.approx(6 * one / 8)
    # A slow link is never hidden behind a product that takes less than it.
    slow = stage_seconds(clock(), LLEMMA_34B, choice, Ring(8, 1e9, 0.0, False), 1, **sizes)  # type: ignore[arg-type]
    all_of_it = 10 * Ring(8, 1e9, 0.0, False).gather(2 * 2 * 4096 * 8192)
    assert slow.tensor.total + slow.tensor_hidden == pytest.approx(all_of_it)
    assert slow.tensor.total > 0.9 * all_of_it


def bf16_ends(first: int, last: int) -> Software:
    return Software(fp8=True, bf16_layers_at_start=first, bf16_layers_at_end=last)


@given(
    first=st.integers(0, 12), last=st.integers(0, 12), pipeline=st.sampled_from([1, 2, 4]),
    whole=st.sampled_from([None, 1, 7, 12]),
)  # fmt: skip
def test_layers_in_bfloat16_are_counted_in_it(
    first: int, last: int, pipeline: int, whole: int | None
) -> None:
    """Layer by layer, as megatron-core tells them apart: each alone, and all of a stage at once."""
    choice = Choice(8, pipeline, 1, "full", True, recompute_num_layers=whole)
    alone = (
        replace(choice, recompute_num_layers=None),
        replace(choice, recompute="none", recompute_num_layers=None),
    )
    ring, layers = tensor_ring(H100, H100.rates, choice), 48 // pipeline
    sizes: dict[str, Any] = {"vocabulary": 4000, "is_first": False, "is_last": False}
    clocks = {fp8: clock(fp8=fp8) for fp8 in (True, False)}
    for stage in range(pipeline):
        numbers = range(stage * layers, (stage + 1) * layers)
        # Of transformer_block.py and fp8_utils.py: the number is over the whole model.
        in_fp8 = [not (number < first or number >= 48 - last) for number in numbers]
        again = [index < (layers if whole is None else whole) for index in range(layers)]
        each = [
            stage_seconds(clocks[fp8], LLEMMA_34B, alone[0] if whole_one else alone[1], ring, 1, **sizes)
            for fp8, whole_one in zip(in_fp8, again, strict=True)
        ]
        mixed = KernelClock(H100.gpu, H100.rates, bf16_ends(first, last), 2)
        found = stage_seconds(mixed, LLEMMA_34B, choice, ring, layers, first_layer=stage * layers, **sizes)
        assert found.total == pytest.approx(sum(one.total for one in each))
        assert found.forward == pytest.approx(sum(one.forward for one in each))
        assert found.tensor_bytes == pytest.approx(sum(one.tensor_bytes for one in each))


def test_a_run_with_layers_in_bfloat16_is_between_fp8_and_bfloat16() -> None:
    asked = ("fp8_format=hybrid", "first_last_layers_bf16=true")
    keys = [
        ("transformer_impl=transformer_engine",), (*asked, "num_layers_at_start_in_bf16=47"),
        (*asked, "num_layers_at_start_in_bf16=30"), asked, asked[:1],
    ]  # fmt: skip
    times = []
    for changes in keys:
        cfg = llemma("34b", *changes)
        times.append(step_time(cfg, choice_of(cfg, 256), H100, 32000, 8).total)
    assert times == sorted(times, reverse=True)
    assert len(set(times)) == 4  # 47 first and the last one are all 48
    assert times[0] - times[2] == pytest.approx((times[0] - times[4]) * 17 / 48, rel=1e-6)


def test_the_bubble_is_the_pipelines() -> None:
    """With equal stages (p - 1) / m of the work; the first and the last do more, and the others wait."""
    machine = cluster(nodes=4)
    one = Choice(1, 4, 1, "none", False)
    time = step(one, machine)
    work = time.total - time.waiting - time.sending - time.gradients - time.weights - time.optimizer
    assert 0.85 * 3 / 8 * work < time.waiting < 3 / 8 * work
    chunked = step(one, machine, Software(chunks=4))
    assert chunked.waiting == pytest.approx(time.waiting / 4)
    assert chunked.sending > time.sending
    assert send_seconds(machine, machine.rates, Choice(1, 1, 1, "none", False), 1e6) == 0.0


def test_overlap_hides_all_but_a_bucket() -> None:
    machine, choice = cluster(), Choice(8, 1, 2, "full", True)
    cfg = llemma("34b")
    plain = llemma("34b", "zero_optimization.overlap_comm=false")
    shown, hidden = (step_time(c, choice, machine, 32000, 16) for c in (plain, cfg))
    assert [use.hidden_seconds for use in shown.links[1:]] == [0.0, 0.0]
    assert hidden.gradients + hidden.links[1].hidden_seconds == pytest.approx(shown.gradients)
    assert hidden.gradients == pytest.approx(shown.gradients / 106)  # 4.2 billion in buckets of 40 million


def test_what_is_sent_over_each_link() -> None:
    """34B as published, by hand: 16 micro-batches of 2 x 4,096 tokens; 4,218,691,584 parameters a rank."""
    time = step_time(CFG_34B, Choice(8, 1, 2, "full", True), A100, 32000, 16)
    tensor, gradients, weights = time.links
    hidden_bytes = 2 * 2 * 4096 * 8192
    assert not tensor.is_between_nodes
    assert gradients.is_between_nodes
    assert weights.is_between_nodes
    # 10 collectives of a layer and 4 that are repeated; 2 of the embedding, 2 of the output layer.
    assert tensor.sent_bytes == 16 * (48 * 14 + 4) * hidden_bytes * 7 / 8
    assert gradients.sent_bytes == 4 * 4_218_691_584 * 31 / 32
    assert weights.sent_bytes == gradients.sent_bytes / 2
    assert sum(use.waited_seconds for use in time.links) == pytest.approx(
        time.tensor + time.gradients + time.weights + time.sending
    )
    ring = tensor_ring(A100, A100.rates, Choice(8, 1, 2, "full", True))
    seconds = tensor.waited_seconds + tensor.hidden_seconds
    assert seconds == pytest.approx(16 * (48 * 14 + 4) * ring.gather(hidden_bytes))
    stages = step(Choice(8, 4, 1, "none", True)).links[1]
    assert stages.name == "sending between stages"
    assert stages.sent_bytes == 2 * (8 + 3) * 2 * 4096 * 8192 / 8


@given(choice=choices)
def test_the_seconds_of_collectives_are_those_of_their_bytes(choice: Choice) -> None:
    """However much of them is hidden: what a rank sends at the ring's rate, and the steps."""
    ring = tensor_ring(A100, A100.rates, choice)
    for use in step(choice).links[: int(choice.tensor > 1)]:
        one = 2 * choice.micro * 4096 * 8192
        number = use.sent_bytes / ring.sent(one)
        assert number == pytest.approx(round(number))
        assert use.waited_seconds + use.hidden_seconds == pytest.approx(number * ring.gather(one))


def test_swings_are_about_the_step_itself() -> None:
    cfg = llemma("34b")
    machine, choice = cluster(), choice_of(cfg, 256)
    middle = step_time(cfg, choice, machine, 32000, 16).total
    found = swings(cfg, choice, machine, 32000, 16)
    assert all(swing.better_seconds <= middle <= swing.worse_seconds for swing in found)
    assert [swing.width for swing in found] == sorted((swing.width for swing in found), reverse=True)
    assert {swing.assumption for swing in found} >= {"network of a GPU", "attention kernel"}
    named = llemma("34b", "attention_backend=torch_flash")
    [attention] = [s for s in swings(named, choice, H100, 32000, 16) if s.assumption == "attention kernel"]
    assert attention.width > 0


def test_a_run_is_its_steps_its_evaluations_and_its_saves() -> None:
    """12,000 steps; 49 evaluations of 25 batches of 3 sources, 1 of 3 more; 48 saves of 400 GB at 2 GB/s."""
    machine = cluster()
    sizes: dict[str, Any] = {
        "step_seconds": 20.0, "forward_seconds": 5.0, "checkpoint_bytes": 400 * 10**9
    }  # fmt: skip
    waits = length_of(llemma("34b"), machine, **sizes)
    assert waits.training_seconds == 12_000 * 20
    assert waits.evaluating_seconds == (49 + 1) * 25 * 3 * 5
    assert waits.lost_each_seconds == waits.lost_last_seconds == pytest.approx(200, rel=0.02)
    assert waits.total_seconds == pytest.approx(240_000 + 18_750 + 48 * waits.lost_each_seconds)
    beside = length_of(llemma("34b", "async_save=true"), machine, **sizes)
    assert beside.lost_each_seconds < 3
    assert beside.saving_seconds == pytest.approx(47 * beside.lost_each_seconds + waits.lost_last_seconds)
    often = length_of(llemma("34b", "async_save=true", "checkpoint_factor=2"), machine, **sizes)
    assert often.lost_each_seconds == pytest.approx(beside.lost_each_seconds + 160)  # 200 s of writing in 40
    none = length_of(llemma("34b", "eval_iters=0", "save=null", "checkpoint_factor=null"), machine, **sizes)
    assert none.total_seconds == none.training_seconds


def test_a_machine_says_what_nobody_measured() -> None:
    machine = machine_of(nodes=2, gpus_per_node=8, gpu_name="h100", gpu_memory=None, disk_speed=None)
    said = "\n".join(machine.assumed)
    assert "times of matrix products, attention" in said
    assert "assumed, not measured (--calibration)" in said
    assert "a GPU sends 50 GB/s to other nodes (--network-speed)" in said
    told = machine_of(
        nodes=2, gpus_per_node=8, gpu_name="h100", gpu_memory=None, disk_speed=None, network_speed="5e9"
    )
    assert told.network_bytes_per_second == 5e9
    assert "--network-speed" not in "\n".join(told.assumed)
