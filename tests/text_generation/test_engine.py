# SPDX-License-Identifier: Apache-2.0
"""The engine against transformers' generate, one prompt at a time: whatever is in the batch, on any ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from megatron.neox_arguments.errors import ConfigError
from megatron.neox_arguments.model import FAMILIES
from megatron.text_generation.requests import NewToken, Request
from tests.llamas import save_hf_llama
from tests.ranks import run_ranks

NEW_TOKENS = 12
MODELS: dict[str, dict[str, Any]] = {
    **{family: {"family": family} for family in FAMILIES},
    "one KV head, tied": {"family": "qwen2", "num_key_value_heads": 1, "tie_word_embeddings": True},
    "padded vocabulary": {"vocab_size": 251, "num_key_value_heads": 4},
}
MODELS["llama 3 scaling"] = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
}
AT_TP_2 = ["llama", "qwen3", "olmo2", "padded vocabulary"]


def some_prompts() -> list[list[int]]:
    """Of many lengths; some begin alike, two are the same."""
    random = Random(0)
    examples = [random.randrange(2, 250) for _ in range(40)]
    own = [[random.randrange(2, 250) for _ in range(random.randrange(1, 20))] for _ in range(6)]
    alike = [examples + ids for ids in own[:3]]
    return [*own, *alike, alike[0], examples[:30]]


PROMPTS = some_prompts()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Each model as a Hugging Face folder and as a checkpoint here. Weights are large: logits lie apart."""
    from megatron.checkpointing.convert import hf_to_neox

    folder = tmp_path_factory.mktemp("models")
    made = {}
    for seed, (name, keys) in enumerate(MODELS.items()):
        hf = save_hf_llama(folder / f"{name} hf", seed=seed, **{"initializer_range": 0.2, **keys})
        hf_to_neox(hf, folder / name, 1)
        made[name] = (hf, folder / name)
    return made


def transformers_texts(hf: Path, prompts: list[list[int]]) -> list[list[int]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    return [
        model.generate(
            torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]  # fmt: skip


def make_engine(opened: Any, **sizes: int) -> Any:
    from megatron.text_generation.engine import Engine

    keys: dict[str, Any] = {"max_batch_sequences": 4, "max_cache_tokens": 300, **sizes}
    return Engine(opened.built, opened.backend, **keys)


def finish(engine: Any) -> dict[int, list[NewToken]]:
    """Steps until nothing is under way, on every rank; the tokens of each request."""
    tokens: dict[int, list[NewToken]] = {}
    while True:
        for token in engine.step():
            tokens.setdefault(token.request, []).append(token)
        if engine.idle:
            return tokens


def ids_of(tokens: dict[int, list[NewToken]]) -> list[list[int]]:
    return [[token.token_id for token in tokens[number]] for number in sorted(tokens)]


def write(engine: Any, requests: list[Request]) -> list[list[int]]:
    """The ids that follow each prompt."""
    for request in requests:
        engine.add(request)
    return ids_of(finish(engine))


def greedy(prompts: list[list[int]]) -> list[Request]:
    return [Request(prompt, NEW_TOKENS) for prompt in prompts]


@pytest.fixture(scope="module")
def backend() -> Iterator[Any]:
    from megatron.backend import initialize, shut_down
    from megatron.neox_arguments.config import ParallelConfig

    yield initialize(ParallelConfig(), seed=0)
    shut_down()


@pytest.fixture(scope="module")
def llama(models: dict[str, tuple[Path, Path]], backend: Any) -> Any:
    from megatron.checkpointing.inference import open_model

    return open_model(models["llama"][1], backend)


@pytest.fixture(scope="module")
def expected(models: dict[str, tuple[Path, Path]]) -> list[list[int]]:
    texts = transformers_texts(models["llama"][0], PROMPTS)
    assert len({tuple(text) for text in texts}) > len(texts) / 2, "prompts lead to different texts"
    return texts


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_is_that_of_transformers(
    models: dict[str, tuple[Path, Path]], backend: Any, name: str
) -> None:
    from megatron.checkpointing.inference import open_model

    hf, checkpoint = models[name]
    ours = write(make_engine(open_model(checkpoint, backend)), greedy(PROMPTS))
    assert ours == transformers_texts(hf, PROMPTS)


def texts_on_ranks(checkpoints: list[Path], requests: list[Request]) -> list[list[list[int]]]:
    """Called on every rank: for each checkpoint the ids of each request, as this rank sees them."""
    from megatron.backend import initialize
    from megatron.checkpointing.inference import open_model
    from megatron.neox_arguments.config import ParallelConfig

    backend = initialize(ParallelConfig(model_parallel_size=2), seed=1)
    found = []
    for checkpoint in checkpoints:
        engine = make_engine(open_model(checkpoint, backend))
        found.append(write(engine, requests if backend.is_main else []))
    return found


def test_two_ranks_write_the_same(models: dict[str, tuple[Path, Path]]) -> None:
    checkpoints = [models[name][1] for name in AT_TP_2]
    drawn = [
        Request(PROMPTS[0], NEW_TOKENS, temperature=1.0, seed=3),
        Request(PROMPTS[1], NEW_TOKENS, 0.7, 0.9),
    ]
    first, second = run_ranks(texts_on_ranks, 2, checkpoints, [*greedy(PROMPTS), *drawn])
    assert first == second, "every rank is told the same"
    for name, texts in zip(AT_TP_2, first, strict=True):
        assert texts[: len(PROMPTS)] == transformers_texts(models[name][0], PROMPTS), name


@pytest.mark.parametrize("sizes", [
    {"max_batch_sequences": 1},
    {"max_batch_sequences": 16, "max_cache_tokens": 1000},
    {"max_cache_tokens": 75},  # one of the long prompts at a time
    {"max_step_tokens": 3},
    {"max_batch_sequences": 3, "max_cache_tokens": 130, "max_step_tokens": 16},
])  # fmt: skip
def test_room_changes_when_and_not_what(llama: Any, expected: list[list[int]], sizes: dict[str, int]) -> None:
    engine = make_engine(llama, **sizes)
    held = engine.cache_bytes
    assert write(engine, greedy(PROMPTS)) == expected
    assert engine.cache_bytes == held
    config = llama.built.config
    numbers = config.num_layers * 2 * config.num_query_groups * config.kv_channels * engine.max_cache_tokens
    assert held == numbers * 4


def test_requests_come_and_go_at_any_step(llama: Any, expected: list[list[int]]) -> None:
    """Arrivals, cancellations and rows of changing length, at random."""
    random = Random(1)
    for _ in range(6):
        engine = make_engine(llama, max_batch_sequences=random.randrange(1, 6), max_cache_tokens=160)
        waiting = random.sample(range(len(PROMPTS)), len(PROMPTS))
        place_of: dict[int, int] = {}
        wanted: dict[int, int] = {}
        tokens: dict[int, list[int]] = {}
        cancelled: set[int] = set()
        while waiting or not engine.idle:
            if waiting and random.random() < 0.3:
                place = waiting.pop()
                length = random.randrange(1, NEW_TOKENS + 1)
                number = engine.add(Request(PROMPTS[place], length))
                place_of[number], wanted[number], tokens[number] = place, length, []
            if place_of and random.random() < 0.05:
                cancelled.add(random.choice(list(place_of)))
                engine.cancel(max(cancelled))
            for token in engine.step():
                tokens[token.request].append(token.token_id)
        for number, place in place_of.items():
            text = expected[place][: wanted[number]]
            if number in cancelled:
                assert tokens[number] == text[: len(tokens[number])]
            else:
                assert tokens[number] == text


def test_what_prompts_share_is_read_once(
    llama: Any, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron.model.reading import ModelReader

    read: list[int] = []
    hidden = ModelReader.hidden

    def counted(self: ModelReader, tokens_N: Any, *rest: Any) -> Any:
        read.append(len(tokens_N))
        return hidden(self, tokens_N, *rest)

    monkeypatch.setattr(ModelReader, "hidden", counted)
    longest = max(range(len(PROMPTS)), key=lambda place: len(PROMPTS[place]))
    texts = write(
        make_engine(llama, max_batch_sequences=8, max_cache_tokens=1000), greedy([PROMPTS[longest]] * 8)
    )
    assert texts == [expected[longest]] * 8
    # The first reads the prompt, the seven others its last token; then eight rows go on together.
    assert read[:2] == [len(PROMPTS[longest]), 7]
    assert read[2:] == [8] * (NEW_TOKENS - 1)


def test_draws_follow_from_the_seed_alone(llama: Any) -> None:
    drawn = [Request(prompt, NEW_TOKENS, 1.0, 0.9, seed=place) for place, prompt in enumerate(PROMPTS)]
    alone = [write(make_engine(llama), [request])[0] for request in drawn]
    together = write(make_engine(llama, max_batch_sequences=16, max_cache_tokens=1000), drawn[::-1])
    assert together[::-1] == alone
    assert alone[6] != alone[9] or PROMPTS[6] != PROMPTS[9], "another seed, another text"
    samples = write(make_engine(llama), [Request(PROMPTS[0], NEW_TOKENS, 1.0) for _ in range(6)])
    assert len({tuple(text) for text in samples}) > 1, "without a seed each has its own"


def test_how_a_text_ends(llama: Any, expected: list[list[int]]) -> None:
    text = expected[3]
    stop = next(token for place, token in enumerate(text) if place > 1 and token not in text[:place])
    place = text.index(stop)
    engine = make_engine(llama)
    for request in (
        Request(PROMPTS[3], NEW_TOKENS, stop_ids=(stop, 999)),
        Request(PROMPTS[3], place + 1, stop_ids=(stop,)),
        Request(PROMPTS[3], place),
        Request(PROMPTS[3], 1),
    ):
        engine.add(request)
    found = finish(engine)
    assert ids_of(found) == [text[: place + 1], text[: place + 1], text[:place], text[:1]]
    assert {number: tokens[-1].finish_reason for number, tokens in found.items()} == {
        0: "stop", 1: "stop", 2: "length", 3: "length",
    }  # fmt: skip
    assert all(token.finish_reason is None for tokens in found.values() for token in tokens[:-1])


@pytest.mark.parametrize("step_tokens", [1000, 5])
def test_log_probabilities_of_new_tokens_and_of_the_prompt(
    models: dict[str, tuple[Path, Path]], llama: Any, expected: list[list[int]], step_tokens: int
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(models["llama"][0], dtype=torch.float32)
    prompt, text = PROMPTS[6], expected[6]
    with torch.no_grad():
        exact_SV = model(torch.tensor([prompt + text])).logits[0].log_softmax(-1)
    engine = make_engine(llama, max_step_tokens=step_tokens)
    for request in (
        Request(prompt, NEW_TOKENS, num_logprobs=3, prompt_logprobs=True),
        Request(prompt, 0, prompt_logprobs=True),
    ):
        engine.add(request)
    found = finish(engine)
    for place, token in enumerate(found[0], len(prompt) - 1):
        values, ids = exact_SV[place].topk(3)
        assert token.logprob == pytest.approx(float(exact_SV[place, token.token_id]), abs=1e-4)
        assert [i for i, _ in token.top] == ids.tolist()
        assert [value for _, value in token.top] == pytest.approx(values.tolist(), abs=1e-4)
    [only] = found[1]
    assert (only.token_id, only.finish_reason) == (-1, "length")
    for tokens in (found[0][0].prompt, only.prompt):
        assert [token.token_id for token in tokens] == prompt
        assert tokens[0].logprob is None
        values = [exact_SV[place, token] for place, token in enumerate(prompt[1:])]
        assert [token.logprob for token in tokens[1:]] == pytest.approx([float(x) for x in values], abs=1e-4)
    assert found[0][0].prompt[1].top[0][0] == int(exact_SV[0].argmax())
    assert all(token.prompt == () for token in found[0][1:])


@pytest.mark.parametrize(("request_", "message"), [
    (Request([1] * 290, 30), "290 tokens and max_new_tokens=30 do not fit into max_cache_tokens=300; sh"),
    (Request([], 3), "prompt_ids: is empty"),
    (Request([3, 256], 3), r"prompt_ids=[256]: is not below 256"),
    (Request([-1], 3), r"prompt_ids=[-1]: is not below 256"),
    (Request([3], -1), "max_new_tokens=-1: is negative"),
    (Request([3], 1, temperature=-1.0), "temperature=-1.0: is no temperature"),
    (Request([3], 1, temperature=float("nan")), "temperature=NaN: is no temperature"),
    (Request([3], 1, top_p=0.0), "top_p=0.0: is no probability"),
    (Request([3], 1, top_k=-1), "top_k=-1: is negative"),
    (Request([3], 1, num_logprobs=300), "num_logprobs=300: is out of range"),
])  # fmt: skip
def test_what_cannot_be_answered_is_refused(llama: Any, request_: Request, message: str) -> None:
    engine = make_engine(llama)
    with pytest.raises(ConfigError) as refused:
        engine.add(request_)
    assert message in str(refused.value)
    assert engine.idle


def test_bfloat16_follows_its_own_likelihoods(models: dict[str, tuple[Path, Path]], backend: Any) -> None:
    """Greedy texts of two precisions differ; what each token's probability is must not, whichever way it is
    computed: as it is written, or as it is read."""
    from megatron.checkpointing.inference import open_model
    from megatron.text_generation.scoring import score

    opened = open_model(models["llama"][1], backend, dtype="bfloat16")
    engine = make_engine(opened)
    for request in greedy(PROMPTS):
        engine.add(request)
    found = finish(engine)
    pairs = [(prompt, [token.token_id for token in found[n]]) for n, prompt in enumerate(PROMPTS)]
    for number, read in enumerate(score(opened.built, backend, pairs)):
        written = [token.logprob for token in found[number]]
        assert written == pytest.approx(list(read.token_logprobs), abs=0.3)
        assert sum(abs(a - b) for a, b in zip(written, read.token_logprobs, strict=True)) / NEW_TOKENS < 0.05


class Failure(Exception):
    """Of a rank, for a test."""


def fail_on_one(checkpoint: Path, failing: int) -> str:
    """Called on two ranks, of which one fails in its third step; returns how this one ended."""
    from megatron.backend import initialize
    from megatron.checkpointing.inference import open_model
    from megatron.neox_arguments.config import ParallelConfig
    from megatron.text_generation.session import ModelSession

    backend = initialize(ParallelConfig(model_parallel_size=2), seed=1)
    opened = open_model(checkpoint, backend)
    session = ModelSession(opened.built, backend, max_batch_sequences=2, max_cache_tokens=100)
    step, steps = session.engine.step, iter(range(100))

    def step_or_fail() -> list[NewToken]:
        if next(steps) == 2 and backend.rank == failing:
            raise Failure
        return step()

    session.engine.step = step_or_fail  # type: ignore[method-assign]
    try:
        with session:
            if backend.is_main:
                session.add(Request([3, 4, 5], 50))
                while not session.idle:
                    session.step()
            else:
                session.follow()
    except (RuntimeError, Failure) as error:
        return type(error).__name__
    return "as if nothing had happened"


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_ends_the_others(models: dict[str, tuple[Path, Path]], failing: int) -> None:
    ends = run_ranks(fail_on_one, 2, models["llama"][1], failing)
    assert ends[failing] == "Failure"
    assert ends[1 - failing] in ("RuntimeError", "DistBackendError", "DistNetworkError")


def lead_and_follow(checkpoint: Path) -> list[Any] | None:
    """Called on two ranks: a session with two engines and some scores, of which only rank 0 knows."""
    from megatron.backend import initialize
    from megatron.checkpointing.inference import open_model
    from megatron.neox_arguments.config import ParallelConfig
    from megatron.text_generation.session import ModelSession

    backend = initialize(ParallelConfig(model_parallel_size=2), seed=1)
    opened = open_model(checkpoint, backend)
    session = ModelSession(opened.built, backend)
    if not session.is_first:
        session.follow()
        return None
    found: list[Any] = []
    with session:
        for batch in (1, 3, 3):
            session.open_engine(max_batch_sequences=batch, max_cache_tokens=batch * 80)
            found.append(write(session, greedy(PROMPTS[:4])))
            found.append(session.score([(PROMPTS[0], PROMPTS[1])])[0].loglikelihood)
    return found


def test_a_session_is_led_by_its_first_rank(
    models: dict[str, tuple[Path, Path]], llama: Any, expected: list[list[int]]
) -> None:
    from megatron.text_generation.scoring import score

    found, nothing = run_ranks(lead_and_follow, 2, models["llama"][1])
    assert nothing is None
    alone = score(llama.built, llama.backend, [(PROMPTS[0], PROMPTS[1])])[0].loglikelihood
    for texts, loglikelihood in zip(found[::2], found[1::2], strict=True):
        assert texts == expected[:4]
        assert loglikelihood == pytest.approx(alone, abs=1e-4)


def refuse_and_go(checkpoint: Path) -> str:
    """Called on two ranks: the first has a request that is refused, and ends with the refusal."""
    from megatron.backend import initialize
    from megatron.checkpointing.inference import open_model
    from megatron.neox_arguments.config import ParallelConfig
    from megatron.text_generation.session import ModelSession

    backend = initialize(ParallelConfig(model_parallel_size=2), seed=1)
    opened = open_model(checkpoint, backend)
    session = ModelSession(opened.built, backend, max_batch_sequences=2, max_cache_tokens=100)
    if not session.is_first:
        session.follow()
        return "let go"
    try:
        with session:
            write(session, [*greedy(PROMPTS[:1]), Request([], 1)])
    except ConfigError:
        return "refused"
    return "answered"


def test_a_refusal_lets_the_others_go(models: dict[str, tuple[Path, Path]]) -> None:
    assert run_ranks(refuse_and_go, 2, models["llama"][1]) == ["refused", "let go"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "qwen3", "olmo2"])
def test_a_gpu_writes_what_transformers_writes_on_a_cpu(
    models: dict[str, tuple[Path, Path]], backend: Any, name: str
) -> None:
    from megatron.checkpointing.inference import open_model

    hf, checkpoint = models[name]
    opened = open_model(checkpoint, backend, dtype="float32")
    assert backend.device.type == "cuda"
    expected = transformers_texts(hf, PROMPTS)
    assert write(make_engine(opened), greedy(PROMPTS)) == expected
    assert write(make_engine(opened, max_step_tokens=7, max_batch_sequences=9), greedy(PROMPTS)) == expected
    half = open_model(checkpoint, backend, dtype="bfloat16")
    assert all(len(text) == NEW_TOKENS for text in write(make_engine(half), greedy(PROMPTS)))
