# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back: SentencePiece and Hugging Face tokenizers, each with a fingerprint."""

from megatron.tokenizer.build import TOKENIZER_TYPES, build_tokenizer
from megatron.tokenizer.interface import Tokenizer, pad_vocab

__all__ = ["TOKENIZER_TYPES", "Tokenizer", "build_tokenizer", "pad_vocab"]
