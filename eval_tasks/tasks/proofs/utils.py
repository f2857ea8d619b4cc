# SPDX-License-Identifier: Apache-2.0
"""Formal proofs from informal ones: miniF2F in Isabelle as in Draft, Sketch, and Prove, ProofNet in Lean 4,
and a further round in which a proof that was refused is repaired.

The reference of a document is its formal statement; the generation goes on from it. `extra` has the
theorem's name, its informal proof, and what must stand before it (`header`). tools/prove.py checks what was
generated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from eval_tasks.prompts import prompt
from eval_tasks.tasks import documents as common

_BETWEEN = "\n\n\n\n"
# Of a checker's message this much is shown to the model.
_MESSAGE_CHARACTERS = 400


def problem_kind(formal_statement: str) -> str:
    """`numbertheory` or `other`, which have examples of their own; told by the theorem's name, as in the
    paper."""
    return "numbertheory" if "numbertheory" in formal_statement else "other"


def minif2f_documents(rows: Any) -> Any:
    """Rows with `problem_name`, `informal_statement`, `informal_proof` and `formal_statement`.

    Theorems that are among the examples are left out, as in Llemma's harness; miniF2F's test split has none.
    """
    examples = "".join(prompt(f"dsp_isabelle_{kind}").text for kind in ("numbertheory", "other"))
    return common.documents(
        rows, lambda row: None if f"theorem {row.get('problem_name')}:" in examples else _read(row)
    )


def proofnet_documents(rows: Any) -> Any:
    """Rows with `id`, `nl_statement`, `nl_proof`, a formal statement in Lean 4 and its header."""
    return common.documents(rows, _read)


def repair_documents(rows: Any) -> Any:
    """Rows that `tools/prove.py whole --failures` wrote."""
    return common.documents(rows, _read)


def _read(row: common.Row) -> common.Document:
    problem = common.text_of(row, "problem", "informal_statement", "nl_statement")
    statement = common.text_of(row, "reference", "formal_statement", "lean4_formalization")
    extra = {
        "name": _first(row, "name", "problem_name", "id"),
        "informal_proof": _first(row, "informal_proof", "nl_proof"),
        "header": _first(row, "header", "lean4_src_header", "src_header"),
    }
    for name in ("failed_proof", "message", "repairs"):
        if name in row:
            extra[name] = row[name]
    return common.document(row, problem, statement, **extra)


def _first(row: common.Row, *names: str) -> str:
    return next((str(row[name]) for name in names if row.get(name)), "")


def isabelle_prompt(doc: common.Document) -> str:
    """Examples of the problem's kind, then the informal problem and proof, and the statement to go on
    from."""
    return prompt(f"dsp_isabelle_{problem_kind(doc['reference'])}").text + _BETWEEN + _isabelle_task(doc)


def _isabelle_task(doc: common.Document) -> str:
    informal = f"{doc['problem']}\n\n### Solution\n\n{_extra(doc, 'informal_proof')}"
    return f"Informal:\n(*### Problem\n\n{informal} *)\n\nFormal:\n{doc['reference']}"


def lean_prompt(doc: common.Document) -> str:
    """Three examples, then the informal problem and proof, and the statement with `:= by`."""
    return prompt("lean_proof_from_informal_3_shot").text + _BETWEEN + _lean_task(doc)


def _lean_task(doc: common.Document) -> str:
    informal = f"{doc['problem']}\n\n### Solution\n\n{_extra(doc, 'informal_proof')}"
    statement = doc["reference"].rstrip().removesuffix("sorry").rstrip().removesuffix("by").rstrip()
    statement = statement.removesuffix(":=").rstrip()
    return f"Informal:\n/- ### Problem\n\n{informal} -/\n\nFormal:\n{statement} := by"


def isabelle_repair_prompt(doc: common.Document) -> str:
    """The prompt of the first round with the proof that was refused and the checker's message, then once
    more."""
    message = " ".join(_extra(doc, "message").replace("*)", ")").split())[:_MESSAGE_CHARACTERS]
    failed = f"{isabelle_prompt(doc)}\n{_extra(doc, 'failed_proof').strip()}"
    return f"{failed}\n\n\n\n(* The proof above fails: {message} *)\n\nCorrected:\n{doc['reference']}"


def written_results(doc: common.Document, results: Sequence[Any]) -> dict[str, float]:
    """For lm-eval's own command, which knows no prover: whether there is any text."""
    texts = results[0] if isinstance(results[0], list) else [results[0]]
    return {"written": float(any(text.strip() for text in texts))}


def _extra(doc: common.Document, name: str) -> str:
    found = json.loads(doc["extra"]) if doc["extra"] else {}
    return str(found.get(name, ""))
