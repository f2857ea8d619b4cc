# SPDX-License-Identifier: Apache-2.0
"""Several token files as one, without reading the text again: ids are copied, the index is computed anew."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from megatron.data.token_file import Provenance, Sidecar, SourceRecord, TokenFile, TokenFileWriter
from megatron.neox_arguments.errors import UserError


def merge_token_files(inputs: Sequence[Path], prefix: Path, overwrite: bool = False) -> Sidecar:
    """All documents of `inputs`, in their order, as the token file `prefix`; returns what its sidecar says.

    A merge that was killed or interrupted goes on where it was when it is started again with the same inputs.

    Errors: `UserError` for inputs that are missing, damaged, of different tokenizers, ends of document or
    types of ids, without a sidecar, or with ids outside the vocabulary; for an existing output; and for what
    the disk refuses."""
    files = [TokenFile.open(path) for path in inputs]
    sidecars = _checked(files, prefix)
    record = sidecars[0].tokenizer
    with TokenFileWriter(prefix, record.vocab_size, overwrite, resume_key=_key(files)) as writer:
        for file in files:
            writer.add_file(file, is_checked=False)
        return writer.finalize(
            Provenance(
                tokenizer=record,
                text_bytes=sum(sidecar.text_bytes for sidecar in sidecars),
                empty_documents=sum(sidecar.empty_documents for sidecar in sidecars),
                broken_lines=sum(sidecar.broken_lines for sidecar in sidecars),
                sources=_sources(sidecars),
                engine=", ".join(sorted({sidecar.engine for sidecar in sidecars} - {""})),
                checked_documents=sum(sidecar.checked_documents for sidecar in sidecars),
                reference_documents=sum(sidecar.reference_documents for sidecar in sidecars),
            )
        )


def _checked(files: Sequence[TokenFile], prefix: Path) -> list[Sidecar]:
    """The sidecars, which agree; all that is wrong is told together."""
    wrong = []
    sidecars = []
    for file in files:
        if file.sidecar is None:
            wrong.append(
                f"{file.prefix}: has no .json, so that its tokenizer is not known; tokenise it again with "
                "tools/preprocess_data.py, or list it beside the others in train_data_paths"
            )
            continue
        sidecars.append(file.sidecar)
        first = sidecars[0]
        for what, here, there in (
            ("tokenizer", file.sidecar.tokenizer.fingerprint[:12], first.tokenizer.fingerprint[:12]),
            ("vocab_size", file.sidecar.tokenizer.vocab_size, first.tokenizer.vocab_size),
            ("eod_id", file.sidecar.tokenizer.eod_id, first.tokenizer.eod_id),
            ("eod_appended", file.sidecar.tokenizer.eod_appended, first.tokenizer.eod_appended),
            ("dtype", file.dtype.name, first.dtype),
        ):
            if here != there:
                wrong.append(
                    f"{file.prefix}: has {what} {here}, and {files[0].prefix} {there}; one token file has "
                    "one of each: tokenise one of them again"
                )
        if file.sidecar.loss_mask:
            wrong.append(
                f"{file.prefix}: has a loss mask beside it; list it in train_data_paths by itself, or "
                "tokenise all examples together"
            )
        if not file.is_end_to_end():
            wrong.append(f"{file.prefix}: has gaps between its documents; tokenise it again")
    names = [file.prefix.resolve() for file in files]
    if prefix.resolve() in names:
        wrong.append(f"--output-prefix {prefix}: is one of the inputs; choose another")
    wrong += [f"{name}: is given twice" for name in sorted({name for name in names if names.count(name) > 1})]
    if wrong:
        raise UserError("\n".join(wrong))
    return sidecars


def _sources(sidecars: Sequence[Sidecar]) -> list[SourceRecord]:
    """Each source once."""
    return list(dict.fromkeys(source for sidecar in sidecars for source in sidecar.sources))


def _key(files: Sequence[TokenFile]) -> str:
    """What is being merged: the inputs as they lie on the disk now."""
    digest = hashlib.sha256()
    for file in files:
        for suffix in (".bin", ".idx"):
            status = file.prefix.with_name(file.prefix.name + suffix).stat()
            digest.update(
                f"{file.prefix.resolve()} {suffix} {status.st_size} {status.st_mtime_ns}\n".encode()
            )
    return digest.hexdigest()
