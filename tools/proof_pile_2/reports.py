# SPDX-License-Identifier: Apache-2.0
"""What came in, what went out and why: counts by step, rule and language, with a few examples of each.

Each shard has a report; a run's report is their sum, and the same for the same input, whoever made the
shards. Examples are those with the smallest checksums, so that they do not depend on order either."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from megatron.neox_arguments.whole_files import write_whole
from tools.proof_pile_2.documents import Broken, Document, Passage, text_bytes

EXAMPLES = 3
_EXCERPT_CHARACTERS = 160
_SHOWN_BROKEN = 20
_SHOWN_META = 6
NO_LANGUAGE = "all"


@dataclass
class Count:
    """Documents and bytes of their text in UTF-8."""

    documents: int = 0
    text_bytes: int = 0

    def add(self, documents: int, nbytes: int) -> None:
        """Count some."""
        self.documents += documents
        self.text_bytes += nbytes


Counts = dict[str, dict[str, Count]]
"""By a name (a step, a rule, a route) and a language."""


def _count(counts: Counts, name: str, language: str, nbytes: int) -> None:
    counts.setdefault(name, {}).setdefault(language, Count()).add(1, nbytes)


def language_of(document: Document) -> str:
    """What the counts of a document are kept under."""
    language = document.meta.get("lang")
    return language if isinstance(language, str) and language else NO_LANGUAGE


@dataclass
class Report:
    """Counts of a shard, or of many."""

    read: Counts = field(default_factory=dict)
    """Under the one name "documents"."""
    into: Counts = field(default_factory=dict)
    """What each step was given, by step."""
    out_of: Counts = field(default_factory=dict)
    """What each step passed on, by step."""
    dropped: Counts = field(default_factory=dict)
    """By `step: rule`."""
    written: Counts = field(default_factory=dict)
    """By route."""
    broken: dict[str, int] = field(default_factory=dict)
    """Number, by reason."""
    broken_at: list[str] = field(default_factory=list)
    """`where: reason` of the first few."""
    examples: dict[str, list[list[Any]]] = field(default_factory=dict)
    """By `step: rule`, and by `kept: language`: [checksum, excerpt, meta] each."""
    shards: int = 0

    def take(self, document: Document) -> None:
        """A document was read."""
        _count(self.read, "documents", language_of(document), text_bytes(document.text))

    def take_broken(self, broken: Broken) -> None:
        """Something was read that is no document."""
        self.broken[_kind_of(broken.reason)] = self.broken.get(_kind_of(broken.reason), 0) + 1
        if len(self.broken_at) < _SHOWN_BROKEN:
            self.broken_at.append(f"{broken.where}: {broken.reason}"[:400])

    def take_passages(self, passages: Iterable[Passage]) -> None:
        """What the steps did with a document."""
        seen: set[tuple[str, int]] = set()
        for passage in passages:
            language, nbytes = language_of(passage.source), text_bytes(passage.source.text)
            if (passage.step, id(passage.source)) not in seen:  # a document may have several outcomes
                _count(self.into, passage.step, language, nbytes)
                seen.add((passage.step, id(passage.source)))
            if passage.result is None:
                self.drop(passage.step, passage.rule, passage.source)
            else:
                result = passage.result
                _count(self.out_of, passage.step, language_of(result), text_bytes(result.text))

    def drop(self, step: str, rule: str, document: Document) -> None:
        """A document was left out."""
        name = f"{step}: {rule}"
        _count(self.dropped, name, language_of(document), text_bytes(document.text))
        self._example(name, document)

    def keep(self, route: str, document: Document) -> None:
        """A document was written."""
        _count(self.written, route, language_of(document), text_bytes(document.text))
        self._example(f"kept: {language_of(document)}", document)

    def _example(self, name: str, document: Document) -> None:
        checksum = zlib.crc32(document.text.encode("utf-8", "surrogatepass"))
        chosen = self.examples.setdefault(name, [])
        if len(chosen) < EXAMPLES or checksum < chosen[-1][0]:
            chosen.append([checksum, excerpt(document.text), _short_meta(document.meta)])
            _trim(chosen)

    def add(self, other: Report) -> None:
        """Add another's counts and examples to these."""
        for name in ("read", "into", "out_of", "dropped", "written"):
            mine: Counts = getattr(self, name)
            for key, languages in getattr(other, name).items():
                for language, count in languages.items():
                    total = mine.setdefault(key, {}).setdefault(language, Count())
                    total.add(count.documents, count.text_bytes)
        for reason, number in other.broken.items():
            self.broken[reason] = self.broken.get(reason, 0) + number
        self.broken_at = [*self.broken_at, *other.broken_at][:_SHOWN_BROKEN]
        for key, examples in other.examples.items():
            _trim(self.examples.setdefault(key, []), examples)
        self.shards += other.shards

    def total(self, name: str) -> Count:
        """The sum of `read` or `written` over all languages and routes."""
        total = Count()
        for languages in getattr(self, name).values():
            for count in languages.values():
                total.add(count.documents, count.text_bytes)
        return total

    def as_json(self) -> dict[str, Any]:
        """For a file; the order of keys does not depend on the order of documents."""
        return {
            "shards": self.shards,
            **{name: _counts_as_json(getattr(self, name)) for name in _COUNTS},
            "broken": dict(sorted(self.broken.items())),
            "broken_at": self.broken_at,
            "examples": dict(sorted(self.examples.items())),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Report:
        """What `as_json` made. Errors: KeyError, TypeError where it did not."""
        counts = {
            name: {
                key: {language: Count(*numbers) for language, numbers in languages.items()}
                for key, languages in value[name].items()
            }
            for name in _COUNTS
        }
        return cls(
            **counts,
            broken=dict(value["broken"]),
            broken_at=list(value["broken_at"]),
            examples={key: list(examples) for key, examples in value["examples"].items()},
            shards=int(value["shards"]),
        )


_COUNTS = ("read", "into", "out_of", "dropped", "written")


def _counts_as_json(counts: Counts) -> dict[str, dict[str, list[int]]]:
    return {
        key: {language: [count.documents, count.text_bytes] for language, count in sorted(languages.items())}
        for key, languages in sorted(counts.items())
    }


def _trim(chosen: list[list[Any]], more: Iterable[list[Any]] = ()) -> None:
    """Keep the few with the smallest checksums; equal texts are one example."""
    unique = {
        (example[0], example[1]): example for example in sorted([*chosen, *more], key=_example_order)[::-1]
    }
    chosen[:] = sorted(unique.values(), key=_example_order)[:EXAMPLES]


def _example_order(example: list[Any]) -> tuple[Any, ...]:
    return (example[0], example[1], orjson.dumps(example[2], option=orjson.OPT_SORT_KEYS))


def _kind_of(reason: str) -> str:
    """The reason without what varies: what stands in brackets, and numbers."""
    words = reason.split(" (")[0].split(": ")[0]
    return " ".join("N" if word.isdigit() else word for word in words.split())


def excerpt(text: str) -> str:
    """The beginning of a text on one line."""
    start = text[: 2 * _EXCERPT_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
    words = " ".join(start.split())
    return words if len(words) <= _EXCERPT_CHARACTERS else words[: _EXCERPT_CHARACTERS - 1] + "…"


def _short_meta(meta: Mapping[str, Any]) -> dict[str, str]:
    chosen = [(key, value) for key, value in meta.items() if isinstance(value, (str, int, float, bool))]
    return {excerpt(key): excerpt(str(value)) for key, value in chosen[:_SHOWN_META]}


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_whole(path, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def markdown(title: str, report: Report, steps: Iterable[str]) -> str:
    """The report for a reader."""
    return "\n".join(_markdown_lines(title, report, list(steps))) + "\n"


def _markdown_lines(title: str, report: Report, steps: list[str]) -> Iterator[str]:
    read, written = report.total("read"), report.total("written")
    yield f"# {title}\n"
    yield (
        f"{read.documents:,} documents ({read.text_bytes:,} bytes) in, {written.documents:,} "
        f"({written.text_bytes:,} bytes) out, {sum(report.broken.values()):,} broken, {report.shards:,} "
        f"shard{'' if report.shards == 1 else 's'}.\n"
    )
    yield from _table("Read, by language", "", {"documents": report.read.get("documents", {})})
    yield from _table("Written", "Route", report.written)
    steps = [step for step in steps if step in report.into]
    if steps:
        yield "## Steps\n"
        yield "| Step | Documents in | Bytes in | Documents out | Bytes out |\n|---|---|---|---|---|"
        for step in steps:
            into, out_of = _sum(report.into.get(step, {})), _sum(report.out_of.get(step, {}))
            numbers = (into.documents, into.text_bytes, out_of.documents, out_of.text_bytes)
            yield f"| {_cell(step)} | " + " | ".join(f"{number:,}" for number in numbers) + " |"
        yield ""
    yield from _table("Dropped", "Rule", report.dropped)
    if report.broken:
        yield "## Broken\n\n| Reason | Number |\n|---|---|"
        for reason, number in sorted(report.broken.items()):
            yield f"| {_cell(reason)} | {number:,} |"
        yield "\nThe first of them:\n"
        for line in report.broken_at:
            yield f"- {_cell(line)}"
        yield ""
    if report.examples:
        yield "## Examples\n"
    for name, examples in sorted(report.examples.items()):
        yield f"**{_cell(name)}**\n"
        for _, text, meta in examples:
            origin = ", ".join(f"{key} {value}" for key, value in meta.items())
            yield f"- {_code(text)}" + (f" ({_cell(origin)})" if origin else "")
        yield ""


def _sum(languages: Mapping[str, Count]) -> Count:
    return Count(sum(c.documents for c in languages.values()), sum(c.text_bytes for c in languages.values()))


def _table(title: str, first_column: str, counts: Counts) -> Iterator[str]:
    if not any(counts.values()):
        return
    yield f"## {title}\n"
    lead = f"| {first_column} " if first_column else ""
    yield f"{lead}| Language | Documents | Bytes |\n" + ("|---" if lead else "") + "|---|---|---|"
    for name, languages in sorted(counts.items()):
        for language, count in sorted(languages.items()):
            start = f"| {_cell(name)} " if first_column else ""
            yield f"{start}| {_cell(language)} | {count.documents:,} | {count.text_bytes:,} |"
    yield ""


def _cell(text: str) -> str:
    """Text of others in Markdown: no markup, no table's end, no control characters."""
    clean = "".join(c if c.isprintable() else "�" for c in text)
    return clean.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _code(text: str) -> str:
    clean = "".join(c if c.isprintable() else "�" for c in text).replace("`", "'")
    return f"`{clean or ' '}`"
