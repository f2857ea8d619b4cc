# SPDX-License-Identifier: Apache-2.0
"""Log-likelihoods against transformers' logits, in float32. Measured at TP 1, 2, 4: at most 6.9e-6."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from megatron.neox_arguments.errors import UserError
from tests.llamas import save_hf_llama
from tests.ranks import run_ranks

VOCAB = 250  # at TP 4 not divisible: the last rank has padding


def some_pairs() -> list[tuple[list[int], list[int]]]:
    random = Random(0)

    def ids(count: int) -> list[int]:
        return [random.randrange(VOCAB) for _ in range(count)]

    pairs = [(ids(random.randrange(1, 40)), ids(random.randrange(1, 20))) for _ in range(30)]
    question = ids(25)
    choices = [(question, [answer]) for answer in range(4)]  # read once
    return [*pairs, *choices, pairs[3], (pairs[3][0] + pairs[3][1][:-1], pairs[3][1][-1:])]


PAIRS = some_pairs()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    from megatron.checkpointing.convert import hf_to_neox

    folder = tmp_path_factory.mktemp("scored")
    save_hf_llama(folder / "hf", vocab_size=VOCAB, num_key_value_heads=4, initializer_range=0.2)
    hf_to_neox(folder / "hf", folder / "neox", 1)
    return folder / "hf", folder / "neox"


@pytest.fixture(scope="module")
def theirs(folders: tuple[Path, Path]) -> list[tuple[list[float], bool]]:
    """The log-probabilities of each continuation, and whether it is greedy."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folders[0], dtype=torch.float32)
    found = []
    for context, continuation in PAIRS:
        with torch.no_grad():
            logits_SV = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]
        logprobs_SV = logits_SV.double().log_softmax(-1)
        values = [float(row[token]) for row, token in zip(logprobs_SV, continuation, strict=True)]
        found.append((values, logits_SV.argmax(-1).tolist() == continuation))
    return found


def scores_on_ranks(checkpoint: Path, ranks: int, batches: list[int | None]) -> list[Any]:
    """Called on every rank: the scores of PAIRS for each size of batches."""
    from megatron.backend import initialize, shut_down
    from megatron.checkpointing.inference import open_model
    from megatron.neox_arguments.config import ParallelConfig
    from megatron.text_generation import scoring

    scoring.LOGITS_BYTES["cpu"] = 4 * 7 * VOCAB  # several pieces
    backend = initialize(ParallelConfig(model_parallel_size=ranks), seed=1)
    opened = open_model(checkpoint, backend)
    found = [
        [
            (list(score.token_logprobs), score.is_greedy, score.loglikelihood)
            for score in scoring.score(opened.built, backend, PAIRS, batch_tokens=batch)
        ]
        for batch in batches
    ]
    shut_down()
    return found


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_likelihoods_are_those_of_transformers(
    folders: tuple[Path, Path], theirs: list[tuple[list[float], bool]], ranks: int
) -> None:
    of_ranks = run_ranks(scores_on_ranks, ranks, folders[1], ranks, [None, 1, 100])
    assert all(found == of_ranks[0] for found in of_ranks), "every rank has the same scores"
    worst = 0.0
    for found in of_ranks[0]:
        for (logprobs, is_greedy, loglikelihood), (values, is_theirs) in zip(found, theirs, strict=True):
            assert len(logprobs) == len(values)
            worst = max(worst, *(abs(a - b) for a, b in zip(logprobs, values, strict=True)))
            assert loglikelihood == pytest.approx(sum(logprobs))
            assert is_greedy == is_theirs
    print(f"TP {ranks}: {worst:.1e}")
    assert worst < 5e-5


@pytest.fixture(scope="module")
def opened(folders: tuple[Path, Path]) -> Iterator[Any]:
    from megatron.backend import initialize, shut_down
    from megatron.checkpointing.inference import open_model
    from megatron.neox_arguments.config import ParallelConfig

    yield open_model(folders[1], initialize(ParallelConfig(), seed=1))
    shut_down()


def test_a_greedy_continuation_is_known_as_one(opened: Any) -> None:
    from megatron.text_generation import Engine, Request, score

    engine = Engine(opened.built, opened.backend, max_batch_sequences=1, max_cache_tokens=100)
    engine.add(Request([5, 6, 7], 20))
    text: list[int] = []
    while not engine.idle:
        text += [token.token_id for token in engine.step()]
    other = [*text[:10], (text[10] + 1) % VOCAB, *text[11:]]
    found = score(
        opened.built, opened.backend, [([5, 6, 7], text), ([5, 6, 7], other), ([5, 6, 7], text[:3])]
    )
    assert [score.is_greedy for score in found] == [True, False, True]


def test_texts_that_differ_in_their_last_token_are_read_once(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron.model.reading import ModelReader
    from megatron.text_generation import score

    read: list[int] = []
    hidden = ModelReader.hidden

    def counted(self: ModelReader, tokens_N: Any, *rest: Any) -> Any:
        read.append(len(tokens_N))
        return hidden(self, tokens_N, *rest)

    monkeypatch.setattr(ModelReader, "hidden", counted)
    score(opened.built, opened.backend, [([1, 2, 3], [answer]) for answer in range(50)])
    assert read == [3]


def test_logits_are_made_for_what_is_scored_a_few_rows_at_a_time(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron.model.reading import ModelReader
    from megatron.text_generation import score, scoring

    rows: list[int] = []
    logits = ModelReader.logits

    def counted(self: ModelReader, hidden_NC: Any) -> Any:
        rows.append(len(hidden_NC))
        return logits(self, hidden_NC)

    monkeypatch.setattr(ModelReader, "logits", counted)
    monkeypatch.setitem(scoring.LOGITS_BYTES, "cpu", 4 * VOCAB * 10)
    score(opened.built, opened.backend, [(list(range(100)), list(range(35)))])
    assert rows == [10, 10, 10, 5]


@pytest.mark.parametrize("pair", [([], [1]), ([1], [])])
def test_an_empty_side_is_refused(opened: Any, pair: tuple[list[int], list[int]]) -> None:
    from megatron.text_generation import score

    with pytest.raises(UserError, match=r"pairs\[1\]: needs at least one token"):
        score(opened.built, opened.backend, [([1], [2]), pair])


def test_nothing_asked_is_nothing_said(opened: Any) -> None:
    from megatron.text_generation import score

    assert score(opened.built, opened.backend, []) == []
