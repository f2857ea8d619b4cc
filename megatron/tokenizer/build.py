# SPDX-License-Identifier: Apache-2.0
"""From `tokenizer_type` and `vocab_file` to a tokenizer; a library is imported only when its type is asked
for.
"""

from __future__ import annotations

from pathlib import Path

from megatron.neox_arguments.errors import UserError
from megatron.tokenizer.interface import Tokenizer

TOKENIZER_TYPES = ("SPMTokenizer", "HFTokenizer")

# The file of each type in a folder, in the order they are looked for. Hugging Face folders of Llama-2 hold
# both.
_FILES_IN_FOLDER = {
    "SPMTokenizer": ("tokenizer.model",),
    "HFTokenizer": ("tokenizer.json", "tokenizer.model"),
}


def build_tokenizer(tokenizer_type: str, vocab_file: Path, eod: str | None = None) -> Tokenizer:
    """The tokenizer of a run.

    `vocab_file` is a `tokenizer.model`, a `tokenizer.json` or a folder that holds one. `eod` names the token
    that ends a document; None asks the model (`</s>` for SentencePiece, the end of sequence that a Hugging
    Face folder declares), "unk0" is GPT-NeoX's id 0 for SentencePiece.

    Errors: `UserError` for an unknown type, a missing or unreadable file, and an `eod` that is not in it.
    """
    if tokenizer_type not in _FILES_IN_FOLDER:
        raise UserError(
            f"tokenizer_type={tokenizer_type}: is unknown; use one of {', '.join(TOKENIZER_TYPES)}"
        )
    path = _file_of(tokenizer_type, Path(vocab_file))
    try:
        if tokenizer_type == "SPMTokenizer" or path.suffix == ".model":
            from megatron.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer

            return SentencePieceTokenizer(path, eod)
        from megatron.tokenizer.hf_tokenizer import HuggingFaceTokenizer

        return HuggingFaceTokenizer(path, eod)
    except OSError as error:
        raise UserError(
            f"vocab_file={path}: cannot be read ({error.strerror}); check its permissions"
        ) from None


def _file_of(tokenizer_type: str, vocab_file: Path) -> Path:
    names = _FILES_IN_FOLDER[tokenizer_type]
    if vocab_file.is_dir():
        for name in names:
            # Under another name too, such as llama2_tokenizer.model, where there is no doubt about it.
            found = (
                [vocab_file / name] if (vocab_file / name).is_file() else list(vocab_file.glob(f"*{name}"))
            )
            if len(found) == 1:
                return found[0]
        raise UserError(
            f"vocab_file={vocab_file}: the folder holds no {' or '.join(names)}; give the file itself"
        )
    if not vocab_file.exists():
        raise UserError(
            f"vocab_file={vocab_file}: does not exist; give the tokenizer of the base model "
            f"({' or '.join(names)}, or the folder that holds it)"
        )
    return vocab_file
