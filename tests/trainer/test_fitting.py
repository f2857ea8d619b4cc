# SPDX-License-Identifier: Apache-2.0
"""`recompute: auto` on ranks: settled once, alike everywhere, logged and frozen."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from megatron.neox_arguments.config import RunConfig
from tests.llamas import run_config
from tests.ranks import run_ranks
from tests.runs import make_place


def settle_on_ranks(save: str) -> dict[str, Any]:
    """Called on every rank; the memory of a GPU is a stand-in, another one on each rank."""
    import torch

    from megatron.backend import initialize
    from megatron.trainer.fitting import least_memory_bytes, settle_recompute

    cfg = run_config(parallel={"recompute": "auto"}, checkpoint={"save": Path(save)})
    backend = initialize(cfg.parallel, seed=1)
    lines: list[str] = []
    settled = settle_recompute(cfg, backend, 512, lines.append)

    stand_in = SimpleNamespace(total_memory=(80 + backend.rank) * 10**9)
    torch.cuda.get_device_properties = lambda _device: stand_in  # type: ignore[assignment, misc]
    return {
        "recompute": settled.parallel.recompute,
        "lines": lines,
        "least": least_memory_bytes(backend),
        "unchanged": settle_recompute(settled, backend, 512, lines.append) is settled,
    }


def test_ranks_settle_alike(tmp_path: Path) -> None:
    found = run_ranks(settle_on_ranks, 2, str(tmp_path))
    assert found[0] == found[1]
    assert found[0]["recompute"] == "none"  # no GPU is here
    assert found[0]["least"] == 80 * 10**9
    assert found[0]["unchanged"]
    chosen, where = found[0]["lines"]
    assert chosen == "recompute auto: none, on a CPU"
    [frozen] = (tmp_path / "run_configs").glob("*.json")
    assert str(frozen) in where
    assert RunConfig.thaw(frozen).parallel.recompute == "none"


def test_a_run_says_what_it_chose_and_goes_on_with_another_choice(tmp_path: Path) -> None:
    place = make_place(tmp_path / "place")
    keys: dict[str, Any] = {"precision": "bfloat16", "checkpoint_activations": "auto", "ranks": 1}
    small: dict[str, Any] = {
        "exp_avg_dtype": "bf16",
        "exp_avg_sq_dtype": "bf16",
        "store_param_remainders": True,
    }
    first = place.train(tmp_path / "run", train_iters=4, lr_decay_iters=8, **keys, **small)
    assert first.status == 0, first.err  # weights and moments are looked at before each checkpoint
    assert "recompute auto: none, on a CPU" in first.err
    assert (
        "first moments in bfloat16, second in bfloat16, main parameters in 16 bits beside the weight"
        in first.err
    )
    record = json.loads((tmp_path / "run" / "save" / "global_step4" / "checkpoint.json").read_text())
    assert record["run"]["parallel"]["recompute"] == "none"
    then = place.train(tmp_path / "run", train_iters=8, **keys)
    assert then.status == 0, then.err
    assert (
        "optimizer states: exp_avg_dtype was bf16 and is fp32, exp_avg_sq_dtype was bf16 and is fp32, "
        "store_param_remainders was true and is false; checkpoints hold float32"
    ) in then.err
