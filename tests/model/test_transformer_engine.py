# SPDX-License-Identifier: Apache-2.0
"""TransformerEngine's layers: the same network, the same checkpoints, and refusals where it cannot be used.

On a CPU with the stand-in of `engine_stand_in.py` below megatron-core's own wrappers, so these are tests of
what is built and kept, and of who computes in fp8; the last ones need a GPU and the package itself.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from megatron.neox_arguments.checks import run_checks
from tests.llamas import run_config
from tests.ranks import run_ranks
from tests.trainer.curves import SEQ_LENGTH, micro_batch_size

pytestmark = pytest.mark.slow

STEPS, SAVED_AT = 6, 3
ENGINE: dict[str, Any] = {"transformer_impl": "transformer_engine", "gradient_accumulation_fusion": False}
FP8 = {**ENGINE, "fp8_format": "hybrid"}
TP_2 = {"parallel": {"model_parallel_size": 2}}
OLMO_2 = {"qk_norm": "projection", "norm_position": "after"}
QWEN_2 = {"use_qkv_bias": True}


def curves_with_stand_in(steps: int, calls: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """`train_curves`, and what the stand-in saw during each."""
    from tests.model import engine_stand_in
    from tests.trainer.curves import train_curves

    engine_stand_in.install()
    import megatron.backend  # noqa: F401  (before megatron.core)

    engine_stand_in.allow_cpu()
    found = []
    for call in calls:
        engine_stand_in.seen.clear()
        [curve] = train_curves(steps, [call])
        found.append({**curve, "seen": list(engine_stand_in.seen)})
    return found


def engine(changes: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {**changes, "acceleration": {**ENGINE, **keys}}


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: str(tmp_path_factory.mktemp("save")) for name in ("local", "engine", "cut")}


@pytest.fixture(scope="module")
def alone(saves: dict[str, str]) -> dict[str, Any]:
    """Curves of one rank by name."""
    calls: dict[str, tuple[Any, ...]] = {
        "local": ({}, saves["local"], SAVED_AT),
        "engine": (engine({}), saves["engine"], SAVED_AT),
        "local to engine": (engine({}), saves["local"], 0, True),
        "engine to local": ({}, saves["engine"], 0, True),
        "qwen2": (QWEN_2,),
        "qwen2, engine": (engine(QWEN_2),),
        "olmo2": (OLMO_2,),
        "olmo2, engine": (engine(OLMO_2),),
        "fp8": (engine({}, fp8_format="hybrid"),),
        "fp8, ends in bf16": (engine({}, fp8_format="e4m3", first_last_layers_bf16=True),),
        "fp8, delayed": (engine({}, fp8_format="hybrid", fp8_recipe="delayed"),),
        "fp8, recomputed": (engine({"parallel": {"recompute": "full"}}, fp8_format="hybrid"),),
    }
    return dict(
        zip(
            calls,
            run_ranks(curves_with_stand_in, 1, STEPS, list(calls.values()), is_cold=True)[0],
            strict=True,
        )
    )


@pytest.fixture(scope="module")
def together(saves: dict[str, str]) -> dict[str, Any]:
    """Curves of two ranks, as rank 0 has them."""
    overlapped = {"tp_comm_overlap": True, "fp8_format": "hybrid", "first_last_layers_bf16": True}
    calls: dict[str, tuple[Any, ...]] = {
        "TP 2": (TP_2,),
        "TP 2, engine": (engine(TP_2), saves["cut"], SAVED_AT),
        "TP 2, overlapped": (engine(TP_2, **overlapped),),
        "engine to TP 2": (TP_2, saves["engine"], 0, True),
    }
    return dict(
        zip(
            calls,
            run_ranks(curves_with_stand_in, 2, STEPS, list(calls.values()), is_cold=True)[0],
            strict=True,
        )
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [("local", "engine"), ("qwen2", "qwen2, engine"), ("olmo2", "olmo2, engine")],
)
def test_it_is_the_same_network(alone: dict[str, Any], one: str, other: str) -> None:
    for what in ("losses", "norms", "weights", "uncut"):
        assert alone[one][what] == alone[other][what]


def test_it_is_the_same_network_cut_in_two(together: dict[str, Any]) -> None:
    """Norms depend on what is marked as cut, so they would show a mark that is missing."""
    for what in ("losses", "norms", "weights", "uncut"):
        assert together["TP 2"][what] == together["TP 2, engine"][what]


def test_a_checkpoint_of_either_is_one_of_both(alone: dict[str, Any], together: dict[str, Any]) -> None:
    rest = alone["local"]["losses"][SAVED_AT:]
    assert alone["local to engine"]["losses"] == rest
    assert alone["engine to local"]["losses"] == rest
    cut = together["engine to TP 2"]["losses"]
    assert max(abs(a - b) for a, b in zip(cut, rest, strict=True)) <= 5e-5


def test_who_computes_in_fp8(alone: dict[str, Any], together: dict[str, Any]) -> None:
    """Four products a layer, 4 micro-batches a step on one rank, 4 layers."""
    products = 4 * 4 * STEPS
    assert alone["engine"]["seen"] == []
    assert alone["fp8"]["seen"] == [("fp8", "Float8CurrentScaling")] * products * 4
    assert len(alone["fp8, ends in bf16"]["seen"]) == products * 2
    assert alone["fp8, delayed"]["seen"] == [("fp8", "TEDelayedScaling")] * products * 4
    assert len(alone["fp8, recomputed"]["seen"]) == products * 4 * 2
    assert alone["fp8, recomputed"]["losses"] == alone["fp8"]["losses"]
    difference = abs(alone["fp8"]["losses"][-1] - alone["local"]["losses"][-1])
    assert 0 < difference < 0.05  # measured: 0.002
    buffers = [content for kind, content in together["TP 2, overlapped"]["seen"] if kind == "buffers"]
    assert len(buffers) == 1
    modes = [mode.name for mode in buffers[0].pop("quantization_modes")]
    assert modes == ["FP8", "NONE"]
    tokens = SEQ_LENGTH * micro_batch_size(2)
    assert buffers == [{"shape": [tokens, 64], "tp_size": 2, "ub_cfgs": {}, "bootstrap_backend": "nccl"}]


REFUSALS: list[tuple[str, tuple[bool, str], str, dict[str, Any], str]] = [
    # version of the package, what it says of the GPU, device, keys, what is said
    (
        "2.8.0",
        (True, ""),
        "cpu",
        FP8,
        "refused: fp8_format=hybrid: TransformerEngine computes on CUDA devices",
    ),
    ("2.1.0", (True, ""), "cuda", FP8, "refused: fp8_recipe=tensorwise: needs TransformerEngine 2.2.0"),
    (
        "2.8.0",
        (False, "Device compute capability 8.9 or higher required for FP8 execution."),
        "cuda",
        FP8,
        "refused: fp8_format=hybrid: fp8_recipe=tensorwise does not run on this GPU (Device compute",
    ),
    (
        "2.8.0",
        (False, "too old for fp8"),
        "cuda",
        ENGINE,
        "linear layers: TransformerEngine 2.8.0 (transformer_impl=transformer_engine)",
    ),
    ("2.8.0", (True, ""), "meta", FP8, ""),  # a plan: megatron-core's stand for them
]


def said_of(device: str, keys: dict[str, Any]) -> str:
    import torch

    import megatron.backend  # noqa: F401  (before megatron.core)
    from megatron.model.linear import choose_linear_layers
    from megatron.neox_arguments.errors import UserError

    try:
        return "\n".join(choose_linear_layers(run_config(acceleration=keys), torch.device(device)).words)
    except UserError as error:
        return f"refused: {error}"


def all_refusals() -> list[str]:
    """Called in a cold process: what is said where packages and GPUs of these kinds are there."""
    from tests.model import engine_stand_in

    found = []
    for version, can, device, keys, _ in REFUSALS:
        engine_stand_in.become(version, can)
        found.append(said_of(device, keys))
    return found


def test_refusals() -> None:
    said = run_ranks(all_refusals, 1, is_cold=True)[0]
    for (*_, expected), found in zip(REFUSALS, said, strict=True):
        assert found.startswith(expected)


@pytest.mark.skipif(find_spec("transformer_engine") is not None, reason="TransformerEngine is installed")
def test_without_the_package() -> None:
    said = run_ranks(said_of, 1, "cuda", FP8)[0]
    assert said.startswith("refused: fp8_format=hybrid: TransformerEngine is not installed; pip install")
    said = run_ranks(said_of, 1, "cuda", {"gradient_accumulation_fusion": True})[0]
    assert said.startswith("refused: gradient_accumulation_fusion=true: Apex's extension")


@pytest.mark.parametrize(
    ("asked", "others", "key", "says"),
    [
        ({"fp8_format": "hybrid"}, {}, "fp8_format", "precision=fp32"),
        ({"fp8_recipe": "mxfp8"}, {}, "fp8_recipe", "without fp8_format"),
        ({"fp8_format": "hybrid", "fp8_margin": 1}, {}, "fp8_margin", "with fp8_recipe=tensorwise"),
        (
            {"fp8_format": "hybrid", "fp8_recipe": "delayed", "first_last_layers_bf16": True},
            {},
            "first_last_layers_bf16",
            "fp8_recipe=delayed",
        ),
        ({"fp8_format": "e4m3"}, {"intermediate_size": 168}, "intermediate_size", "matrices of 168"),
        ({"fp8_format": "e4m3", "fp8_recipe": "blockwise"}, {}, "hidden_size", "multiples of 128"),
        ({"fp8_format": "e4m3"}, {"parallel": {"model_parallel_size": 4}}, "intermediate_size", "of 44"),
        ({"fp8_format": "e4m3", "transformer_impl": "local"}, {}, "fp8_format", "transformer_impl=local"),
        ({"tp_comm_overlap": True}, {}, "tp_comm_overlap", "sequence_parallel=false"),
        ({"torch_compile": "layer", **ENGINE}, {}, "torch_compile", "transformer_impl=transformer_engine"),
        (
            {"torch_compile": "layer", "gradient_accumulation_fusion": True},
            {},
            "gradient_accumulation_fusion",
            "torch_compile=layer",
        ),
        (
            {"fp8_format": "e4m3", "first_last_layers_bf16": True, "num_layers_at_end_in_bf16": 5},
            {},
            "num_layers_at_end_in_bf16",
            "the 4 layers",
        ),
    ],
)
def test_keys_that_contradict_each_other(
    asked: dict[str, Any], others: dict[str, Any], key: str, says: str
) -> None:
    problems = {problem.key: str(problem) for problem in run_checks(run_config(**others, acceleration=asked))}
    assert says in problems.get(key, ""), problems


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", ["tensorwise", "delayed"])
def test_fp8_learns_as_bfloat16_does(recipe: str, tmp_path: Path) -> None:
    """20 steps on a GPU with fp8: within 2% of bfloat16's loss, and bfloat16 goes on from its checkpoint."""
    pytest.importorskip("transformer_engine")
    from tests.trainer.curves import train_curves

    small = {"hidden_size": 128, "intermediate_size": 256, "precision": {"precision": "bfloat16"}}
    fp8 = {**small, "acceleration": {"fp8_format": "hybrid", "fp8_recipe": recipe}}
    plain, rounded = run_ranks(train_curves, 1, 20, [(small,), (fp8, str(tmp_path), 10)], on_gpu=True)[0]
    pairs = zip(plain["losses"], rounded["losses"], strict=True)
    assert max(abs(a - b) / a for a, b in pairs) <= 0.02
    [resumed] = run_ranks(train_curves, 1, 20, [(small, str(tmp_path), 0, True)], on_gpu=True)[0]
    assert abs(resumed["losses"][-1] - plain["losses"][-1]) / plain["losses"][-1] <= 0.02
