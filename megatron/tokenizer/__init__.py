# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back: SentencePiece and Hugging Face tokenizers, each with a fingerprint."""

from megatron.neox_arguments.model import pad_vocab
from megatron.tokenizer.build import TOKENIZER_TYPES, build_tokenizer
from megatron.tokenizer.interface import Tokenizer

__all__ = ["TOKENIZER_TYPES", "Tokenizer", "build_tokenizer", "pad_vocab"]
