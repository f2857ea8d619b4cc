# SPDX-License-Identifier: Apache-2.0
"""A base model is fine-tuned on answers by configs/finetune.yml, and exported."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from megatron.data.blend import build_blends
from megatron.neox_arguments.loader import load_config
from megatron.tokenizer import build_tokenizer
from tests.runs import ROOT, WORDS, Place, history_of, make_place, run

SEQUENCES, STEPS, SEQ_LENGTH = 4, 12, 48


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """With `questions`: any words, then an answer by a rule: each word follows from the one before."""
    place = make_place(tmp_path_factory.mktemp("place"))
    generator = random.Random(0)
    with open(place.folder / "questions.jsonl", "w") as file:
        for _ in range(150):
            asked = [generator.randrange(WORDS) for _ in range(generator.randrange(2, 30))]
            answer = [(asked[-1] + 3 * (n + 1)) % WORDS for n in range(generator.randrange(1, 8))]
            words = [" ".join(f"w{2 + word}" for word in side) for side in (asked, answer)]
            file.write(json.dumps({"problem": words[0] + " ", "solution": words[1]}) + "\n")
    done = run(
        place.folder, "tools/preprocess_data.py", "--input", place.folder / "questions.jsonl",
        "--output-prefix", place.folder / "q", "--prompt-key", "problem", "--text-key", "solution",
        "--tokenizer-type", "HFTokenizer", "--vocab-file", place.folder / "hf" / "tokenizer.json",
        "--append-eod",
    )  # fmt: skip
    assert done.status == 0, done.err
    return place


def configs(place: Place, folder: Path, **changes: object) -> list[object]:
    """configs/finetune.yml, made small."""
    prefix = str(place.folder / "q_solution_document")
    small = {
        "load": str(place.folder / "base"), "save": str(folder / "save"),
        "train_data_paths": [prefix], "valid_data_paths": [prefix],
        "seq_length": SEQ_LENGTH, "train_batch_size": SEQUENCES, "train_micro_batch_size_per_gpu": 1,
        "train_iters": STEPS, "warmup_iters": 0, "eval_interval": STEPS, "eval_iters": 1,
        "checkpoint_factor": STEPS, "precision": "fp32", "tensorboard": False, "plots": False,
        "model_parallel_size": 1,
        "optimizer": {"type": "Adam", "params": {"lr": 3.0e-3}}, **changes,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.yml").write_text(json.dumps(small))
    return [place.model_yaml, ROOT / "configs" / "finetune.yml", folder / "small.yml"]


def losses(place: Place, folder: Path, ranks: int, **changes: object) -> list[float]:
    done = run(
        folder, "deepy.py", ROOT / "train.py", *configs(place, folder, **changes), "--cpu-ranks", ranks
    )
    assert done.status == 0, done.err
    found = [step["loss"] for _, step in sorted(history_of(folder / "save").steps.items())]
    assert len(found) == STEPS
    return found


@pytest.fixture(scope="module")
def trained(place: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, losses(place, folder, 1)


def test_the_first_loss_is_that_of_transformers_over_the_answers(
    place: Place, trained: tuple[Path, list[float]]
) -> None:
    from transformers import AutoModelForCausalLM

    cfg, _ = load_config([Path(str(c)) for c in configs(place, trained[0])], overrides=["cpu_ranks=1"])
    tokenizer = build_tokenizer("HFTokenizer", place.folder / "hf" / "tokenizer.json", None)
    order = build_blends(cfg, tokenizer, SEQUENCES * STEPS, 0).train
    assert order is not None
    samples = [order[position] for position in range(SEQUENCES)]
    model = AutoModelForCausalLM.from_pretrained(place.folder / "hf", dtype=torch.float32)
    with torch.no_grad():
        logits_BSV = model(torch.stack([sample.tokens_S for sample in samples])).logits
    mask_BS = torch.stack([sample.loss_mask_S for sample in samples])
    counts = mask_BS.sum(dim=1)
    assert counts.min() < counts.max(), "all micro-batches count alike: the mean of means would pass too"
    labels_BS = torch.stack([sample.labels_S for sample in samples])
    loss_BS = torch.nn.functional.cross_entropy(logits_BSV.transpose(1, 2), labels_BS, reduction="none")
    expected = float((loss_BS * mask_BS).sum() / mask_BS.sum())
    assert trained[1][0] == pytest.approx(expected, abs=1e-5)


def test_the_layout_does_not_change_the_loss(
    place: Place, trained: tuple[Path, list[float]], tmp_path: Path
) -> None:
    """Answers fall unevenly on micro-batches and ranks. Tolerance: as for data parallel layouts, 1e-6."""
    for name, ranks, changes in (
        ("one micro-batch", 1, {"train_micro_batch_size_per_gpu": SEQUENCES}),
        ("two ranks", 2, {}),
    ):
        found = losses(place, tmp_path / name, ranks, **changes)
        difference = max(abs(a - b) for a, b in zip(found, trained[1], strict=True))
        print(f"{name}: {difference:.1e}")
        assert difference <= 1e-6 * max(trained[1])


def test_the_answers_are_learnt_and_exported(place: Place, trained: tuple[Path, list[float]]) -> None:
    from transformers import AutoModelForCausalLM

    folder, curve = trained
    assert curve[-1] < curve[0] - 0.5
    arguments = ["neox-to-hf", "--input", folder / "save", "--output", folder / "hf"]
    done = run(folder, "tools/convert_checkpoint.py", *arguments)
    assert done.status == 0, done.err
    before, after = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        for path in (place.folder / "hf", folder / "hf")
    )
    changed = [
        name
        for name, weight in after.named_parameters()
        if not torch.equal(weight, before.get_parameter(name))
    ]
    assert len(changed) == len(list(after.parameters()))
