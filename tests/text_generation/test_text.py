# SPDX-License-Identifier: Apache-2.0
"""Streamed text against the text of all ids decoded at once."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from megatron.text_generation.text import REPLACEMENT, TextStream


class ByteTokenizer:
    """A tokenizer of bytes, with a few tokens of several: what the byte-level ones of models come down to."""

    name, eod_id, fingerprint, files = "bytes", 0, "", ()

    def __init__(self) -> None:
        self.pieces = [bytes([i]) for i in range(256)] + [
            b" the",
            "∫".encode(),
            "é".encode()[:1] + b"",
            b"ab",
        ]
        self.vocab_size = len(self.pieces)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", errors="replace")


class PieceTokenizer(ByteTokenizer):
    """Pieces with SentencePiece's leading space, of which the first of a text loses its own; and bytes."""

    def __init__(self) -> None:
        bytes_ = [f"<0x{i:02X}>" for i in range(256)]
        words = ["▁a", "▁b", "c"]
        self._tokenizer = Tokenizer(
            models.BPE({piece: i for i, piece in enumerate(bytes_ + words)}, [], byte_fallback=True)
        )
        self._tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
        self.vocab_size = 256 + len(words)

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids))


TOKENIZERS = {"bytes": ByteTokenizer, "pieces": PieceTokenizer}
texts = st.text(alphabet=st.sampled_from("ab c∫é𝄞\n"), max_size=30)


@functools.cache
def tokenizer(name: str) -> ByteTokenizer:
    return TOKENIZERS[name]()


def stream(name: str, prompt: list[int], ids: list[int], stops: list[str]) -> tuple[list[str], TextStream]:
    made = TextStream(tokenizer(name), prompt, stops)  # type: ignore[arg-type]
    pieces = [made.feed([i]) for i in ids]
    return [*pieces, made.finish()], made


@pytest.mark.parametrize("name", TOKENIZERS)
@given(prompt=texts, text=texts, extra=st.lists(st.integers(256, 258), max_size=3), place=st.integers(0, 30))
def test_pieces_make_the_whole_text(name: str, prompt: str, text: str, extra: list[int], place: int) -> None:
    ids = tokenizer("bytes").encode(text)
    boundary = len(text[:place].encode())
    ids[boundary:boundary] = extra  # tokens of several bytes or letters, between characters
    start = tokenizer("bytes").encode(prompt)
    pieces, made = stream(name, start, ids, [])
    whole = tokenizer(name).decode(start + ids)
    assert made.text == "".join(pieces) == whole[len(tokenizer(name).decode(start)) :]
    if REPLACEMENT not in whole:
        assert not any(REPLACEMENT in piece for piece in pieces), "half a character was shown"


@pytest.mark.parametrize("name", TOKENIZERS)
@given(prompt=texts, text=texts, stops=st.lists(st.text("ab c∫\n", min_size=1, max_size=4), max_size=3))
def test_the_first_stop_text_ends_it(name: str, prompt: str, text: str, stops: list[str]) -> None:
    start, ids = (tokenizer("bytes").encode(x) for x in (prompt, text))
    pieces, made = stream(name, start, ids, stops)
    whole = tokenizer(name).decode(start + ids)[len(tokenizer(name).decode(start)) :]
    # Character by character, as the tokens come: where a stop text is first complete, the earliest wins.
    for end in range(len(whole) + 1):
        places = [whole[:end].find(stop) for stop in stops if stop in whole[:end]]
        if places:
            assert made.text == whole[: min(places)]
            assert made.stopped_by in stops
            break
    else:
        assert made.text == whole
        assert made.stopped_by is None
    assert "".join(pieces) == made.text
    assert not any(stop in made.text for stop in stops)


def test_what_may_become_a_stop_text_is_held_back() -> None:
    made = TextStream(tokenizer("bytes"), [], ["abab c"])  # type: ignore[arg-type]
    given_ = [made.feed([i]) for i in b"xabababa"]
    assert given_ == ["x", "", "", "", "", "ab", "", "ab"]
    assert "".join(given_) == "xabab"
    assert made.feed(list(b"b c and more")) == ""
    assert made.stopped_by == "abab c"
    assert made.text == "xabab"
    assert made.feed([65]) == made.finish() == ""


def test_bytes_that_are_no_text_come_out_at_the_end() -> None:
    made = TextStream(tokenizer("bytes"), [], [])  # type: ignore[arg-type]
    assert [made.feed([i]) for i in (0x61, 0xE2, 0x88)] == ["a", "", ""]
    assert made.finish() == REPLACEMENT
