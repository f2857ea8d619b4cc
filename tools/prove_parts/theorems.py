# SPDX-License-Identifier: Apache-2.0
"""Statements as they come: JSONL with a name and a statement, in the forms that miniF2F's editions have."""

from __future__ import annotations

import json
import re
from pathlib import Path

from megatron.neox_arguments.errors import UserError
from tools.prove_parts import coq_text
from tools.prove_parts.provers import Theorem

NAME_KEYS = ("name", "full_name", "theorem", "problem_name", "id")
STATEMENT_KEYS = ("statement", "formal_statement", "source")

# What may stand where the proof begins, and belongs to no statement; `coq_text` knows Coq's.
_NO_PROOF = {
    "lean": re.compile(r"\s*:=\s*(by\b)?\s*(sorry\b|begin\s+sorry\s+end)?\s*\Z"),
    "isabelle": re.compile(r"\s*\b(sorry|oops)?\s*\Z"),
}


def read_theorems(
    path: Path,
    language: str,
    *,
    name_key: str | None = None,
    statement_key: str | None = None,
    split: str | None = None,
    header: str = "",
) -> list[Theorem]:
    """The theorems of a JSONL file, in its order. A row's own `header` goes before `header`'s place.

    Args:
        split: take the rows with this `split` only.
        header: for rows that bring none.

    Raises:
        UserError: the file cannot be read, a line is no object, a key is missing, a name is there twice with
            different statements, or nothing is left. The message says file:line.
    """
    try:
        # A line ends at its line feed only: JSON may hold U+2028 and others as they are.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--theorems={path}: cannot be read ({error})") from None
    found: dict[str, Theorem] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        row = _row(line, where)
        if split is not None and row.get("split") != split:
            continue
        theorem = Theorem(
            _text(row, NAME_KEYS, name_key, "--name-key", where),
            without_proof(_text(row, STATEMENT_KEYS, statement_key, "--statement-key", where), language),
            str(row.get("header") or header),
        )
        _check_characters(theorem, where)
        if not theorem.statement.strip():
            raise UserError(f"{where}: the statement of {theorem.name} is empty; correct or remove it")
        if found.setdefault(theorem.name, theorem) != theorem:
            raise UserError(f"{where}: {theorem.name} is there twice, with different statements; rename one")
    if not found:
        kept = "" if split is None else f" with split {split}"
        raise UserError(f"--theorems={path}: has no theorem{kept}; give another file or --split")
    return list(found.values())


def without_proof(statement: str, language: str) -> str:
    """A statement up to where its proof begins: `:= by sorry` and the like are no part of it."""
    if language == "coq":
        return coq_text.without_frame(statement)
    return _NO_PROOF[language].sub("", statement)


def _check_characters(theorem: Theorem, where: str) -> None:
    for what, text in (("name", theorem.name), ("statement", theorem.statement), ("header", theorem.header)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{where}: {what}: holds {json.dumps(text[error.start])}, half of a surrogate pair, which no "
                "prover can read; correct or remove the line"
            ) from None


def _row(line: str, where: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is no JSON ({error}); write one object a line") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: is no JSON object; write one object a line")
    return row


def _text(row: dict[str, object], keys: tuple[str, ...], key: str | None, option: str, where: str) -> str:
    wanted = (key,) if key is not None else keys
    for name in wanted:
        value = row.get(name)
        if isinstance(value, str) and value:
            return value
    raise UserError(f"{where}: has no text under {' or '.join(wanted)}; say which key it is by {option}")
