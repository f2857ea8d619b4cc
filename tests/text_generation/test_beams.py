# SPDX-License-Identifier: Apache-2.0
"""Beam search against transformers' own, on one rank and on two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from megatron.text_generation.beams import BeamOrder
from tests.llamas import save_hf_llama
from tests.ranks import run_ranks

FAMILIES = ("llama", "qwen3", "olmo2")
RANDOM = Random(1)
# Many ends, so that answers of several lengths compete.
ENDS = frozenset(RANDOM.sample(range(250), 25))
ORDERS = [
    BeamOrder(tuple(RANDOM.randrange(2, 250) for _ in range(length)), beams, new_tokens)
    for length, beams, new_tokens in (
        (1, 3, 5), (7, 1, 8), (30, 4, 1), (12, 4, 2), (40, 5, 12), (19, 16, 10), (23, 8, 24)
    )
]  # fmt: skip


def ends(ids: Sequence[int]) -> bool:
    return ids[-1] in ENDS


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Each model as a Hugging Face folder and as a checkpoint here. Weights are large: logits lie apart."""
    from megatron.checkpointing.convert import hf_to_neox

    folder, made = tmp_path_factory.mktemp("models"), {}
    for seed, family in enumerate(FAMILIES):
        hf = save_hf_llama(folder / f"{family} hf", seed=seed, family=family, initializer_range=0.3)
        hf_to_neox(hf, folder / family, 1)
        made[family] = (hf, folder / family)
    return made


def transformers_answers(hf: Path, order: BeamOrder) -> list[tuple[tuple[int, ...], float]]:
    """transformers' answers and their scores, the best first."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    length = len(order.prompt_ids)

    def is_at_end(ids_NS: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        return torch.tensor([ends(ids) for ids in ids_NS.tolist()])

    made = model.generate(
        torch.tensor([order.prompt_ids]), num_beams=order.beams, num_return_sequences=order.beams,
        max_new_tokens=order.max_new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0,
        length_penalty=1.0, early_stopping=False, stopping_criteria=[is_at_end],
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    answers = []
    for ids in made.sequences[:, length:].tolist():
        size = next((at for at in range(1, len(ids) + 1) if ends(ids[:at])), len(ids))
        answers.append(tuple(ids[:size]))
    # With one beam transformers does not search, and has no scores of sequences.
    scores = made.sequences_scores.tolist() if order.beams > 1 else [float("nan")]
    return list(zip(answers, scores, strict=True))


def our_answers(checkpoints: list[Path], ranks: int) -> list[list[list[tuple[tuple[int, ...], float]]]]:
    """Called on every rank: the answers to every order, of each checkpoint."""
    from megatron.backend import initialize, shut_down
    from megatron.checkpointing.inference import open_model
    from megatron.neox_arguments.config import ParallelConfig
    from megatron.text_generation import ModelSession

    backend = initialize(ParallelConfig(model_parallel_size=ranks), seed=0)
    found: list[Any] = []
    for checkpoint in checkpoints:
        opened = open_model(checkpoint, backend)
        with ModelSession(opened.built, backend) as session:
            if not session.is_first:
                session.follow()
                continue
            answers = [session.search_beams(order, ends) for order in ORDERS]
            found.append([[(beam.ids, beam.score) for beam in beams] for beams in answers])
    shut_down()
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_answers_are_those_of_transformers(models: dict[str, tuple[Path, Path]], ranks: int) -> None:
    found = run_ranks(our_answers, ranks, [models[name][1] for name in FAMILIES], ranks)[0]
    lengths: set[int] = set()
    for name, of_orders in zip(FAMILIES, found, strict=True):
        for order, ours in zip(ORDERS, of_orders, strict=True):
            theirs = transformers_answers(models[name][0], order)
            assert [ids for ids, _ in ours] == [ids for ids, _ in theirs], (name, order)
            if order.beams > 1:
                # Sums of log-probabilities in float32; 6e-7 was measured.
                expected = pytest.approx([score for _, score in theirs], abs=1e-5)
                assert [score for _, score in ours] == expected
            lengths.update(len(ids) for ids, _ in ours)
    assert len(lengths) > 5, "answers end early and late"


def test_a_long_prompt_is_read_in_parts(
    models: dict[str, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron.text_generation import beams

    whole = run_ranks(our_answers, 1, [models["llama"][1]], 1)[0]
    monkeypatch.setattr(beams, "_PROMPT_TOKENS", 7)
    parts = our_answers([models["llama"][1]], 1)
    assert [[ids for ids, _ in of_order] for of_order in parts[0]] == [
        [ids for ids, _ in of_order] for of_order in whole[0]
    ]
