# SPDX-License-Identifier: Apache-2.0
"""What flows through a recipe: documents, and the steps that pass, change, cut or drop them.

A step is pure: what it returns depends on the document and on what its `version` says, and on nothing
else. So a shard that is made again has the same bytes, whichever process makes it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, Protocol, TypeAlias

import orjson

from megatron.data.readers import Broken as Broken

Meta: TypeAlias = "dict[str, Any]"


@dataclass(frozen=True)
class Document:
    """A text and what is known of it. `meta["lang"]`, where it is set, groups the counts of the report."""

    text: str
    meta: Meta = field(default_factory=dict)
    route: str = ""
    """Where it belongs, if its place in the input decides that; it is not written (see `run.OwnRoute`)."""

    def with_text(self, text: str) -> Document:
        """The same document with another text."""
        return self if text == self.text else replace(self, text=text)

    def with_meta(self, **values: Any) -> Document:
        """The same text with more, or other, entries in `meta`."""
        return replace(self, meta={**self.meta, **values})


@dataclass(frozen=True)
class Dropped:
    """A document that a rule of a step left out. The rule is a few words that do not vary with the
    document."""

    rule: str


Outcome: TypeAlias = "Document | Dropped | Iterable[Document | Dropped]"


class Step(Protocol):
    """One stage of cleaning. Picklable; what is heavy (a model) is loaded at the first call, in the
    process."""

    @property
    def name(self) -> str:
        """Unique within a recipe; a few words, shown in reports."""

    @property
    def version(self) -> str:
        """Changes whenever the outcome for some document does: `version_of` of the step's parameters, and a
        number for its code. Output made with another version is not mixed with new output."""

    def __call__(self, document: Document) -> Outcome:
        """The document as it goes on, `Dropped`, or several of either where it is cut in pieces."""


def version_of(code: int, *parameters: object) -> str:
    """A step's version: the number of its code, and a hash of its parameters: whatever JSON can hold, and
    dataclasses, sets, bytes, paths and patterns.

    Raises:
        TypeError: a parameter is something else, whose value could not be told from one process to the next.
    """
    content = orjson.dumps(
        parameters, default=_as_json, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
    )
    return f"{code}-{hashlib.sha256(content).hexdigest()[:16]}"


def _as_json(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, re.Pattern):
        return [value.pattern, value.flags]
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"a step's parameter cannot be a {type(value).__name__}")


@dataclass(frozen=True)
class Passage:
    """What one step did with one document. `result` is None where it dropped it by `rule`."""

    step: str
    source: Document
    result: Document | None
    rule: str = ""


class StepFailed(Exception):
    """A step raised on a document; the step's name and the error, in words."""


def run_steps(document: Document, steps: Sequence[Step], passages: list[Passage]) -> Iterator[Document]:
    """The documents that come out of all steps, in order; each step taken is added to `passages`.

    Raises:
        StepFailed: a step raised.
    """
    if not steps:
        yield document
        return
    step = steps[0]
    for outcome in _outcomes(step, document):
        if isinstance(outcome, Dropped):
            passages.append(Passage(step.name, document, None, outcome.rule))
        else:
            passages.append(Passage(step.name, document, outcome))
            yield from run_steps(outcome, steps[1:], passages)


def _outcomes(step: Step, document: Document) -> Iterator[Document | Dropped]:
    try:
        outcome = step(document)
        if isinstance(outcome, (Document, Dropped)):
            yield outcome
        else:
            outcomes = list(outcome)
            if not outcomes:
                raise ValueError("returned nothing; a document that is left out has to be Dropped")
            yield from outcomes
    except Exception as error:
        raise StepFailed(f"step {step.name!r} failed: {type(error).__name__}: {error}"[:500]) from error


def encode(document: Document) -> bytes:
    """The document's line of JSON.

    Raises:
        ValueError: it cannot be written as JSON (meta that is nested too deeply, a lone surrogate in the
        text).
    """
    try:
        return orjson.dumps({"text": document.text, "meta": document.meta}, default=str,
                            option=orjson.OPT_APPEND_NEWLINE)  # fmt: skip
    except (orjson.JSONEncodeError, RecursionError) as error:
        raise ValueError(f"cannot be written as JSON ({error})") from None


def text_bytes(text: str) -> int:
    """Length in UTF-8, lone surrogates counted as three bytes."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def decoded_meta(value: object) -> Meta:
    """`meta` of a record: an object as it is, and the Hub's form, a string that holds an object."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, str):
        try:
            inner = orjson.loads(value)
        except orjson.JSONDecodeError:
            return {"meta": value} if value else {}
        return inner if isinstance(inner, dict) else {"meta": value}
    return {} if value is None else {"meta": value}
