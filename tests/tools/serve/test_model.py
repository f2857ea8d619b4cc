# SPDX-License-Identifier: Apache-2.0
"""tools/serve.py as a user starts it, on a small random Llama: against transformers, by lm-eval, on ranks."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from megatron.launcher.ports import free_port
from tests.llamas import save_hf_llama
from tests.ranks import rank_environment
from tests.runs import run, start

WAIT_SECONDS = 120
PROMPTS = ["w5 w8 w11 w14", "w200", "w7 w7 w7 w100 w3 w2 w99 w31 w64", "w5 w8 w11 w14 w17 w20", "w9 w250"]
NEW_TOKENS = 16


@dataclass(frozen=True)
class Served:
    """A server in processes of its own, one a rank."""

    url: str
    ranks: list[subprocess.Popen[str]]
    folder: Path

    def end(self, signum: int = signal.SIGTERM) -> list[int]:
        """The exit status of each rank after all have had a signal."""
        for process in self.ranks:
            process.send_signal(signum)
        return self.wait()

    def wait(self) -> list[int]:
        return [process.wait(WAIT_SECONDS) for process in self.ranks]

    @property
    def said(self) -> str:
        return (self.folder / "rank0" / "err.txt").read_text()

    def complete(self, prompt: str | list[str], **more: Any) -> list[str]:
        content = {"prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, **more}
        answer = httpx.post(f"{self.url}/v1/completions", json=content, timeout=WAIT_SECONDS)
        assert answer.status_code == 200, answer.text
        return [choice["text"] for choice in answer.json()["choices"]]


@contextlib.contextmanager
def serving(folder: Path, checkpoint: Path, *options: object, ranks: int = 1) -> Iterator[Served]:
    """Starts the server and waits until it listens."""
    meeting = free_port()
    arguments = ["tools/serve.py", checkpoint, "--port", 0, "--name", "small", *options]
    processes = [
        start(
            folder / f"rank{rank}",
            *arguments,
            environment=rank_environment(rank, ranks, meeting) if ranks > 1 else None,
        )
        for rank in range(ranks)
    ]
    try:
        yield Served(url_of(folder / "rank0" / "err.txt", processes), processes, folder)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def url_of(said: Path, processes: Sequence[subprocess.Popen[str]]) -> str:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        found = re.search(r"serving at (http://\S+)", said.read_text())
        if found:
            return found[1]
        assert all(process.poll() is None for process in processes), said.read_text()[-4000:]
        time.sleep(0.05)
    raise AssertionError(said.read_text()[-4000:])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`hf` and `base`: the same random Llama."""
    folder = tmp_path_factory.mktemp("small")
    save_hf_llama(folder / "hf", num_hidden_layers=2)
    done = run(
        folder,
        "tools/convert_checkpoint.py",
        "hf-to-neox",
        "--input",
        folder / "hf",
        "--output",
        folder / "base",
    )
    assert done.status == 0, done.err
    return folder


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[Served]:
    with serving(place / "served", place / "base") as served:
        yield served


@pytest.fixture(scope="module")
def reference(place: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(place / "hf", dtype=torch.float32).eval()


def ids_of(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


def theirs(reference: Any, prompt: str, new_tokens: int = NEW_TOKENS) -> str:
    """What transformers writes after a prompt, as words."""
    import torch

    ids = torch.tensor([ids_of(prompt)])
    written = reference.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
    )
    new = written[0, ids.size(1) :].tolist()
    new = new[: new.index(0)] if 0 in new else new
    return "".join(" <unk>" if i == 1 else f" w{i}" for i in new)


def test_greedy_text_is_that_of_transformers_alone_and_among_many(served: Served, reference: Any) -> None:
    expected = [theirs(reference, prompt) for prompt in PROMPTS]
    assert served.complete(PROMPTS) == expected
    with ThreadPoolExecutor(16) as pool:
        asked = list(
            pool.map(lambda number: served.complete(PROMPTS[number % 5], n=1 + number % 3), range(30))
        )
    for number, texts in enumerate(asked):
        assert texts == [expected[number % 5]] * (1 + number % 3)


def test_log_probabilities_are_those_of_transformers(served: Served, reference: Any) -> None:
    import torch

    ids = ids_of(PROMPTS[2])
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
    done = client.completions.create(
        model="small", prompt=ids, max_tokens=0, echo=True, logprobs=3, temperature=0
    )
    logprobs = done.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    with torch.no_grad():
        expected_SV = reference(torch.tensor([ids])).logits[0].log_softmax(-1)
    for place in range(1, len(ids)):
        row_V = expected_SV[place - 1]
        assert logprobs.token_logprobs[place] == pytest.approx(float(row_V[ids[place]]), abs=1e-4)
        values, top_ids = row_V.topk(3)
        told = logprobs.top_logprobs[place]
        assert told is not None
        for value, token_id in zip(values.tolist(), top_ids.tolist(), strict=True):
            name = {0: "token_id:0", 1: " <unk>"}.get(token_id, f" w{token_id}")
            assert told[name] == pytest.approx(value, abs=1e-4)


def test_temperature_and_top_p_really_act(served: Served) -> None:
    [greedy] = served.complete(PROMPTS[0])
    drawn = served.complete(PROMPTS[0], n=8, temperature=1.0, seed=3)
    assert len(set(drawn)) == 8
    assert drawn == served.complete(PROMPTS[0], n=8, temperature=1.0, seed=3)
    assert drawn[:2] == served.complete(PROMPTS[0], n=2, temperature=1.0, seed=3)
    assert drawn != served.complete(PROMPTS[0], n=8, temperature=1.0, seed=4)
    assert set(served.complete(PROMPTS[0], n=8, temperature=1.0, top_p=1e-6)) == {greedy}
    assert set(served.complete(PROMPTS[0], n=8, temperature=1e-3)) == {greedy}
    assert set(served.complete(PROMPTS[0], n=8, temperature=1.0, top_k=1)) == {greedy}


def test_lm_eval_scores_and_generates_through_it(served: Served, place: Path, reference: Any) -> None:
    """lm-eval's own models of OpenAI's API, against transformers."""
    pytest.importorskip("lm_eval", reason="requirements-eval.txt is not installed")
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    pairs = [("w5 w8 w11", " w14 w17"), ("w5 w8 w11", " w14"), ("w7 w7", " w100 w3 w2"), ("w9", " w250")]
    for tokenized in (True, False):
        model = LocalCompletionsAPI(
            base_url=f"{served.url}/v1/completions",
            model="small",
            tokenizer=str(place / "hf"),
            tokenizer_backend="huggingface",
            tokenized_requests=tokenized,
            batch_size=2 if tokenized else 1,
            max_length=128,
        )
        found = model.loglikelihood(
            [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
        )
        for (context, continuation), (loglikelihood, is_greedy) in zip(pairs, found, strict=True):
            ids, new = ids_of(context + continuation), ids_of(continuation)
            with torch.no_grad():
                rows_NV = reference(torch.tensor([ids])).logits[0, -len(new) - 1 : -1].log_softmax(-1)
            expected = sum(float(row[i]) for row, i in zip(rows_NV, new, strict=True))
            assert loglikelihood == pytest.approx(expected, abs=1e-4)
            assert is_greedy == (rows_NV.argmax(-1).tolist() == new)
    # A continuation that is the likeliest is known to be.
    greedy = theirs(reference, "w5 w8 w11", 2)
    [(_, is_greedy)] = model.loglikelihood([Instance("loglikelihood", {}, ("w5 w8 w11", greedy), 0)])
    assert is_greedy
    asked = [(prompt, {"until": [], "max_gen_toks": NEW_TOKENS, "temperature": 0}) for prompt in PROMPTS]
    written = model.generate_until(
        [Instance("generate_until", {}, pair, number) for number, pair in enumerate(asked)]
    )
    expected_texts = [theirs(reference, prompt) for prompt in PROMPTS]
    assert written == expected_texts
    chat = LocalChatCompletion(base_url=f"{served.url}/v1/chat/completions", model="small")
    turns = [chat.apply_chat_template([{"role": "user", "content": prompt}]) for prompt in PROMPTS]
    written = chat.generate_until(
        [Instance("generate_until", {}, (turn, asked[0][1]), n) for n, turn in enumerate(turns)]
    )
    assert written == expected_texts


def test_an_export_is_served_as_it_is(place: Path, served: Served, tmp_path: Path) -> None:
    with serving(tmp_path, place / "hf", "--max-new-tokens", 64, "--dtype", "float32") as of_export:
        assert of_export.complete(PROMPTS) == served.complete(PROMPTS)
        assert "hf: Hugging Face, converted for this start" in of_export.said
        assert of_export.end() == [0]


def test_two_tensor_parallel_ranks_give_the_same_and_drain_together(
    place: Path, served: Served, tmp_path: Path
) -> None:
    with serving(tmp_path, place / "base", ranks=2) as pair:
        assert pair.complete(PROMPTS) == served.complete(PROMPTS)
        drawn = {"n": 4, "temperature": 1.0, "seed": 5}
        assert pair.complete(PROMPTS[0], **drawn) == served.complete(PROMPTS[0], **drawn)
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(pair.complete, prompt, max_tokens=100, n=8) for prompt in PROMPTS[:4]]
            while httpx.get(f"{pair.url}/health", timeout=WAIT_SECONDS).json()["in_flight"] == 0:
                if any(answer.done() for answer in asked):
                    break
            assert pair.end() == [0, 0]
            assert [len(answer.result()) for answer in asked if answer.exception() is None] != []


def test_a_rank_that_dies_ends_the_server(place: Path, tmp_path: Path) -> None:
    with serving(tmp_path, place / "base", ranks=2) as pair:
        pair.ranks[1].kill()
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.post(f"{pair.url}/v1/completions", json={"prompt": "w5"}, timeout=WAIT_SECONDS)
            assert answer.status_code in (500, 503)
        assert pair.wait()[0] == 1
        assert "error: the engine has failed; start the server again" in pair.said


def test_deepy_starts_it_on_several_ranks(place: Path, served: Served, tmp_path: Path) -> None:
    process = start(
        tmp_path, "deepy.py", Path(__file__).parents[3] / "tools" / "serve.py", "--cpu-ranks", 2, "--",
        place / "base", "--port", 0,
    )  # fmt: skip
    try:
        url = url_of(tmp_path / "err.txt", [process])
        assert Served(url, [process], tmp_path).complete(PROMPTS[:1]) == served.complete(PROMPTS[:1])
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("options", "message"), [
    (["--host", "0.0.0.0"], "other machines could ask without a key"),
    (["--host", "no.such.host.invalid"], "is no address"),
    (["--port", "99999"], "--port=99999: must be from 0 to 65535"),
    (["--max-context-tokens", "129"], "the model has 128 positions"),
    (["--max-cache-tokens", "100"], "is less than one context of 128 tokens"),
    (["--max-batch-sequences", "0"], "--max-batch-sequences=0: must be at least 1"),
    (["--api-key-file", "nowhere"], "--api-key-file=nowhere: cannot be read"),
    (["--name", "a", "--name", "a"], "must be different printable texts"),
    (["--iteration", "7"], "iteration=7: "),
])  # fmt: skip
def test_a_wrong_option_is_refused(place: Path, tmp_path: Path, options: list[str], message: str) -> None:
    done = run(tmp_path, "tools/serve.py", place / "base", "--port", 0, *options)
    assert done.status == 2, done.err
    assert [message in line for line in done.errors] == [True], done.err


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path / "out", "tools/serve.py", tmp_path, "--port", 0)
    assert done.status == 2
    assert "no checkpoint there" in done.err


def test_a_port_that_is_taken_is_refused_before_the_model_is_read(served: Served, tmp_path: Path) -> None:
    done = run(tmp_path, "tools/serve.py", tmp_path, "--port", served.url.rpartition(":")[2])
    assert done.status == 2
    assert "choose another port, or end what listens there" in done.err
