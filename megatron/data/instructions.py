# SPDX-License-Identifier: Apache-2.0
"""Questions with answers, and conversations, to a token file and its loss mask: only answers are learnt.

The text of an example is what a model will see: a prompt and its answer, or a conversation as a chat template
writes it. Its ids are those of the whole text. The mask is 1 for each id that stands for a character of an
answer, so that an id across the border counts as answer, and for the end of document after an answer. The
mask is a token file like the other, with ids 0 and 1 and the same lengths, and the sidecar of the other names
it: whoever trains on the one reads the other, with nothing to configure.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from megatron.data.chat_template import PLAIN_TEMPLATE, ChatTemplate, TemplateFailed
from megatron.data.decompress import DECOMPRESS
from megatron.data.progress import Progress, say_made, say_result
from megatron.data.readers import Broken, Corpus, Document, Fields, JsonLines, source_records
from megatron.data.token_file import Provenance, Sidecar, TokenFile, TokenFileWriter
from megatron.data.tokenize_corpus import (
    Wish,
    check_output,
    made_before,
    stopped_at,
    tokenizer_record,
)
from megatron.neox_arguments.errors import UserError
from megatron.tokenizer import Tokenizer

MASK_SUFFIX = "_loss_mask"
_SHOWN_BROKEN_LINES = 20
# The mask's own vocabulary.
_LEFT_OUT_OR_LEARNT = 2


@dataclass(frozen=True)
class Piece:
    """A stretch of an example, and whether it is learnt."""

    text: str
    is_answer: bool


class Form(Protocol):
    """How an example becomes pieces of text."""

    @property
    def definition(self) -> str:
        """All that decides the pieces of an example."""

    def pieces(self, fields: Fields) -> list[Piece] | Broken:
        """The pieces, to be laid end to end."""


@dataclass(frozen=True)
class PromptAndAnswer:
    """Two keys of a line: what is asked, and what is learnt."""

    prompt_key: str
    answer_key: str

    @property
    def definition(self) -> str:
        """The keys."""
        return json.dumps(["prompt and answer", self.prompt_key, self.answer_key])

    def pieces(self, fields: Fields) -> list[Piece] | Broken:
        """Prompt, then answer, as they stand: a space or newline between them is part of one of them. White
        space alone is no answer."""
        prompt, answer = fields.text(self.prompt_key), fields.text(self.answer_key)
        for found in (prompt, answer):
            if isinstance(found, Broken):
                return found
        assert not isinstance(prompt, Broken)
        assert not isinstance(answer, Broken)
        return [Piece(prompt.text, False), Piece(answer.text, _has_words(answer.text))]


class Conversation:
    """A key that holds `[{"role": "user", "content": …}, {"role": "assistant", …}, …]`."""

    def __init__(
        self, key: str, template: str = PLAIN_TEMPLATE, special_tokens: Mapping[str, str] | None = None
    ) -> None:
        """`template` is a Jinja template as transformers renders it, with the texts of the special tokens
        that it may write.

        Raises:
            UserError: it is not a template, or writes other special tokens.
        """
        self._key = key
        self._template = ChatTemplate(template, special_tokens or {})

    @property
    def definition(self) -> str:
        """The key and the template."""
        return json.dumps(["conversation", self._key, self._template.definition])

    def pieces(self, fields: Fields) -> list[Piece] | Broken:
        """What each assistant's turn adds to the text before it, as the template writes both. A turn without
        a word is no answer."""
        messages = fields.values.get(self._key)
        if wrong := _wrong_with(messages):
            return Broken(fields.where, f"{self._key!r} {wrong}")
        assert isinstance(messages, list)
        pieces: list[Piece] = []
        text = ""
        try:
            for number, message in enumerate(messages):
                if message["role"] != "assistant":
                    continue
                before = self._template.render(messages[:number], add_generation_prompt=True)
                after = self._template.render(messages[: number + 1], add_generation_prompt=False)
                if not (before.startswith(text) and after.startswith(before)):
                    reason = f"message {number + 1} changes what the template writes before it"
                    return Broken(fields.where, f"{self._key!r}: {reason}")
                is_answer = _has_words(message["content"])
                pieces += [Piece(before[len(text) :], False), Piece(after[len(before) :], is_answer)]
                text = after
        except TemplateFailed as error:
            return Broken(fields.where, f"{self._key!r}: the template refuses it ({error})")
        return pieces


def _has_words(answer: str) -> bool:
    return bool(answer.strip())


def _wrong_with(messages: Any) -> str | None:
    """What keeps `messages` from being a conversation with an answer in it."""
    if not isinstance(messages, list):
        return f"is not a list of messages but a {type(messages).__name__}"
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            return f"has no role and content in message {number}"
    if not any(message["role"] == "assistant" for message in messages):
        return "has no message of the role assistant"
    return None


def encode_pieces(
    tokenizer: Tokenizer, pieces: Sequence[Piece]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The ids of the whole text, and for each whether it is learnt; [tokens], both.

    An id is learnt if any of its characters belongs to an answer, and one without a character of its own
    (a space that the model puts in front, a first byte of several) if the character that follows does."""
    text = "".join(piece.text for piece in pieces)
    ids, places = tokenizer.encode_with_places(text)
    lengths = [len(piece.text) for piece in pieces]
    answers = np.repeat(np.asarray([piece.is_answer for piece in pieces], dtype=np.int64), lengths)
    places_T2 = np.asarray(places, dtype=np.int64).reshape(-1, 2)
    begins_T = np.minimum(places_T2[:, 0], max(0, len(text) - 1))
    ends_T = np.maximum(places_T2[:, 1], begins_T + 1)
    learnt_before = np.concatenate([[0], np.cumsum(answers)])
    return np.asarray(ids, dtype=np.int64), np.asarray(
        learnt_before[ends_T] > learnt_before[begins_T], dtype=np.int64
    )


def tokenize_instructions(corpus: Corpus, prefix: Path, form: Form, wish: Wish) -> Sidecar:
    """Tokenise the examples of `corpus` into the token file `prefix` and its mask; returns the sidecar.

    One process does it: instruction data is small. Errors: as `tokenize_corpus`, and a corpus that is not all
    JSON lines. An example without an answer's id counts as empty."""
    if wish.share.count > 1:
        raise UserError(
            f"--share {wish.share}: examples with answers are tokenised by one process; leave it out"
        )
    if any(found.format not in DECOMPRESS for found in corpus.inputs):
        raise UserError("--input: examples with answers are read from .jsonl, .jsonl.gz or .jsonl.zst")
    check_output(corpus, prefix)
    tokenizer = wish.spec.build()
    progress = Progress(corpus.total_bytes, wish.log_interval_seconds)
    form_digest = hashlib.sha256(form.definition.encode()).hexdigest()
    mask_prefix = prefix.with_name(prefix.name + MASK_SUFFIX)
    if not wish.overwrite:
        made = made_before(corpus, prefix, tokenizer, wish, form_digest)
        if made is not None and _is_of(mask_prefix, made):
            say_made(progress, prefix)
            return made
    counts = {"text_bytes": 0, "empty_documents": 0, "broken_lines": 0}
    pair = hashlib.sha256()
    with (
        TokenFileWriter(prefix, tokenizer.vocab_size, wish.overwrite) as writer,
        TokenFileWriter(mask_prefix, _LEFT_OUT_OR_LEARNT, wish.overwrite) as mask_writer,
    ):
        for pieces in _examples(corpus, form, wish, counts):
            ids, mask = encode_pieces(tokenizer, pieces)
            if not mask.any():
                counts["empty_documents"] += 1
                continue
            if wish.append_eod:
                ids, mask = np.append(ids, tokenizer.eod_id), np.append(mask, pieces[-1].is_answer)
            counts["text_bytes"] += sum(len(piece.text.encode()) for piece in pieces)
            writer.add_document(ids)
            mask_writer.add_document(mask)
            pair.update(ids.astype("<i8").tobytes() + mask.astype("<i8").tobytes())
            progress.show(corpus.read_bytes, counts["text_bytes"], writer.documents, writer.tokens)
        if not writer.documents:
            raise UserError(
                f"{prefix}: no example has an answer, so there is nothing to write; check --input"
            )
        provenance = Provenance(
            tokenizer=tokenizer_record(tokenizer, wish.append_eod),
            sources=source_records([(found, found.sha256()) for found in corpus.inputs]),
            pair=pair.hexdigest(),
            form=form_digest,
            **counts,
        )
        mask_writer.complete(provenance)
        sidecar = writer.finalize(
            provenance.model_copy(update={"loss_mask": mask_prefix.name}), companion=mask_writer
        )
    say_result(progress, prefix, sidecar)
    return sidecar


def _is_of(mask_prefix: Path, made: Sidecar) -> bool:
    try:
        mask = TokenFile.open(mask_prefix)
    except UserError:
        return False
    return mask.sidecar is not None and mask.sidecar.pair == made.pair


def _examples(corpus: Corpus, form: Form, wish: Wish, counts: dict[str, int]) -> Iterator[list[Piece]]:
    for chunk in corpus.chunks():
        for fields in chunk.objects() if isinstance(chunk, JsonLines) else chunk.records():
            assert not isinstance(fields, Document), "JSON lines only"
            found = fields if isinstance(fields, Broken) else form.pieces(fields)
            if not isinstance(found, Broken):
                yield found
                continue
            if not wish.skip_broken:
                raise UserError(stopped_at((found,)))
            counts["broken_lines"] += 1
            if counts["broken_lines"] <= _SHOWN_BROKEN_LINES:
                print(f"skipped: {found.where}: {found.reason}", file=sys.stderr)
