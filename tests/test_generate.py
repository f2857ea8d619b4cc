# SPDX-License-Identifier: Apache-2.0
"""generate.py against two others: the model read without a cache, and transformers on the exported model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.runs import Done, Place, call_on_ranks, make_place, run, run_on_ranks

PROMPTS = ("w5 w8 w11 w14", "w200", "w7 w7 w7 w100 w3 w2 w99 w31 w64")
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with a run of two data parallel ranks in `run/save`, exported to `run/hf`."""
    place = make_place(tmp_path_factory.mktemp("place"))
    folder = place.folder / "run"
    assert place.train(folder).status == 0
    done = run(
        folder,
        "tools/convert_checkpoint.py",
        "neox-to-hf",
        "--input",
        folder / "save",
        "--output",
        folder / "hf",
    )
    assert done.status == 0, done.err
    return place


def generate(place: Place, *options: object, prompts: tuple[str, ...] = PROMPTS, **more: Any) -> Done:
    done = run(place.folder / "generated", *arguments(place, *options, prompts=prompts), **more)
    assert done.status == 0, done.err
    return done


def arguments(place: Place, *options: object, prompts: tuple[str, ...] = PROMPTS) -> list[object]:
    asked = [part for prompt in prompts for part in ("--prompt", prompt)]
    return [
        "generate.py", place.folder / "run" / "save", *asked, "--max-new-tokens", NEW_TOKENS, *options,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def greedy(place: Place) -> list[str]:
    """What generate.py writes, in an interpreter of its own; one text a prompt."""
    done = generate(place, is_cold=True)
    assert "rotary base 10,000, as in the checkpoint" in done.err
    texts = done.out.splitlines()
    assert [text.startswith(prompt) for text, prompt in zip(texts, PROMPTS, strict=True)] == [True] * 3
    return texts


def without_cache(checkpoint: str, prompts: list[list[int]]) -> list[list[int]]:
    """Called on one rank: the likeliest token after the whole text so far, again and again."""
    import torch

    from megatron.backend import initialize
    from megatron.checkpointing.inference import open_model
    from megatron.neox_arguments.config import ParallelConfig

    opened = open_model(Path(checkpoint), initialize(ParallelConfig(), seed=1))
    texts = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(NEW_TOKENS):
            ids.append(int(opened.logits(torch.tensor([ids]))[0, -1].argmax()))
        texts.append(ids)
    return texts


def words(ids: list[int]) -> str:
    """What the tokenizer of tests/llamas.py makes of ids; a text ends with the first end of document."""
    ids = ids[: ids.index(0)] if 0 in ids else ids
    return " ".join("<unk>" if i == 1 else f"w{i}" for i in ids)


def ids_of(text: str) -> list[int]:
    return [1 if word == "<unk>" else int(word[1:]) for word in text.split()]


def test_greedy_text_is_that_of_the_model_without_a_cache(
    place: Place, greedy: list[str], tmp_path: Path
) -> None:
    prompts = [ids_of(prompt) for prompt in PROMPTS]
    [texts] = call_on_ranks(tmp_path, without_cache, 1, str(place.folder / "run" / "save"), prompts)
    assert greedy == [words(ids) for ids in texts]
    assert len({tuple(text.split()[-8:]) for text in greedy}) == 3, "the prompts lead to different texts"
    assert len(set(greedy[0].split())) > 4, "more than one word over and over: positions matter"


def test_greedy_text_is_that_of_transformers_on_the_export(place: Place, greedy: list[str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(place.folder / "run" / "hf", dtype=torch.float32)
    for prompt, text in zip(PROMPTS, greedy, strict=True):
        ids = torch.tensor([ids_of(prompt)])
        theirs = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        assert text == words(theirs[0].tolist())


def test_two_tensor_parallel_ranks_write_the_same(place: Place, greedy: list[str], tmp_path: Path) -> None:
    drawn = generate(place, "--temperature", 1, "--seed", 3).out
    for options, expected in (((), greedy), (("--temperature", 1, "--seed", 3), drawn.splitlines())):
        ranks = run_on_ranks(tmp_path, 2, lambda rank: arguments(place, *options))  # noqa: B023
        assert [done.status for done in ranks] == [0, 0], ranks[0].err
        assert ranks[0].out.splitlines() == expected
        assert ranks[1].out == "", "only one rank speaks"


def test_draws_follow_from_the_seed_temperature_and_top_p(place: Place, greedy: list[str]) -> None:
    def draw(*options: object) -> list[str]:
        return generate(place, *options).out.splitlines()

    first = draw("--temperature", 1, "--seed", 1)
    assert first == draw("--temperature", 1, "--seed", 1)
    assert first != draw("--temperature", 1, "--seed", 2)
    assert first != greedy
    # So little of the probability is the likeliest id alone, and so little heat too.
    assert draw("--temperature", 1, "--seed", 1, "--top-p", 1e-6) == greedy
    assert draw("--temperature", 1e-4, "--seed", 1) == greedy
    assert draw("--temperature", 1, "--seed", 1, "--top-p", 0.5) != first


def test_a_stop_text_ends_the_text_before_itself(place: Place, greedy: list[str]) -> None:
    new = greedy[0].removeprefix(PROMPTS[0]).split()
    stop = next(word for place, word in enumerate(new) if place > 2 and word not in new[:place])
    expected = f"{PROMPTS[0]} {' '.join(new[: new.index(stop)])} "
    done = generate(place, "--stop", "not a word", "--stop", stop, prompts=PROMPTS[:1])
    assert done.out == expected + "\n"
    assert f"{new.index(stop) + 1} tokens, " in done.err


def test_a_prompt_file_and_an_older_checkpoint(place: Place, greedy: list[str], tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPTS[1])
    done = generate(place, "--prompt-file", tmp_path / "prompt.txt", prompts=())
    assert done.out.splitlines() == greedy[1:2]
    older = generate(place, "--iteration", 4)
    assert older.out.splitlines() != greedy
    folder = place.folder / "run" / "save" / "global_step4"
    direct = run(tmp_path, "generate.py", folder, *arguments(place)[2:])
    assert direct.out == older.out


def test_another_rotary_base_is_said_and_changes_the_text(place: Place, greedy: list[str]) -> None:
    done = generate(place, "--rotary-base", 100)
    assert "rotary period contracted: base 10,000 in the checkpoint, 100 in this run" in done.err
    assert done.out.splitlines() != greedy


@pytest.mark.parametrize(("options", "message"), [
    (["--prompt", "w5", "--top-p", "0"], "--top-p=0.0: must be above 0 and at most 1"),
    (["--prompt", "w5", "--temperature", "-1"], "--temperature=-1.0: must be 0 or more"),
    (["--prompt", "w5", "--max-new-tokens", "0"], "--max-new-tokens=0: must be at least 1"),
    (["--prompt", "w5", "--temperature", "1", "--seed", "9" * 23], "must be of 64 bits"),
    (["--prompt", "w5", "--rotary-base", "-5"], "--rotary-base=-5.0: must be above 1"),
    (["--prompt", "w5", "--stop", ""], "--stop=['']: must be some text"),
    ([], "--prompt: is not set"),
    (["--prompt-file", "nowhere.txt"], "--prompt-file=nowhere.txt: cannot be read"),
    (["--prompt", "w5", "--iteration", "7"], "iteration=7: "),
])  # fmt: skip
def test_a_wrong_option_is_refused(place: Place, tmp_path: Path, options: list[str], message: str) -> None:
    done = run(tmp_path, "generate.py", place.folder / "run" / "save", *options)
    assert done.status == 2
    assert [message in line for line in done.errors] == [True], done.err
    assert done.out == ""
    assert "Traceback" not in done.err


def test_ranks_that_do_not_divide_the_heads_are_refused_once(place: Place, tmp_path: Path) -> None:
    ranks = run_on_ranks(tmp_path, 3, lambda rank: arguments(place))
    assert [done.status for done in ranks] == [2, 2, 2]
    assert "num_attention_heads=4: is not divisible by model_parallel_size=3" in ranks[0].err
    assert [line for done in ranks[1:] for line in done.err.splitlines() if "error" in line] == []


def test_a_folder_that_is_no_checkpoint_is_refused(place: Place, tmp_path: Path) -> None:
    for folder, message in ((tmp_path, "no checkpoint there"), (place.folder / "hf", "no checkpoint there")):
        done = run(tmp_path / "out", "generate.py", folder, "--prompt", "w5")
        assert done.status == 2
        assert message in done.err
    shutil.copytree(place.folder / "run" / "save", tmp_path / "save")
    (tmp_path / "save" / "global_step8" / "base" / "tokenizer.json").unlink()
    done = run(tmp_path / "out", "generate.py", tmp_path / "save", "--prompt", "w5")
    assert done.status == 2
    assert "has no tokenizer with fingerprint" in done.err
