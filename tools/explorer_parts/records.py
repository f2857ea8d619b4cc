# SPDX-License-Identifier: Apache-2.0
"""Lines as they stand in files become facts: a sample, verdict, vote or proof of one item under one model."""

from __future__ import annotations

import hashlib
import html
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from eval_tasks.results.json_lines import read_lines
from megatron.neox_arguments.errors import UserError
from tools.explorer_parts import sources
from tools.explorer_parts.sources import Source

SAMPLE, VERDICT, VOTE, PROOF = 0, 1, 2, 3
LONGEST_FIELD = 500  # characters of a field that is shown under "more"
VOTE_SAMPLE = -1  # a vote belongs to no sample

# Names that others give to what tools/prove.py calls by the first.
_ALIASES = {
    "theorem": ("theorem", "full_name", "name", "item"),
    "statement": ("statement", "source", "formal_statement"),
    "proved": ("proved", "success"),
    "seconds": ("seconds", "elapsed_s"),
    "status": ("status", "failure_reason"),
}
_SAMPLE_FIELDS = {
    "task", "item", "id", "sample", "model", "problem", "reference", "generation", "level", "subject",
    "tokens", "loglikelihood", "bytes", "choices", "prompt_sha256",
}  # fmt: skip
_VERDICT_FIELDS = {"answer", "minerva", "math_verify", "correct", "program"}


@dataclass(frozen=True)
class Fact:
    """One thing known of an item. `item` is None where the line has no id: the problem's text names it then.

    `problem` is what all facts of an item must agree on, None where the line does not hold it; `sample` is
    None where the samples of an item are to be counted.
    """

    task: str
    item: str | None
    model: str
    sample: int | None
    part: int
    fields: dict[str, Any]
    problem: str | None
    where: str


def read(source: Source, undo_html: bool) -> Iterator[Fact]:
    """The facts of a file, in its order.

    Raises:
        UserError: the file cannot be read, or a line lacks what is needed; `file:line` is in the message.
    """
    of_kind = {
        sources.SAMPLES: _generation, sources.GENERATIONS: _generation, sources.VERDICTS: _verdict,
        sources.VOTES: _vote, sources.PROOFS: _proof,
    }[source.kind]  # fmt: skip
    for number, line in read_lines(source.path):
        where = f"{source.path}:{number}"
        yield from of_kind(_without_html(line) if undo_html else line, source, where)


def _without_html(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: html.unescape(value) if isinstance(value, str) else value for name, value in line.items()}


def _text(line: Mapping[str, Any], name: str, where: str, needed: bool = True) -> str | None:
    value = line.get(name)
    if isinstance(value, str) or (value is None and not needed):
        return value
    if value is None:
        raise UserError(f"{where}: has no {name!r}; give it, or remove the line")
    raise UserError(f"{where}: {name}={value!r:.80}: is no text; repair or remove the line")


def _truth(line: Mapping[str, Any], name: str, where: str) -> bool | None:
    value = line.get(name)
    if value is None or isinstance(value, bool):
        return value
    if value in (0, 1):
        return bool(value)
    raise UserError(f"{where}: {name}={value!r:.80}: is not true or false; repair or remove the line")


def _shown(value: object) -> str | None:
    return None if value is None else str(value)


def _whole(line: Mapping[str, Any], name: str, where: str) -> int | None:
    value = line.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53):
        return value
    raise UserError(f"{where}: {name}={value!r:.80}: is no whole number; repair or remove the line")


def finite(value: object) -> float | None:
    """A finite number, which JSON can hold, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _level(value: object) -> int | None:
    """3 of 3 and of MATH's "Level 3"; None of anything else."""
    found = re.fullmatch(r"(?:Level )?([0-9]{1,3})", str(value))
    return int(found[1]) if found else None


def _id(line: Mapping[str, Any]) -> str | None:
    value = line.get("item", line.get("id"))
    return None if value is None else str(value)


def _more(line: Mapping[str, Any], known: set[str]) -> list[list[Any]]:
    """Whatever else a line says in a few words, as pairs."""
    kept: list[list[Any]] = []
    for name, value in line.items():
        if (
            name in known
            or value == ""
            or not (isinstance(value, (str, bool, int)) or finite(value) is not None)
        ):
            continue
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        if len(text) <= LONGEST_FIELD:
            kept.append([name, text])
    return kept


def _model(line: Mapping[str, Any], source: Source) -> str:
    own = line.get("model")
    return own if isinstance(own, str) and own and not source.named else source.model


def _generation(line: Mapping[str, Any], source: Source, where: str) -> Iterator[Fact]:
    """A sample, with its verdict where the line has one itself."""
    problem = _text(line, "problem", where)
    is_likelihood = line.get("loglikelihood") is not None
    task = source.task if source.kind == sources.SAMPLES else str(line.get("task") or source.task)
    fields = {
        "reference": _text(line, "reference", where, needed=False) or "",
        "problem": problem,
        "level": _level(line.get("level")),
        "subject": _text(line, "subject", where, needed=False) or None,
        "text": _text(line, "generation", where, needed=not is_likelihood),
        "tokens": _whole(line, "tokens", where),
        "loglikelihood": finite(line.get("loglikelihood")),
        "bytes": _whole(line, "bytes", where),
        "choices": [*map(str, line["choices"])] if isinstance(line.get("choices"), list) else None,
        "more": _more(line, _SAMPLE_FIELDS | _VERDICT_FIELDS),
    }  # fmt: skip
    if any(line.get(name) is not None for name in _VERDICT_FIELDS):
        fields |= _verdict_fields(line, where)
    item, model, sample = _id(line), _model(line, source), _whole(line, "sample", where)
    if source.kind == sources.SAMPLES and (item is None or sample is None):
        raise UserError(f"{where}: has no 'item' or 'sample'; give the file as evaluate.py wrote it")
    yield Fact(task, item, model, sample, SAMPLE, fields, problem, where)


def _verdict_fields(line: Mapping[str, Any], where: str) -> dict[str, Any]:
    program = line.get("program")
    if program is not None:
        program = program if isinstance(program, Mapping) else {"code": program}
        program = {name: _shown(program.get(name)) for name in ("code", "output", "error")}
    return {
        "answer": _shown(line.get("answer")),
        "minerva": _truth(line, "minerva", where),
        "math_verify": _truth(line, "math_verify", where),
        "correct": _truth(line, "correct", where),
        "program": program,
    }


def _verdict(line: Mapping[str, Any], source: Source, where: str) -> Iterator[Fact]:
    item, sample = _text(line, "item", where), _whole(line, "sample", where)
    if sample is None:
        raise UserError(f"{where}: has no 'sample'; give it, or remove the line")
    yield Fact(source.task, item, source.model, sample, VERDICT, _verdict_fields(line, where), None, where)


def _vote(line: Mapping[str, Any], source: Source, where: str) -> Iterator[Fact]:
    votes = line.get("votes")
    if not isinstance(votes, Mapping):
        raise UserError(f"{where}: votes={votes!r:.80}: is no object; repair or remove the line")
    counts: list[tuple[str, int]] = [
        (str(answer), int(number)) for answer, number in votes.items() if finite(number) is not None
    ]
    fields = {
        "answer": _shown(line.get("answer")),
        "votes": sorted(counts, key=lambda pair: (-pair[1], pair[0])),
        "correct": _truth(line, "correct", where),
    }  # fmt: skip
    item = _text(line, "item", where)
    yield Fact(source.task, item, source.model, VOTE_SAMPLE, VOTE, fields, None, where)


def _proof(line: Mapping[str, Any], source: Source, where: str) -> Iterator[Fact]:
    named = {
        ours: next((line[name] for name in names if name in line), None) for ours, names in _ALIASES.items()
    }
    theorem, statement = _text(named, "theorem", where), _text(named, "statement", where)
    proof = line.get("proof")
    known = {name for names in _ALIASES.values() for name in names}
    fields = {
        "statement": statement,
        "problem": _text(line, "problem", where, needed=False),
        "proved": _truth(named, "proved", where),
        "proof": "\n".join(map(str, proof)) if isinstance(proof, list) else proof and str(proof),
        "seconds": finite(named["seconds"]),
        "expansions": _whole(line, "expansions", where),
        "status": _shown(named["status"]),
        "tree": _tree(line.get("tree")) or _steps(line.get("trace")),
        "more": _more(line, known | {"task", "model", "problem", "proof", "expansions", "tree", "trace"}),
    }  # fmt: skip
    task = str(line.get("task") or source.task)
    yield Fact(task, theorem, _model(line, source), 0, PROOF, fields, statement, where)


def _tree(nodes: object) -> list[dict[str, Any]] | None:
    """The nodes of a search as the page reads them; a node without an id is called by its place."""
    if not isinstance(nodes, list) or not nodes:
        return None
    read = []
    for number, node in enumerate(node for node in nodes if isinstance(node, Mapping)):
        state = next((node[name] for name in ("state", "goals", "goal") if node.get(name) is not None), None)
        score = next((node[name] for name in ("score", "cost") if finite(node.get(name)) is not None), None)
        status = node.get("outcome", node.get("status"))
        read.append({
            "id": str(node.get("id", number)),
            "parent": _shown(node.get("parent")),
            "tactic": _shown(node.get("tactic")),
            "state": "\n\n".join(map(str, state)) if isinstance(state, list) else state and str(state),
            "score": finite(score),
            "status": _shown(status),
            "message": _shown(node.get("message")),
            "on_path": False,
        })  # fmt: skip
    _mark_path(read)
    return read


def _mark_path(nodes: list[dict[str, Any]]) -> None:
    """Marks the way from a root to each node that ended the proof."""
    by_id = {node["id"]: node for node in nodes}
    for node in nodes:
        if node["status"] not in ("proved", "proof", "closed", "finished"):
            continue
        at: dict[str, Any] | None = node
        while at is not None and not at["on_path"]:
            at["on_path"] = True
            at = by_id.get(at["parent"])


def _steps(trace: object) -> list[dict[str, Any]] | None:
    """A proof's steps, each with the state before it, as a tree of one branch."""
    if not isinstance(trace, list) or not trace:
        return None
    steps = [step for step in trace if isinstance(step, Mapping)]
    states = [*(step.get("state_before") for step in steps), "no goals"]
    tactics = [None, *(step.get("tactic") for step in steps)]
    return [
        {
            "id": str(number), "parent": str(number - 1) if number else None, "tactic": _shown(tactic),
            "state": _shown(state), "score": None, "status": "proved" if number == len(steps) else None,
            "message": None, "on_path": True,
        }
        for number, (tactic, state) in enumerate(zip(tactics, states, strict=True))
    ]  # fmt: skip


def problem_id(problem: str) -> str:
    """A name for an item that has none: the same text has the same name in every file."""
    return hashlib.sha256(problem.strip().encode("utf-8", "replace")).hexdigest()[:12]
