# SPDX-License-Identifier: Apache-2.0
"""The token files of a run: opened, named, cut into splits, refused where another tokenizer wrote them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from megatron.data.token_file import TokenFile
from megatron.neox_arguments.errors import ConfigError, Problem, UserError
from megatron.tokenizer import Tokenizer

# Files without a sidecar are looked into at this many evenly spaced places of this many tokens.
_SAMPLED_PLACES = 64
_SAMPLED_TOKENS = 4096


@dataclass(frozen=True)
class Source:
    """Consecutive documents of a token file, under a name of their own."""

    name: str
    file: TokenFile
    first_document: int
    end_document: int

    @classmethod
    def whole(cls, name: str, file: TokenFile) -> Source:
        """All documents of a file."""
        return cls(name, file, 0, file.documents)

    @cached_property
    def loss_mask(self) -> TokenFile | None:
        """The token file that says which tokens are learnt, where not all are.

        Raises:
            UserError: it is missing, or is not of this file.
        """
        sidecar = self.file.sidecar
        if sidecar is None or not sidecar.loss_mask:
            return None
        mask = TokenFile.open(self.file.prefix.with_name(sidecar.loss_mask))
        if not np.array_equal(mask.lengths_D, self.file.lengths_D):
            raise UserError(
                f"{mask.prefix}: is the loss mask of {self.file.prefix}, but its documents have other "
                "lengths; copy both again, or tokenise again"
            )
        if sidecar.pair and (mask.sidecar is None or mask.sidecar.pair != sidecar.pair):
            raise UserError(
                f"{mask.prefix}: is not the loss mask that was written with {self.file.prefix} (their .json "
                "have other values of pair); copy all six files again, or tokenise again"
            )
        return mask

    @cached_property
    def tokens(self) -> int:
        """Tokens of these documents."""
        return int(self.file.lengths_D[self.first_document : self.end_document].sum(dtype=np.int64))

    @cached_property
    def lengths_digest(self) -> str:
        """SHA-256 over the documents' numbers and lengths, all that packing depends on."""
        digest = hashlib.sha256(f"{self.first_document}:{self.end_document}:".encode())
        digest.update(np.ascontiguousarray(self.file.lengths_D[self.first_document : self.end_document]).data)
        return digest.hexdigest()

    def sequences(self, seq_length: int) -> int:
        """Sequences in one pass over these documents."""
        return max(0, self.tokens - 1) // seq_length

    def lacks_a_sequence(self, seq_length: int) -> str | None:
        """What to tell where not even one sequence (`seq_length` tokens and the one after) is there."""
        if self.tokens > seq_length:
            return None
        return (
            f"{self.name} ({self.file.prefix}): {self.end_document - self.first_document} documents with "
            f"{self.tokens} tokens do not fill one sequence of seq_length={seq_length} tokens and the one "
            "after; "
            "add documents, set a smaller seq_length, or leave it out"
        )


def open_files(paths: Sequence[Path], tokenizer: Tokenizer) -> tuple[list[TokenFile], list[str]]:
    """Open token files: the files, and notices. All that is wrong is raised together, in one `UserError`."""
    files: list[TokenFile] = []
    notices: list[str] = []
    errors: list[str] = []
    for path in paths:
        try:
            file = TokenFile.open(path)
            notices += check_tokenizer(file, tokenizer)
            files.append(file)
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))
    return files, list(dict.fromkeys(notices))


def check_tokenizer(file: TokenFile, tokenizer: Tokenizer) -> list[str]:
    """Refuse a token file of another tokenizer (`UserError`); returns notices about what could not be
    checked.

    Files of other programs have no sidecar: there a sample of the ids must lie inside the vocabulary.
    """
    if file.sidecar is None:
        _check_sample(file, tokenizer)
        return [
            f"{file.prefix}: has no .json beside it, so which tokenizer wrote it is unknown; "
            f"a sample of its ids lies inside the vocabulary of {tokenizer.vocab_size}"
        ]
    written_by = file.sidecar.tokenizer
    if written_by.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{file.prefix}: was written by another tokenizer ({written_by.type}, {written_by.vocab_size} "
            "ids, "
            f"fingerprint {written_by.fingerprint[:12]}) than that of the run ({tokenizer.name}, "
            f"{tokenizer.vocab_size} ids, {tokenizer.fingerprint[:12]}); "
            "set vocab_file to the one it was written with, or tokenise the text again"
        )
    if not written_by.eod_appended:
        return [f"{file.prefix}: was written without --append-eod, so nothing marks where its documents end"]
    if written_by.eod_id != tokenizer.eod_id:
        raise UserError(
            f"{file.prefix}: ends its documents with id {written_by.eod_id}, and the run with id "
            f"{tokenizer.eod_id}; "
            "set eod_token to the one it was written with (unk0 for GPT-NeoX's id 0), or tokenise the text "
            "again"
        )
    return []


def _check_sample(file: TokenFile, tokenizer: Tokenizer) -> None:
    binary = file.prefix.with_name(file.prefix.name + ".bin")
    tokens = np.memmap(binary, dtype=file.dtype.newbyteorder("<"), mode="r")
    for start in np.linspace(0, max(0, len(tokens) - _SAMPLED_TOKENS), _SAMPLED_PLACES, dtype=np.int64):
        sample = tokens[start : start + _SAMPLED_TOKENS]
        if len(sample) and (sample.min() < 0 or sample.max() >= tokenizer.vocab_size):
            bad = int(sample.min()) if sample.min() < 0 else int(sample.max())
            raise UserError(
                f"{file.prefix}: holds id {bad}, which the run's tokenizer with {tokenizer.vocab_size} ids "
                "does not "
                "have; set vocab_file to the tokenizer that wrote it, or tokenise the text again"
            )


def split_source(source: Source, split: str) -> list[Source | None]:
    """Cut a source into training, validation and test documents, in this order, None where a share is empty.

    `split` is "969,30,1" or "969/30/1", shares of the documents in their order on disk. As in GPT-NeoX, each
    share is rounded by itself and what rounding adds or takes is shifted into the training share."""
    shares = _shares(split)
    documents = source.end_document - source.first_document
    bounds = [0]
    for share in shares:
        bounds.append(bounds[-1] + round(share * documents))
    surplus = bounds[-1] - documents
    bounds = [0, *(max(0, bound - surplus) for bound in bounds[1:])]
    return [
        Source(source.name, source.file, source.first_document + begin, source.first_document + end)
        if end > begin
        else None
        for begin, end in pairwise(bounds)
    ]


def _shares(split: str) -> list[float]:
    try:
        shares = [float(part) for part in split.replace("/", ",").split(",")]
    except ValueError:
        shares = []
    shares = [*shares, 0.0, 0.0][:3] if 1 <= len(shares) <= 3 else []
    if not shares or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise ConfigError(
            [
                Problem(
                    "split",
                    split,
                    "is not up to three shares",
                    'write training, validation and test as "969,30,1"',
                )
            ]
        )
    return [share / sum(shares) for share in shares]
