# SPDX-License-Identifier: Apache-2.0
"""Real text from the installed packages, small tokenizers trained on it, token files of chosen ids."""

from __future__ import annotations

import ast
import io
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import sympy

from megatron.data.token_file import Provenance, TokenFileWriter, TokenizerRecord
from megatron.tokenizer import Tokenizer


@cache
def python_texts() -> tuple[str, ...]:
    """Whole Python files of sympy, among them an empty one."""
    folder = Path(sympy.__file__).parent
    files = sorted([*(folder / "ntheory").glob("*.py"), *(folder / "polys" / "domains").glob("*.py")])
    return tuple(file.read_text(encoding="utf-8") for file in files)


@cache
def latex_texts() -> tuple[str, ...]:
    """The LaTeX that sympy's own tests expect, some hundred strings a document."""
    file = Path(sympy.__file__).parent / "printing" / "tests" / "test_latex.py"
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    strings = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    formulas = [string for string in strings if "\\" in string]
    assert len(formulas) > 500
    return tuple("\n".join(formulas[i : i + 100]) for i in range(0, len(formulas), 100))


def shared_folder() -> Path:
    """The folder of real data that some tests need; they skip where it is absent."""
    default = Path(__file__).resolve().parents[2].parent / "shared"
    folder = Path(os.environ.get("LLEMMA_SHARED", default)) / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real data of {folder} (set LLEMMA_SHARED)")
    return folder


def train_sentencepiece(
    folder: Path, name: str = "tokenizer.model", vocab_size: int = 800, **options: Any
) -> Path:
    """A BPE model with bytes for what it does not know, like Llama's."""
    model = io.BytesIO()
    lines = [
        line for text in (*python_texts()[:8], *latex_texts()) for line in text.splitlines() if line.strip()
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        **{
            "vocab_size": vocab_size,
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "minloglevel": 2,
            **options,
        },
    )
    path = folder / name
    path.write_bytes(model.getvalue())
    return path


class Numbers:
    """A tokenizer for files of chosen ids: text is decimal numbers."""

    name = "SPMTokenizer"
    files: tuple[Path, ...] = ()

    def __init__(self, vocab_size: int = 1000, eod_id: int = 2, fingerprint: str = "f" * 64) -> None:
        self.vocab_size, self.eod_id, self.fingerprint = vocab_size, eod_id, fingerprint


def numbers(vocab_size: int = 1000, eod_id: int = 2, fingerprint: str = "f" * 64) -> Tokenizer:
    """`Numbers`, as the type the product asks for; its texts are never used."""
    return Numbers(vocab_size, eod_id, fingerprint)  # type: ignore[return-value]


def provenance(tokenizer: Tokenizer, eod_appended: bool = True) -> Provenance:
    """What a sidecar says of documents that come from nowhere."""
    record = TokenizerRecord(
        type=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eod_id=tokenizer.eod_id,
        eod_appended=eod_appended,
    )
    return Provenance(tokenizer=record, text_bytes=0, empty_documents=0, broken_lines=0, sources=[])


def write_documents(
    prefix: Path,
    documents: Sequence[Sequence[int]],
    tokenizer: Tokenizer | None = None,
    overwrite: bool = False,
) -> Path:
    """A token file that holds these documents."""
    tokenizer = tokenizer or numbers()
    with TokenFileWriter(prefix, tokenizer.vocab_size, overwrite) as writer:
        for document in documents:
            writer.add_document(document)
        writer.finalize(provenance(tokenizer))
    return prefix


def random_documents(seed: int, count: int, longest: int = 60, vocab_size: int = 1000) -> list[list[int]]:
    """Documents of 1 to `longest` ids, some of them of one token."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, longest, count)
    lengths[::7] = 1
    return [generator.integers(0, vocab_size, length).tolist() for length in lengths]
