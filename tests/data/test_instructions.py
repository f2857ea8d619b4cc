# SPDX-License-Identifier: Apache-2.0
"""Examples with answers: which ids are learnt, and that training reads the mask beside the right tokens."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron.data.chat_template import PLAIN_TEMPLATE
from megatron.data.instructions import (
    MASK_SUFFIX,
    Conversation,
    Form,
    Piece,
    PromptAndAnswer,
    encode_pieces,
    tokenize_instructions,
)
from megatron.data.readers import Broken, Corpus, Fields
from megatron.data.token_file import TokenFile
from megatron.data.tokenize_corpus import TokenizerSpec, Wish
from megatron.neox_arguments.errors import UserError
from megatron.tokenizer import build_tokenizer
from tests.data.corpora import train_sentencepiece
from tests.runs import run


def sentencepiece_model(folder: Path) -> Path:
    path = folder / "tokenizer.model"
    return path if path.exists() else train_sentencepiece(folder, vocab_size=500)


class Characters:
    """A tokenizer whose ids are pairs of characters, so that borders fall inside ids."""

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        begins = range(0, len(text), 2)
        places = [(begin, min(begin + 2, len(text))) for begin in begins]
        return [hash(text[begin : begin + 2]) % 1000 for begin in begins], places


def learnt(pieces: list[Piece]) -> str:
    """The text that is learnt, by pairs of characters."""
    text = "".join(piece.text for piece in pieces)
    ids, mask = encode_pieces(Characters(), pieces)  # type: ignore[arg-type]
    assert len(ids) == len(mask) == (len(text) + 1) // 2
    return "".join(text[2 * i : 2 * i + 2] for i in range(len(ids)) if mask[i])


def test_an_id_across_the_border_is_learnt() -> None:
    assert learnt([Piece("abcd", False), Piece("efgh", True)]) == "efgh"
    assert learnt([Piece("abc", False), Piece("defgh", True)]) == "cdefgh"
    assert learnt([Piece("", False), Piece("ab", True)]) == "ab"
    assert learnt([Piece("ab", False), Piece("", True)]) == ""
    turns = [Piece("ab", False), Piece("cd", True), Piece("ef", False), Piece("gh", True)]
    assert learnt(turns) == "cdgh"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=6), st.booleans()), max_size=6))
def test_answers_are_always_learnt_and_masks_fit(drawn: list[tuple[str, bool]]) -> None:
    pieces = [Piece(text, is_answer) for text, is_answer in drawn]
    ids, mask = encode_pieces(Characters(), pieces)  # type: ignore[arg-type]
    assert ids.tolist() == Characters().encode_with_places("".join(text for text, _ in drawn))[0]
    if all(is_answer for _, is_answer in drawn):
        assert mask.all()
    if not any(is_answer for _, is_answer in drawn):
        assert not mask.any()


def byte_level_tokenizer(folder: Path) -> Path:
    """As GPT-2, Llama 3, Qwen and SmolLM2 have it: `\\n\\n` is two ids before a word and one at the end."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["First answer.\n\n", "Second answer.\n\n"] * 9, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    return folder


def decoded_answer(kind: str, file: Path, pieces: list[Piece]) -> str:
    """The learnt ids as text."""
    tokenizer = build_tokenizer(kind, file)
    ids, mask = encode_pieces(tokenizer, pieces)
    assert ids.tolist() == tokenizer.encode("".join(piece.text for piece in pieces))
    return tokenizer.decode([int(i) for i, learnt in zip(ids, mask, strict=True) if learnt])


@pytest.mark.parametrize("kind", ["HFTokenizer", "SPMTokenizer"])
def test_the_end_of_every_answer_is_learnt(tmp_path: Path, kind: str) -> None:
    """Ids differ where a text ends: each turn's end is learnt all the same, and nothing of the user's."""
    file = byte_level_tokenizer(tmp_path) if kind == "HFTokenizer" else sentencepiece_model(tmp_path)
    said = [
        "user",
        "one?",
        "First answer.",
        "two?",
        "Second answer.",
        "\U0001f600 three?",
        "naïve \U0001f600",
    ]
    roles = ["system", *["user", "assistant"] * 3]
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
    pieces = Conversation("m").pieces(Fields({"m": messages}, "f:1"))
    assert not isinstance(pieces, Broken)
    answers = "First answer.\n\nSecond answer.\n\nnaïve \U0001f600\n\n"
    assert decoded_answer(kind, file, pieces) == answers
    if kind == "HFTokenizer":  # or the test would show nothing
        tokenizer = build_tokenizer(kind, file)
        assert tokenizer.encode("\n\n")[0] != tokenizer.encode("\n\n#")[0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["HFTokenizer", "SPMTokenizer"]),
    st.text("ab \n.\u00ef\u6f22\U0001f600", max_size=8),
    st.text("ab \n.\u00ef\u6f22\U0001f600", min_size=1, max_size=8),
)
def test_no_character_of_an_answer_is_left_out(tmp_path: Path, kind: str, prompt: str, answer: str) -> None:
    """Of every tokenizer: the learnt ids hold the answer, and all that is before the first is prompt."""
    name = "tokenizer.json" if kind == "HFTokenizer" else "tokenizer.model"
    if not (tmp_path / name).exists():
        _ = byte_level_tokenizer(tmp_path) if kind == "HFTokenizer" else sentencepiece_model(tmp_path)
    learnt_text = decoded_answer(kind, tmp_path / name, [Piece(prompt, False), Piece(answer, True)])
    if kind == "HFTokenizer":  # sentencepiece leaves spaces at the beginning out when it decodes
        assert learnt_text.endswith(answer)
    assert learnt_text.strip().endswith(answer.strip())


def test_conversations_are_written_as_transformers_writes_them() -> None:
    """The template's text is that of transformers, for the whole and for what comes before each answer."""
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "thanks"},
    ]
    pieces = Conversation("m").pieces(Fields({"m": messages}, "f:1"))
    assert not isinstance(pieces, Broken)
    [[whole], _] = render_jinja_template([messages[:5]], chat_template=PLAIN_TEMPLATE)
    assert "".join(piece.text for piece in pieces) == whole
    [[before], _] = render_jinja_template(
        [messages[:2]], chat_template=PLAIN_TEMPLATE, add_generation_prompt=True
    )
    assert pieces[0].text == before
    assert [piece.text for piece in pieces if piece.is_answer] == ["2\n\n", "4\n\n"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("hello", "is not a list of messages but a str"),
        ([{"role": "user"}], "has no role and content in message 1"),
        ([{"role": "user", "content": "x"}], "has no message of the role assistant"),
        (None, "is not a list of messages but a NoneType"),
    ],
)
def test_what_is_no_conversation_is_told(value: Any, reason: str) -> None:
    found = Conversation("m").pieces(Fields({"m": value}, "f:3"))
    assert isinstance(found, Broken)
    assert found.where == "f:3"
    assert reason in found.reason


def test_a_template_that_rewrites_the_past_is_refused() -> None:
    fickle = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    found = Conversation("m", fickle).pieces(Fields({"m": messages}, "f:1"))
    assert isinstance(found, Broken)
    assert "changes what the template writes before it" in found.reason
    with pytest.raises(UserError, match="--chat-template"):
        Conversation("m", "{% for %}")


@pytest.mark.parametrize(
    ("messages", "learnt"),
    [
        ([("user", "hi"), ("assistant", "")], []),
        ([("user", "hi"), ("assistant", " \n"), ("user", "?"), ("assistant", "b")], ["b\n\n"]),
    ],
)
def test_a_turn_without_a_word_is_no_answer(messages: list[tuple[str, str]], learnt: list[str]) -> None:
    pieces = Conversation("m").pieces(
        Fields({"m": [{"role": role, "content": content} for role, content in messages]}, "f:1")
    )
    assert not isinstance(pieces, Broken)
    assert [piece.text for piece in pieces if piece.is_answer] == learnt


def test_a_long_conversation_is_encoded_once() -> None:
    """Not once a turn, which takes the square of its length."""

    class Counting(Characters):
        calls = 0

        def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
            self.calls += 1
            return super().encode_with_places(text)

    tokenizer = Counting()
    pieces = [Piece("word ", number % 2 == 1) for number in range(3000)]
    _, mask = encode_pieces(tokenizer, pieces)  # type: ignore[arg-type]
    assert tokenizer.calls == 1
    # Of ten characters five are an answer, and the pair across their beginning counts as one.
    assert mask.sum() == 1500 * 3


EXAMPLES = [{"q": f"What is {n} + {n}?\n", "a": f"It is {2 * n}."} for n in range(40)]


def tokenised(folder: Path, form: Form, lines: list[Any], **changes: Any) -> Path:
    (folder / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    spec = TokenizerSpec("SPMTokenizer", sentencepiece_model(folder))
    wish = Wish(spec, **{"append_eod": True, **changes})
    tokenize_instructions(Corpus([folder / "x.jsonl"]), folder / "out", form, wish)
    return folder / "out"


def test_ids_are_sentencepieces_and_the_mask_covers_the_answer(tmp_path: Path) -> None:
    import sentencepiece

    prefix = tokenised(tmp_path, PromptAndAnswer("q", "a"), EXAMPLES)
    library = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model(tmp_path)))
    file, mask = TokenFile.open(prefix), TokenFile.open(Path(f"{prefix}{MASK_SUFFIX}"))
    assert file.sidecar is not None
    assert file.sidecar.loss_mask == mask.prefix.name
    for number, example in enumerate(EXAMPLES):
        ids, kept = file.document(number).tolist(), mask.document(number).tolist()
        assert ids == [*library.encode(example["q"] + example["a"]), library.eos_id()]
        assert example["a"].strip() in library.decode([i for i, keep in zip(ids, kept, strict=True) if keep])
        assert not any(kept[: len(library.encode(example["q"])) - 1])
        assert kept[-1] == 1


def test_examples_without_an_answer_and_broken_ones_are_counted(tmp_path: Path) -> None:
    lines = [EXAMPLES[0], {"q": "only"}, {"q": "x", "a": ""}, {"q": "x", "a": " "}, {"q": 3, "a": "x"}]
    with pytest.raises(UserError, match="has no 'a'"):
        tokenised(tmp_path, PromptAndAnswer("q", "a"), lines)
    assert not (tmp_path / "out.bin").exists()
    prefix = tokenised(tmp_path, PromptAndAnswer("q", "a"), lines, skip_broken=True)
    sidecar = TokenFile.open(prefix).sidecar
    assert sidecar is not None
    assert (sidecar.documents, sidecar.empty_documents, sidecar.broken_lines) == (1, 2, 2)


def test_the_tool_refuses_what_does_not_go_together(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"q": "a", "a": "b"}\n')
    common = [
        "tools/preprocess_data.py", "--input", tmp_path / "x.jsonl", "--output-prefix", tmp_path / "p",
        "--tokenizer-type", "SPMTokenizer", "--vocab-file", sentencepiece_model(tmp_path), "--append-eod",
    ]  # fmt: skip
    for more, named in (
        (["--chat-key", "m", "--prompt-key", "q"], "--chat-key m"),
        (["--chat-template", "t.jinja"], "--chat-template t.jinja"),
        (["--chat-key", "m", "--chat-template", tmp_path / "no.jinja"], "no.jinja"),
        (["--prompt-key", "q", "--share", "0/2"], "--share"),
    ):
        done = run(tmp_path, *common, *more)
        assert done.status == 2, done.err
        assert named in done.err
        assert "Traceback" not in done.err


def test_a_mask_of_other_data_is_refused(tmp_path: Path) -> None:
    from megatron.data.sources import Source

    prefix = tokenised(tmp_path, PromptAndAnswer("q", "a"), EXAMPLES)
    other = tmp_path / "other"
    other.mkdir()
    wrong = tokenised(other, PromptAndAnswer("q", "a"), EXAMPLES[:3])
    assert Source.whole("x", TokenFile.open(prefix)).loss_mask is not None
    for suffix in (".bin", ".idx", ".json"):
        Path(f"{wrong}{MASK_SUFFIX}{suffix}").replace(f"{prefix}{MASK_SUFFIX}{suffix}")
    with pytest.raises(UserError, match="other lengths"):
        _ = Source.whole("x", TokenFile.open(prefix)).loss_mask
    for suffix in (".bin", ".idx", ".json"):
        Path(f"{prefix}{MASK_SUFFIX}{suffix}").unlink()
    with pytest.raises(UserError, match="does not exist"):
        _ = Source.whole("x", TokenFile.open(prefix)).loss_mask


def test_a_mask_of_other_answers_is_refused_though_it_has_the_same_lengths(tmp_path: Path) -> None:
    """Prompt and answer differ in where one ends and the other begins, and in nothing else."""
    from megatron.data.sources import Source

    prefix = tokenised(tmp_path, PromptAndAnswer("q", "a"), [{"q": "a b c", "a": " d e"}])
    (tmp_path / "other").mkdir()
    wrong = tokenised(tmp_path / "other", PromptAndAnswer("q", "a"), [{"q": "a b", "a": " c d e"}])
    for suffix in (".bin", ".idx", ".json"):
        Path(f"{wrong}{MASK_SUFFIX}{suffix}").replace(f"{prefix}{MASK_SUFFIX}{suffix}")
    with pytest.raises(UserError, match="is not the loss mask that was written with"):
        _ = Source.whole("x", TokenFile.open(prefix)).loss_mask


def pair_at(prefix: Path) -> list[list[int]] | None:
    """Ids and mask of the first document, as training reads them; None where neither is there."""
    from megatron.data.sources import Source

    if not any(Path(f"{prefix}{end}").exists() for end in (".commit", ".bin", f"{MASK_SUFFIX}.bin")):
        return None
    file = TokenFile.open(prefix)
    mask = Source.whole("x", file).loss_mask
    assert mask is not None
    return [file.document(0).tolist(), mask.document(0).tolist()]


def killed_at(calls: int, folder: Path, lines: list[Any]) -> bool:
    """Tokenise in a process of its own that is killed before a rename or removal; whether it was."""
    child = os.fork()
    if child:
        return os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 9
    left = itertools.count(calls, -1)
    for name in ("replace", "unlink"):
        real = getattr(os, name)
        setattr(os, name, lambda *given, call=real: call(*given) if next(left) else os._exit(9))
    try:
        tokenised(folder, PromptAndAnswer("q", "a"), lines, overwrite=True)
        os._exit(0)
    finally:
        os._exit(1)


def kills_at_every_call(folder: Path) -> None:
    """Each kill leaves the former pair or the new one, and the same command goes on from there."""
    old, new = [{"q": "a b c", "a": " d e"}], [{"q": "a b", "a": " c d e"}]
    form = PromptAndAnswer("q", "a")
    pair = {id(lines): pair_at(tokenised(folder, form, lines, overwrite=True)) for lines in (old, new)}
    assert pair[id(old)][0] == pair[id(new)][0]  # type: ignore[index]
    for is_first_time, calls in itertools.product((True, False), range(14)):
        for path in folder.glob("out*"):
            path.unlink()
        if not is_first_time:
            tokenised(folder, form, old)
        was_killed = killed_at(calls, folder, new)
        former = None if is_first_time else pair[id(old)]
        assert pair_at(folder / "out") in ([former, pair[id(new)]] if was_killed else [pair[id(new)]])
        tokenised(folder, form, new, overwrite=not is_first_time)
        assert pair_at(folder / "out") == pair[id(new)]
        left = [path.name for path in folder.glob("*out*") if path.suffix != ".lock"]
        assert len(left) == 6, left
        print(is_first_time, calls, was_killed)


def test_a_kill_leaves_ids_and_mask_of_one_kind(tmp_path: Path) -> None:
    """In a process of its own, because it forks."""
    sentencepiece_model(tmp_path)
    code = "import pathlib, sys; from tests.data.test_instructions import kills_at_every_call\n"
    code += "kills_at_every_call(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    for is_first_time in (True, False):
        kills = [line for line in done.stdout.splitlines() if line.startswith(f"{is_first_time} ")]
        assert kills[0].endswith("True")
        assert len([line for line in kills if line.endswith("True")]) >= 10


def test_a_finished_job_that_is_started_again_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = tokenised(tmp_path, PromptAndAnswer("q", "a"), EXAMPLES)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("out*")}
    tokenised(tmp_path, PromptAndAnswer("q", "a"), EXAMPLES)
    assert "nothing to do" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("out*")} == before
    for form, lines in ((PromptAndAnswer("a", "q"), EXAMPLES), (PromptAndAnswer("q", "a"), EXAMPLES[:3])):
        with pytest.raises(UserError, match="exists; pass --overwrite"):
            tokenised(tmp_path, form, lines)
    Path(f"{prefix}{MASK_SUFFIX}.json").unlink()
    with pytest.raises(UserError, match="exists; pass --overwrite"):
        tokenised(tmp_path, PromptAndAnswer("q", "a"), EXAMPLES)


def test_an_archive_that_is_cut_off_is_named_and_its_whole_examples_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(json.dumps(line) + "\n" for line in EXAMPLES).encode()
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines)[:-40])
    spec = TokenizerSpec("SPMTokenizer", sentencepiece_model(tmp_path))
    corpus, form = [tmp_path / "x.jsonl.gz"], PromptAndAnswer("q", "a")
    with pytest.raises(UserError, match=r"x\.jsonl\.gz:\d+: is gzip data that is cut off"):
        tokenize_instructions(Corpus(corpus), tmp_path / "out", form, Wish(spec, append_eod=True))
    wish = Wish(spec, append_eod=True, skip_broken=True)
    sidecar = tokenize_instructions(Corpus(corpus), tmp_path / "out", form, wish)
    assert "x.jsonl.gz:" in capsys.readouterr().err
    assert (0 < sidecar.documents < len(EXAMPLES), sidecar.broken_lines) == (True, 1)
    (tmp_path / "x.txt").write_text("text")
    with pytest.raises(UserError, match=r"are read from \.jsonl"):
        tokenize_instructions(Corpus([tmp_path / "x.txt"]), tmp_path / "o", form, wish)


def test_sequences_carry_the_mask_of_their_tokens(tmp_path: Path) -> None:
    """Every sequence, against the mask looked up by the text around it."""
    from megatron.data.index_cache import IndexCache, Peers
    from megatron.data.mcore_datasets import Packing, SequenceOrder
    from megatron.data.sources import Source

    prefix = tokenised(tmp_path, PromptAndAnswer("q", "a"), EXAMPLES)
    file = TokenFile.open(prefix)
    mask = TokenFile.open(Path(f"{prefix}{MASK_SUFFIX}"))
    ids = [file.document(n).tolist() for n in range(file.documents)]
    kept = [mask.document(n).tolist() for n in range(file.documents)]
    source = Source.whole("x", file)
    length = 64
    assert file.sidecar is not None
    packing = Packing(length, 1234, file.sidecar.tokenizer.vocab_size, file.sidecar.tokenizer.eod_id, False)
    order = SequenceOrder([source], [1.0], source.sequences(length), packing, IndexCache(None, Peers()))
    # A document is found again by its ids: all of them differ.
    pairs = {tuple(i): k for i, k in zip(ids, kept, strict=True)}
    checked = 0
    for position in range(len(order)):
        sample = order[position]
        tokens = [*sample.tokens_S.tolist(), int(sample.labels_S[-1])]
        ends = [i for i, token in enumerate(tokens) if token == packing.eod_id]
        for begin, end in itertools.pairwise(ends):
            expected = pairs[tuple(tokens[begin + 1 : end + 1])]
            assert sample.loss_mask_S[begin:end].tolist() == [float(k) for k in expected]
            checked += 1
    assert checked > 10
    assert np.isin(order[0].loss_mask_S.numpy(), (0, 1)).all()
