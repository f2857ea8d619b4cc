# SPDX-License-Identifier: Apache-2.0
"""Hugging Face tokenizers from a `tokenizer.json` (`tokenizer_type: HFTokenizer`), without importing
transformers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from megatron.neox_arguments.errors import UserError

# The parts of a tokenizer.json that decide the ids of a text. Padding, truncation, the post-processor (which
# adds BOS) and the decoder do not, and other versions of the library write them differently.
_DEFINING_PARTS = ("normalizer", "pre_tokenizer", "model", "added_tokens")

# Other files of a Hugging Face tokenizer, kept beside a checkpoint for the export.
_COMPANIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def _read_json(path: Path) -> dict[str, Any]:
    """An optional JSON file beside the tokenizer; empty when it is absent."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); repair the file or remove it") from None
    return value if isinstance(value, dict) else {}


def _fingerprint(definition: dict[str, Any]) -> str:
    parts = {part: definition.get(part) for part in _DEFINING_PARTS}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8")).hexdigest()


def _special_tokens(definition: dict[str, Any]) -> list[str]:
    added = definition.get("added_tokens") or []
    return [str(token["content"]) for token in added if token.get("special")]


def special_tokens(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The texts of special tokens such as `eos_token`, as the files of a Hugging Face tokenizer name them."""
    configs = [_read_json(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json")]
    found: dict[str, str] = {}
    for name in names:
        for config in configs:
            value = config.get(name)
            if isinstance(value, dict):  # an AddedToken
                value = value.get("content")
            if isinstance(value, str):
                found.setdefault(name, value)
    return found


class HuggingFaceTokenizer:
    """A `tokenizer.json`. As in transformers, the text of a special token is that token."""

    name = "HFTokenizer"

    def __init__(self, tokenizer_file: Path, eod: str | None = None) -> None:
        """Read `tokenizer_file`; `eod` is a token (default: what the files beside it call end of sequence).

        Errors: `UserError` for a file that is no tokenizer, an `eod` that it does not have, or none to be
        found."""
        tokenizer_bytes = tokenizer_file.read_bytes()
        try:
            definition = json.loads(tokenizer_bytes)
            self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_bytes.decode("utf-8"))
            self.fingerprint = _fingerprint(definition)
        except Exception as error:  # the library raises bare Exception for what it cannot read
            raise UserError(
                f"vocab_file={tokenizer_file}: is not a tokenizer.json ({error}); "
                "give one, or set tokenizer_type: SPMTokenizer for a tokenizer.model"
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # What it adds is never asked for, and that of byte-level models takes white space out of the places.
        self._tokenizer.post_processor = None
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise UserError(f"vocab_file={tokenizer_file}: has no tokens; give a trained tokenizer.json")
        self.vocab_size = max(vocabulary.values()) + 1  # ids may have gaps
        folder = tokenizer_file.parent
        self.files = [tokenizer_file, *(folder / name for name in _COMPANIONS if (folder / name).is_file())]
        self.eod_id = self._find_eod(tokenizer_file, eod, _special_tokens(definition))

    def _find_eod(self, tokenizer_file: Path, eod: str | None, special_tokens: list[str]) -> int:
        candidates = (
            [("eod_token", None, eod)] if eod is not None else self._declared_eods(tokenizer_file.parent)
        )
        for origin, file, value in candidates:
            if isinstance(value, list) and len(value) == 1:
                value = value[0]
            eod_id = self._tokenizer.token_to_id(value) if isinstance(value, str) else value
            if isinstance(eod_id, bool) or not isinstance(eod_id, int) or not 0 <= eod_id < self.vocab_size:
                raise UserError(
                    f"{origin}={value}: is not one token of {tokenizer_file}; "
                    "set eod_token to the token that ends a document"
                )
            if file is not None and file not in self.files:
                self.files.append(file)
            return eod_id
        raise UserError(
            f"vocab_file={tokenizer_file}: no end-of-sequence token is named in tokenizer_config.json, "
            "special_tokens_map.json, generation_config.json or config.json beside it; "
            "set eod_token to the token that ends a document "
            f"(its special tokens are {', '.join(special_tokens[:8]) or 'none'})"
        )

    @staticmethod
    def _declared_eods(folder: Path) -> Iterator[tuple[str, Path, object]]:
        """The end of sequence as each file names it: (where, file, a token, an id, or a list of ids)."""
        for name, key in (
            ("tokenizer_config.json", "eos_token"),
            ("special_tokens_map.json", "eos_token"),
            ("generation_config.json", "eos_token_id"),
            ("config.json", "eos_token_id"),
        ):
            value = _read_json(folder / name).get(key)
            if isinstance(value, dict):  # an AddedToken
                value = value.get("content")
            if value is not None:
                yield f"{name}: {key}", folder / name, value

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without the tokens a post-processor adds."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of one text, and the characters of it that each stands for: the bytes of a character all
        have its place."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return list(encoding.ids), list(encoding.offsets)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of several texts, in their order."""
        batch = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [list(encoding.ids) for encoding in batch]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))
