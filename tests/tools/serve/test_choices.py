# SPDX-License-Identifier: Apache-2.0
"""Tokens become texts: names of tokens, numbers that JSON has not, and texts cut where they end."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.text_generation.requests import NewToken, PromptToken
from megatron.text_generation.text import TextStream
from tests.tools.serve.servers import EOD, ByteTokenizer
from tools.serve_parts.choices import LEAST_LOGPROB, Choice, Spelt, TokenTexts


def test_what_cannot_be_has_a_number_that_json_has() -> None:
    spelt = TokenTexts(ByteTokenizer()).spell(97, -math.inf, ((98, -0.5), (99, -math.inf)))
    assert spelt.logprob == LEAST_LOGPROB
    assert dict(spelt.top) == {"b": -0.5, "c": LEAST_LOGPROB, "a": LEAST_LOGPROB}


def test_tokens_of_one_text_are_told_apart() -> None:
    class Twice(ByteTokenizer):
        """Ids beyond 256 read as the bytes of a lower one."""

        def decode(self, ids: object) -> str:
            return super().decode([i - 300 if i >= 300 else i for i in ids])  # type: ignore[attr-defined]

    spelt = TokenTexts(Twice()).spell(397, -2.0, ((97, -1.0), (240, -3.0), (EOD, -4.0)))
    assert spelt.text == "a"
    assert spelt.top == (("a", -1.0), ("token_id:397", -2.0), ("token_id:240", -3.0), ("token_id:256", -4.0))


@pytest.mark.parametrize(("ids", "names", "offsets"), [
    ([0xE2, ord("t"), ord("h")], ["token_id:226", "t", "h"], [0, 1, 2]),
    ([ord("a"), 0xE2, 0x80, 0x94, ord("b")], ["a", "token_id:226", "token_id:128", "token_id:148", "b"],
     [0, 1, 1, 1, 2]),
    ([ord("a"), 0xE2, 0x80, ord("b")], ["a", "token_id:226", "token_id:128", "b"], [0, 1, 1, 2]),
    ([0xE2, 0xE2, ord("b")], ["token_id:226", "token_id:226", "b"], [0, 0, 2]),
])  # fmt: skip
def test_a_token_begins_where_its_text_does(ids: list[int], names: list[str], offsets: list[int]) -> None:
    tokenizer = ByteTokenizer()
    text = tokenizer.decode(ids)
    prompt = tuple(PromptToken(one, -1.0, ()) for one in ids)
    choice = Choice(0, TextStream(tokenizer, ids), TokenTexts(tokenizer), TextStream(tokenizer, ()), 0, text)
    piece = choice.take(NewToken(0, -1, 0.0, (), "length", prompt))
    assert piece is not None
    assert piece.text == text
    assert [spelt.text for spelt in piece.tokens] == names
    assert [spelt.offset for spelt in piece.tokens] == offsets
    for spelt in piece.tokens:
        assert spelt.text.startswith("token_id:") or text[spelt.offset :].startswith(spelt.text)


@given(
    st.text(max_size=40),
    st.lists(st.text(min_size=1, max_size=3), max_size=3),
    st.text(max_size=5),
    st.booleans(),
)
def test_pieces_add_up_to_the_text_before_the_first_stop(
    answer: str, stops: list[str], echo: str, is_ended: bool
) -> None:
    """Against str.find over each beginning: the stop string that is complete first ends the text."""
    tokenizer = ByteTokenizer()
    prompt = tokenizer.encode(echo or "x")
    choice = Choice(
        0,
        TextStream(tokenizer, prompt, stops),
        TokenTexts(tokenizer),
        TextStream(tokenizer, () if echo else prompt),
        1,
        echo,
    )
    ids = tokenizer.encode(answer) + ([EOD] if is_ended else [])
    texts: list[str] = []
    names: list[Spelt] = []
    offsets: list[int] = []
    for place, token_id in enumerate(ids or [EOD]):
        is_last = place >= len(ids) - 1
        reason = ("stop" if token_id == EOD else "length") if is_last else None
        piece = choice.take(NewToken(0, token_id, -1.0, (), reason))  # type: ignore[arg-type]
        if piece is not None:
            texts.append(piece.text)
            names += piece.tokens
            offsets += [spelt.offset for spelt in piece.tokens]
        if choice.finish_reason is not None:
            break
    ends: list[int] = []
    for length in range(1, len(answer) + 1):
        ends = ends or [place for stop in stops if (place := answer[:length].find(stop)) >= 0]
    assert "".join(texts) == choice.text == echo + answer[: min(ends, default=len(answer))]
    assert choice.finish_reason == ("stop" if ends or is_ended or not ids else "length")
    assert offsets == sorted(offsets)
    assert all(offset <= len(choice.text) for offset in offsets)
    if ends:
        assert all(offset < len(choice.text) for offset in offsets), "tokens of the stop string are left out"
    else:
        assert len(names) == len(ids or [EOD])
