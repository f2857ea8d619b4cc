# SPDX-License-Identifier: Apache-2.0
"""SentencePiece models, as Llama-2, Code Llama and Llemma have them (`tokenizer_type: SPMTokenizer`)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import sentencepiece

from megatron.neox_arguments.errors import UserError

# GPT-NeoX's SPMTokenizer looks up "<|endoftext|>", which Llama's models lack, and so ends documents with id
# 0, <unk>. This name asks for the same; the default is </s>, as in Megatron-LM.
GPT_NEOX_EOD = "unk0"

# What Hugging Face keeps beside a SentencePiece model and an export needs.
_COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class SentencePieceTokenizer:
    """A SentencePiece model. Text that looks like a control token (`</s>`) stays text."""

    name = "SPMTokenizer"

    def __init__(self, model_file: Path, eod: str | None = None) -> None:
        """Read `model_file`; `eod` is a piece, or "unk0" for id 0 (default: the model's end of sentence,
        `</s>`).

        Errors: `UserError` for a file that is no SentencePiece model, and for an `eod` that it does not have.
        """
        model_bytes = model_file.read_bytes()
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model_bytes)
        except (RuntimeError, OSError, TypeError) as error:
            raise UserError(
                f"vocab_file={model_file}: is not a SentencePiece model ({error}); "
                "give a tokenizer.model, or set tokenizer_type: HFTokenizer for a tokenizer.json"
            ) from None
        self.vocab_size = int(self._processor.GetPieceSize())
        if self.vocab_size == 0:
            raise UserError(
                f"vocab_file={model_file}: has no pieces, so it is not a SentencePiece model; give a "
                "tokenizer.model"
            )
        self.fingerprint = hashlib.sha256(model_bytes).hexdigest()
        companions = [model_file.parent / name for name in _COMPANIONS]
        self.files = [model_file, *(path for path in companions if path.is_file())]
        self.eod_id = self._find_eod(model_file, eod)

    def _find_eod(self, model_file: Path, eod: str | None) -> int:
        if eod == GPT_NEOX_EOD:
            return 0
        if eod is None:
            eod_id = int(self._processor.eos_id())
            if eod_id >= 0:
                return eod_id
            raise UserError(
                f"vocab_file={model_file}: its model has no end-of-sentence piece; "
                "set eod_token to the piece that ends a document"
            )
        eod_id = int(self._processor.PieceToId(eod))
        if self._processor.IdToPiece(eod_id) != eod:
            raise UserError(
                f"eod_token={eod}: is not a piece of {model_file}; "
                f"leave eod_token out for the model's own end of sentence, or set {GPT_NEOX_EOD!r} for "
                "GPT-NeoX's id 0"
            )
        return eod_id

    def encode(self, text: str) -> list[int]:
        """The ids of one text; a text in UTF-8 only (no lone surrogates)."""
        return cast("list[int]", self._processor.EncodeAsIds(text))

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of one text, and the characters of it that each stands for. A space that the model puts in
        front has no characters, and of the bytes of a character only the last has it."""
        found = self._processor.Encode(text, return_type="offset_mapping")
        return found["ids"], found["offsets"]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of several texts, on one thread: processes are what runs beside each other here."""
        return cast("list[list[int]]", self._processor.Encode(list(texts), out_type=int, num_threads=1))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; SentencePiece leaves control tokens out."""
        return cast(str, self._processor.DecodeIds([int(i) for i in ids]))
