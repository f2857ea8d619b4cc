# SPDX-License-Identifier: Apache-2.0
"""The native model against lm-eval's own `hf` on the exported checkpoint: the same numbers, the same text.

Measured in float32: log-likelihoods of up to 70 tokens at most 1.5e-5 apart at TP 1 and 2.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from megatron.neox_arguments.errors import UserError
from tests.llamas import save_hf_llama
from tests.ranks import run_ranks
from tests.smollm2 import smollm2_folder

CONTEXT = 64
BAR = 1e-4

# A kind of request, and what lm-eval's instance has as its arguments
Asked = list[tuple[str, tuple[Any, ...]]]


def words(random: Random, count: int) -> str:
    return " ".join(f"w{random.randrange(2, 256)}" for _ in range(count))


def some_requests() -> Asked:
    """Long and short, with blanks at the seam, without context, begun by hand, beyond the context."""
    random = Random(0)
    seams = [("", " "), (" ", ""), ("  ", " ")]
    asked: Asked = []
    for n in range(12):
        before, after = seams[n % 3]
        context = words(random, random.randrange(1, 80)) + before
        asked.append(("loglikelihood", (context, after + words(random, n % 7 + 1))))
    question = words(random, 9)
    asked += [("loglikelihood", (question, f" w{answer}")) for answer in range(2, 6)]
    asked += [("loglikelihood", pair) for pair in (("", "w4 w5"), ("<eod> w4", " w5"), ("", "<eod> w5"))]
    asked += [("loglikelihood_rolling", (words(random, count),)) for count in (1, 5, 63, 64, 65, 200)]
    for count in (1, 7, 30, 44, 45, 90):
        settings = {"until": ["w7", "w80 w9", "w1"], "max_gen_toks": 20}
        asked.append(("generate_until", (words(random, count), settings)))
    asked.append(("generate_until", ("<eod> w3", {"until": [], "max_gen_toks": 30})))
    asked.append(("generate_until", ("w3", {"until": "w2", "do_sample": False, "max_new_tokens": 9})))
    return asked


REQUESTS = some_requests()


def instances(asked: Asked, kind: str) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, arguments, 0) for of_kind, arguments in asked if of_kind == kind]


def answers(lm: Any, asked: Asked) -> dict[str, list[Any]]:
    """What a model of lm-eval answers to each kind."""
    kinds = dict.fromkeys(kind for kind, _ in asked)
    return {kind: getattr(lm, kind)(instances(asked, kind), disable_tqdm=True) for kind in kinds}


def native_answers(
    checkpoint: Path, ranks: int, asked: Asked, settings: dict[str, Any]
) -> dict[str, list[Any]] | None:
    """Called on every rank; lm-eval's side is on the first."""
    from eval_tasks.models.native import NativeLM
    from megatron.backend import initialize
    from megatron.checkpointing.inference import open_model
    from megatron.neox_arguments.config import ParallelConfig

    backend = initialize(ParallelConfig(model_parallel_size=ranks), seed=1)
    lm = NativeLM(open_model(checkpoint, backend), batch_size=4, **settings)
    if not lm.is_first:
        lm.follow()
        return None
    with lm:
        return answers(lm, asked)


def give_beginning(folder: Path) -> None:
    """A tokenizer that begins each text with w255, as Llama's begins it with <s>."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "w255"})
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="w255 $A", special_tokens=[("w255", 255)])
    tokenizer.save_pretrained(folder)


KINDS = ["no beginning", "beginning of sequence"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Of each kind a checkpoint, and its export."""
    return {kind: make_folders(tmp_path_factory.mktemp("native"), kind) for kind in KINDS}


def make_folders(folder: Path, kind: str) -> tuple[Path, Path]:
    """Weights are large: the likeliest ids lie apart."""
    from megatron.checkpointing.convert import hf_to_neox, neox_to_hf

    keys: dict[str, Any] = {
        "initializer_range": 0.2,
        "max_position_embeddings": CONTEXT,
        "num_hidden_layers": 2,
    }
    save_hf_llama(folder / "base", **keys)
    if kind == "beginning of sequence":
        give_beginning(folder / "base")
    hf_to_neox(folder / "base", folder / "neox", 1)
    neox_to_hf(folder / "neox", folder / "hf")
    return folder / "neox", folder / "hf"


def of_hf(hf: Path, asked: Asked, **settings: Any) -> dict[str, list[Any]]:
    from lm_eval.models.huggingface import HFLM

    # With its cache of logits lm-eval 0.4.13 scores a continuation by the wrong row where two texts that are
    # the same but for the last token are cut into context and continuation at different places.
    lm = HFLM(str(hf), device="cpu", dtype="float32", batch_size=1, logits_cache=False, **settings)
    return answers(lm, asked)


def assert_equal(ours: dict[str, list[Any]], theirs: dict[str, list[Any]]) -> None:
    assert ours.keys() == theirs.keys()
    gaps = [abs(a[0] - b[0]) for a, b in zip(ours["loglikelihood"], theirs["loglikelihood"], strict=True)] + [
        abs(a - b)
        for a, b in zip(ours["loglikelihood_rolling"], theirs["loglikelihood_rolling"], strict=True)
    ]
    print(f"{max(gaps):.1e}")
    assert max(gaps) < BAR
    assert [greedy for _, greedy in ours["loglikelihood"]] == [
        greedy for _, greedy in theirs["loglikelihood"]
    ]
    assert ours["generate_until"] == theirs["generate_until"]


@pytest.mark.parametrize(("kind", "ranks"), [(KINDS[0], 1), (KINDS[1], 1), (KINDS[1], 2)])
def test_answers_are_those_of_hf_on_the_export(
    folders: dict[str, tuple[Path, Path]], kind: str, ranks: int
) -> None:
    checkpoint, hf = folders[kind]
    ours = run_ranks(native_answers, ranks, checkpoint, ranks, REQUESTS, {})
    assert ours[1:] == [None] * (ranks - 1)
    theirs = of_hf(hf, REQUESTS)
    assert_equal(ours[0], theirs)
    assert any(len(text.split()) < 20 for text in theirs["generate_until"]), "some stop early"
    assert len(set(theirs["generate_until"])) > 4


@pytest.mark.parametrize("settings", [
    {"add_bos_token": True, "max_length": 40}, {"add_bos_token": False, "prefix_token_id": 9},
])  # fmt: skip
def test_settings_mean_what_they_mean_there(
    folders: dict[str, tuple[Path, Path]], settings: dict[str, Any]
) -> None:
    checkpoint, hf = folders[KINDS[1]]
    [ours] = run_ranks(native_answers, 1, checkpoint, 1, REQUESTS, settings)
    assert_equal(ours, of_hf(hf, REQUESTS, **settings))


@pytest.fixture(scope="module")
def lm(folders: dict[str, tuple[Path, Path]]) -> Any:
    from eval_tasks.models.native import NativeLM
    from megatron.backend import initialize, shut_down
    from megatron.checkpointing.inference import open_model
    from megatron.neox_arguments.config import ParallelConfig

    with NativeLM(open_model(folders[KINDS[0]][0], initialize(ParallelConfig(), seed=1))) as lm:
        yield lm
    shut_down()


def draw(lm: Any, count: int, **settings: Any) -> list[str]:
    asked: Asked = [
        ("generate_until", ("w3 w4", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8, **settings}))
    ] * count
    texts: list[str] = lm.generate_until(instances(asked, "generate_until"))
    return texts


def test_draws_follow_from_their_seeds(lm: Any) -> None:
    assert len(set(draw(lm, 6))) > 3, "samples of one prompt differ"
    assert draw(lm, 6) == draw(lm, 6)
    assert draw(lm, 3, seed=4) == draw(lm, 1, seed=4) * 3
    assert draw(lm, 2, seed=4) != draw(lm, 2, seed=5)
    greedy = draw(lm, 1, do_sample=False)
    assert draw(lm, 1, top_k=1) == greedy == draw(lm, 1, top_p=1e-6)


def test_texts_come_as_they_are_ready(lm: Any) -> None:
    lengths = [9, 2, 5]
    asked: Asked = [
        ("generate_until", ("w3 w9", {"until": [], "max_gen_toks": length})) for length in lengths
    ]
    found = list(lm.generate(instances(asked, "generate_until")))
    assert [generated.place for generated in found] == [1, 2, 0]
    assert all(len(generated.ids) <= lengths[generated.place] for generated in found)
    assert lm.generate_until(instances(asked, "generate_until"))[2] == found[1].text


@pytest.mark.parametrize(("settings", "message"), [
    ({"repetition_penalty": 1.3}, "generation_kwargs: repetition_penalty means nothing to this engine"),
    ({"max_gen_toks": CONTEXT}, f"max_gen_toks={CONTEXT}: leaves no room for a context"),
])  # fmt: skip
def test_what_has_no_meaning_is_refused(lm: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        draw(lm, 1, **settings)
    assert message in str(refused.value)


def test_a_continuation_beyond_the_context_is_refused(lm: Any) -> None:
    asked: Asked = [("loglikelihood", ("w3", " " + words(Random(0), CONTEXT + 1)))]
    with pytest.raises(UserError, match=f"max_length={CONTEXT}: a continuation has 65 tokens"):
        lm.loglikelihood(instances(asked, "loglikelihood"))


TEXT = r"""Let $G$ be a group of order $p^2$, where $p$ is prime. Then its centre is not trivial, so that
$G/Z(G)$ is cyclic and $G$ is abelian. \begin{proof} The class equation says"""


@pytest.mark.slow
def test_a_real_model_answers_as_with_hf(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """SmolLM2-135M: log-likelihoods, and greedy text of a proof, whose likeliest ids lie as they lie."""
    from megatron.checkpointing.convert import hf_to_neox

    hf = smollm2_folder(tmp_path_factory)
    hf_to_neox(hf, tmp_path / "neox", 1)
    asked: Asked = [
        ("loglikelihood", (TEXT[:60], TEXT[60:])),
        ("loglikelihood", ("The derivative of x^2 is", " 2x")),
        ("loglikelihood", ("", "Every finite group of prime order is cyclic.")),
        ("loglikelihood_rolling", (TEXT,)),
        ("generate_until", (TEXT, {"until": [r"\end{proof}"], "max_gen_toks": 24})),
        ("generate_until", ("Question: What is 7 + 5?\nAnswer:", {"until": ["\n\n"], "max_gen_toks": 16})),
    ]
    [ours] = run_ranks(native_answers, 1, tmp_path / "neox", 1, asked, {})
    # torch's float32 softmax of 49,152 logits is 9e-6 off a token: sums of hf are 4e-4 off by themselves.
    assert_equal(ours, of_hf(hf, asked, softmax_dtype="float64"))
