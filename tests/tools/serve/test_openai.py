# SPDX-License-Identifier: Apache-2.0
"""OpenAI's two ways to ask, through its own client, against a session that says what is written here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace

import openai
import pytest

from megatron.text_generation.requests import Request
from tests.tools.serve.servers import LIMITS, Running, Scripted, logprob_of, running
from tools.serve_parts.wanted import seed_of_sample

ANSWER = " naïve ∑ 𝔸\n\nI hope it is correct.--- and on"
CHARACTERS = {" ": 1, "ï": 2, "∑": 3, "𝔸": 4}  # bytes, so tokens


def reply(request: Request) -> str:
    """ANSWER; with a temperature, one that tells the seed."""
    return f"seed {request.seed}" if request.temperature else ANSWER


@pytest.fixture(scope="module")
def session() -> Scripted:
    return Scripted(reply)


@pytest.fixture(scope="module")
def server(session: Scripted) -> Iterator[Running]:
    with running(session) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_a_completion_is_the_text_and_its_tokens_are_counted(client: openai.OpenAI) -> None:
    done = client.completions.create(model="llemma", prompt="Let ∑", max_tokens=200, temperature=0)
    [choice] = done.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == (ANSWER, "stop", None)
    assert done.usage is not None
    assert done.usage.prompt_tokens == len("Let ∑".encode())
    assert done.usage.completion_tokens == len(ANSWER.encode()) + 1  # the end of document, too
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert done.object == "text_completion"
    assert done.model == "llemma"


def test_max_tokens_is_openais_and_cuts_no_character_in_two(client: openai.OpenAI) -> None:
    done = client.completions.create(model="llemma", prompt="x", temperature=0)
    assert done.choices[0].finish_reason == "length"
    assert done.choices[0].text == ANSWER.encode()[:16].decode(errors="replace")
    assert done.usage is not None
    assert done.usage.completion_tokens == 16


@pytest.mark.parametrize("stop", ["I hope it is correct.", ["never", "---", "I hope it is correct."]])
def test_a_stop_string_ends_the_text_before_itself(client: openai.OpenAI, stop: str | list[str]) -> None:
    done = client.completions.create(model="llemma", prompt="x", max_tokens=200, stop=stop, temperature=0)
    assert done.choices[0].text == " naïve ∑ 𝔸\n\n"
    assert done.choices[0].finish_reason == "stop"


def test_the_engine_does_not_go_on_behind_a_stop_string() -> None:
    session = Scripted(lambda _: "a. b. " * 100_000, step_seconds=0.001)
    with running(session, limits=replace(LIMITS, new_tokens=600_000), context_tokens=700_000) as server:
        answer = server.post("/v1/completions", {"prompt": "x", "max_tokens": 600_000, "stop": ". b"})
        assert answer.json()["choices"][0]["text"] == "a"
        session.wait_until(lambda: session.idle)
    assert session.cancelled == [0]


def test_several_prompts_as_texts_and_as_ids_keep_their_order(
    client: openai.OpenAI, session: Scripted
) -> None:
    texts = ["one", "two", "three"]
    done = client.completions.create(model="llemma", prompt=texts, max_tokens=3, n=2, temperature=0)
    assert [choice.index for choice in done.choices] == list(range(6))
    asked = [bytes(request.prompt_ids).decode() for request in session.seen[-6:]]
    assert asked == ["one", "one", "two", "two", "three", "three"]
    for prompt in ([5, 6, 7], [[5, 6, 7], [8]]):
        client.completions.create(model="llemma", prompt=prompt, max_tokens=3)
    assert [list(request.prompt_ids) for request in session.seen[-3:]] == [[5, 6, 7], [5, 6, 7], [8]]


def test_sampling_reaches_the_engine_and_each_sample_has_a_seed_of_its_own(
    client: openai.OpenAI, session: Scripted
) -> None:
    done = client.completions.create(
        model="llemma",
        prompt="x",
        max_tokens=60,
        n=4,
        temperature=0.6,
        top_p=0.95,
        seed=7,
        extra_body={"top_k": 9},
    )
    seeds = [seed_of_sample(7, sample) for sample in range(4)]
    assert [choice.text for choice in done.choices] == [f"seed {seed}" for seed in seeds]
    assert seeds[0] == 7
    assert len(set(seeds)) == 4
    asked = session.seen[-1]
    assert (asked.temperature, asked.top_p, asked.top_k) == (0.6, 0.95, 9)
    assert asked.stop_ids == (256,)
    drawn = {
        client.completions.create(model="llemma", prompt="x", max_tokens=60).choices[0].text for _ in range(3)
    }
    assert len(drawn) == 3, "without a seed each request has another; the temperature is 1 by default"


def test_logprobs_are_those_of_the_engine(client: openai.OpenAI) -> None:
    done = client.completions.create(model="llemma", prompt="x", max_tokens=4, logprobs=2, temperature=0)
    logprobs = done.choices[0].logprobs
    assert logprobs is not None
    ids = ANSWER.encode()[:4]  # " na" and the first byte of ï
    assert logprobs.tokens == [" ", "n", "a", f"token_id:{ids[3]}"]
    assert logprobs.token_logprobs == [logprob_of(i) for i in ids]
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[1] == {"m": -0.125, "n": logprob_of(ord("n"))}
    assert logprobs.text_offset == [0, 1, 2, 3]
    only_chosen = client.completions.create(
        model="llemma", prompt="x", max_tokens=1, logprobs=0, temperature=0
    )
    assert only_chosen.choices[0].logprobs is not None
    assert only_chosen.choices[0].logprobs.top_logprobs == [{" ": logprob_of(32)}]


def test_echo_gives_the_prompt_its_likelihood_and_one_token_more(client: openai.OpenAI) -> None:
    """The request by which lm-eval scores a text."""
    done = client.completions.create(
        model="llemma", prompt=[list(b"abc"), list(b"d")], max_tokens=1, logprobs=1, echo=True, temperature=0
    )
    first, second = done.choices
    assert first.text == "abc "
    assert first.logprobs is not None
    assert first.logprobs.tokens == ["a", "b", "c", " "]
    assert first.logprobs.token_logprobs == [None, *(logprob_of(ord(letter)) for letter in "bc ")]
    assert first.logprobs.top_logprobs is not None
    assert first.logprobs.top_logprobs[:2] == [None, {"a": -0.125, "b": logprob_of(ord("b"))}]
    assert first.logprobs.text_offset == [0, 1, 2, 3]
    assert second.text == "d "
    nothing = client.completions.create(model="llemma", prompt="abc", max_tokens=0, logprobs=1, echo=True)
    assert nothing.choices[0].text == "abc"
    assert nothing.choices[0].logprobs is not None
    assert nothing.choices[0].logprobs.tokens == ["a", "b", "c"]
    assert nothing.usage is not None
    assert nothing.usage.completion_tokens == 0


def test_offsets_count_characters_where_tokens_are_parts_of_them(client: openai.OpenAI) -> None:
    done = client.completions.create(
        model="llemma", prompt="a∑𝔸b", max_tokens=6, logprobs=0, echo=True, temperature=0
    )
    [choice] = done.choices
    assert choice.text == "a∑𝔸b naïv"
    assert choice.logprobs is not None
    assert choice.logprobs.text_offset == [0, *[1] * 3, *[2] * 4, 3, 4, 5, 6, *[7] * 2, 8]


def test_the_end_of_a_document_is_a_token_though_no_text() -> None:
    with running(Scripted(lambda _: "")) as server:
        done = server.post(
            "/v1/completions", {"prompt": "ab", "max_tokens": 1, "logprobs": 1, "echo": True}
        ).json()
    assert done["choices"][0]["text"] == "ab"
    assert done["choices"][0]["logprobs"]["tokens"] == ["a", "b", "token_id:256"]


def test_a_stream_is_the_same_answer_in_pieces(client: openai.OpenAI) -> None:
    common = {"model": "llemma", "prompt": "x", "max_tokens": 200, "logprobs": 1, "temperature": 0}
    whole = client.completions.create(**common, stop="---", echo=True)  # type: ignore[call-overload]
    stream = client.completions.create(  # type: ignore[call-overload]
        **common, stop="---", echo=True, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert len(chunks) > 20
    texts = [chunk.choices[0].text for chunk in chunks]
    assert "".join(texts) == whole.choices[0].text
    assert all("�" not in text for text in texts)
    tokens = [token for chunk in chunks for token in chunk.choices[0].logprobs.tokens]
    assert tokens == whole.choices[0].logprobs.tokens
    offsets = [offset for chunk in chunks for offset in chunk.choices[0].logprobs.text_offset]
    assert offsets == whole.choices[0].logprobs.text_offset
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert last.choices == []
    assert last.usage == whole.usage


def test_a_chat_passes_its_messages_on_and_is_answered(client: openai.OpenAI, session: Scripted) -> None:
    done = client.chat.completions.create(
        model="llemma",
        messages=[
            {"role": "system", "content": "A. "},
            {"role": "user", "content": [{"type": "text", "text": "B "}, {"type": "text", "text": "C"}]},
        ],
        n=2,
        max_tokens=8,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    assert bytes(session.seen[-1].prompt_ids) == b"A. B C"
    assert len(done.choices) == 2
    assert done.choices[0].message.role == "assistant"
    assert done.choices[0].message.content == " naïve "
    assert done.choices[0].finish_reason == "length"
    assert done.choices[0].logprobs is not None
    assert done.choices[0].logprobs.content is not None
    entry = done.choices[0].logprobs.content[1]
    assert (entry.token, entry.logprob, entry.bytes) == ("n", logprob_of(ord("n")), [ord("n")])
    assert [(top.token, top.logprob) for top in entry.top_logprobs] == [
        ("m", -0.125),
        ("n", logprob_of(ord("n"))),
    ]


def test_a_chat_without_a_length_goes_on_to_the_end(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model="llemma", messages=[{"role": "user", "content": "x"}], temperature=0
    )
    assert done.choices[0].message.content == ANSWER
    newer = client.chat.completions.create(
        model="llemma", messages=[{"role": "user", "content": "x"}], temperature=0, max_completion_tokens=2
    )
    assert newer.choices[0].message.content == " n"


def test_a_chat_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="llemma",
        messages=[{"role": "user", "content": "x"}],
        temperature=0,
        n=2,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    for index in range(2):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == index]
        assert "".join(choice.delta.content or "" for choice in own) == ANSWER
        assert [choice.delta.role for choice in own[:2]] == ["assistant", None]
        assert own[-1].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 2 * (len(ANSWER.encode()) + 1)


def test_the_event_stream_is_as_written(server: Running) -> None:
    answer = server.post(
        "/v1/completions", {"prompt": "x", "max_tokens": 2, "temperature": 0, "stream": True}
    )
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert json.loads(events[0].removeprefix("data: "))["choices"][0]["text"] == " "


def test_the_asynchronous_client_gets_many_answers_at_once(server: Running) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            done = await asyncio.gather(
                *(
                    client.completions.create(
                        model="llemma", prompt=f"{i}", max_tokens=90, temperature=1, seed=i
                    )
                    for i in range(24)
                )
            )
            return [one.choices[0].text for one in done]

    assert asyncio.run(ask()) == [f"seed {seed}" for seed in range(24)]


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["llemma"]
    assert client.models.retrieve("llemma").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_another_model_is_not_answered_for(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="is not served here; ask for llemma"):
        client.completions.create(model="gpt-4o", prompt="x")


@pytest.mark.parametrize(("change", "field", "message"), [
    ({"best_of": 4}, "best_of", "is not supported here"),
    ({"best_of": 1, "n": 2}, "best_of", "is not supported here"),
    ({"temperature": "0"}, "temperature", 'temperature="0": must be a number'),
    ({"n": "2\u202e"}, "n", 'n="2\\u202e": must be an integer'),
    ({"stop": ["x"] * 65}, "stop", "stop: has 65 strings; must be at most 64"),
    ({"suffix": "x"}, "suffix", "is not supported here"),
    ({"presence_penalty": 0.5}, "presence_penalty", "is not supported here"),
    ({"logit_bias": {"5": 100}}, "logit_bias", "is not supported here"),
    ({"temprature": 0.5}, "temprature", "did you mean temperature?"),
    ({"max_tokens": 0}, "max_tokens", "must be an integer from 1"),
    ({"max_tokens": 5000}, "max_tokens", "at most 512"),
    ({"prompt": "x" * 900, "max_tokens": 500}, "max_tokens", "more than the context of 1,024"),
    ({"max_tokens": True}, "max_tokens", "must be an integer"),
    ({"max_tokens": 1.5}, "max_tokens", "must be an integer"),
    ({"n": 0}, "n", "must be an integer from 1"),
    ({"n": 10**9}, "n", "n: 1,000,000,000 samples in one request; this server takes 64 at a time"),
    ({"n": 40, "prompt": ["a", "b"]}, "n", "n: 2 prompts of 40 each are 80 samples in one request"),
    ({"prompt": ["a"] * 65}, "prompt", "prompt: 65 prompts of 1 each are 65 samples in one request"),
    ({"prompt": ["a"] * 65}, "prompt", "start it with a larger --max-waiting"),
    ({"temperature": -0.1}, "temperature", "must be a number from 0 to 100"),
    ({"temperature": 10**400}, "temperature", "must be a number"),
    ({"temperature": "0"}, "temperature", "must be a number"),
    ({"top_p": 0}, "top_p", "must be a number"),
    ({"logprobs": 21}, "logprobs", "from 0 to 20"),
    ({"stop": ["x"] * 65}, "stop", "must be at most 64"),
    ({"stop": [5]}, "stop", "must be a string"),
    ({"prompt": []}, "prompt", "not an empty list"),
    ({"prompt": [[]]}, "prompt", "not an empty list"),
    ({"prompt": ["a", 5]}, "prompt", "must be a string, a list of strings"),
    ({"prompt": [257]}, "prompt", "257 is no token id; they go from 0 to 256"),
    ({"prompt": [True]}, "prompt", "must be a string"),
    ({"prompt": None}, "prompt", "must be a string"),
    ({"prompt": "\ud835"}, "prompt", "half of a surrogate pair"),
    ({"stream_options": {"other": 1}}, "stream_options.other", "is not known here"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(
    server: Running, session: Scripted, change: dict[str, object], field: str | None, message: str
) -> None:
    before = len(session.seen)
    answer = server.post("/v1/completions", {"model": "llemma", "prompt": "x", **change})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert message in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", field)
    assert len(session.seen) == before


@pytest.mark.parametrize(("change", "message"), [
    ({"messages": []}, "at least one message"),
    ({"messages": "x"}, "at least one message"),
    ({"messages": [5]}, "messages[0]: must be an object"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role=\"king\": must be one of"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content: must be a string"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only parts of type text"),
    ({"top_logprobs": 2}, "needs logprobs: true"),
    ({"tools": [{"type": "function"}]}, "is not supported here"),
    ({"response_format": {"type": "json_object"}}, "is not supported here"),
    ({"max_completion_tokens": 2000}, "at most 512"),
    ({"max_tokens": 3, "max_completion_tokens": 2}, "max_tokens=3: max_completion_tokens=2 differs"),
])  # fmt: skip
def test_a_chat_that_cannot_be_is_refused_by_name(
    server: Running, change: dict[str, object], message: str
) -> None:
    asked = {"model": "llemma", "messages": [{"role": "user", "content": "x"}], **change}
    answer = server.post("/v1/chat/completions", asked)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_an_answer_can_be_sent_back_as_a_message(client: openai.OpenAI, session: Scripted) -> None:
    asked = [{"role": "user", "content": "x", "type": "text"}]
    done = client.chat.completions.create(model="llemma", messages=asked, max_tokens=2, temperature=0)  # type: ignore
    turns = [*asked, done.choices[0].message.model_dump(), {"role": "user", "content": "y"}]
    client.chat.completions.create(model="llemma", messages=turns, max_tokens=2)  # type: ignore
    assert bytes(session.seen[-1].prompt_ids) == b"x ny"


def test_neutral_values_and_what_changes_no_text_are_taken(server: Running) -> None:
    more = {
        "user": "me", "frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "suffix": None,
        "stop": None, "seed": None, "n": 1, "best_of": 1, "stream": False, "stream_options": None,
    }  # fmt: skip
    answer = server.post("/v1/completions", {"prompt": "x", "max_tokens": 2, "temperature": 0, **more})
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"] == " n"
