# SPDX-License-Identifier: Apache-2.0
"""Theorems of test sets are cut out of formal files: PISA, LeanDojo, miniF2F and ProofNet, from files that
the user names.

Every theorem of a file is removed that the test set names, not one a file. In Lean a theorem begins with the
attributes, options and documentation above it and ends at the next blank line; in Isabelle and Coq it ends
before the next line that begins with a command of the outer level. A statement of Isabelle that has no name
is one of the test set when it is the same statement."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from megatron.neox_arguments.errors import UserError
from tools.proof_pile_2.algebraic_stack.conditions import file_path
from tools.proof_pile_2.documents import Document, Dropped, version_of

_NAME_KEYS = ("full_name", "theorem_name", "problem_name", "name", "id")
_STATEMENT_KEYS = ("formal_statement", "statement", "theorem_statement")
_FILE_KEYS = ("file_path", "path", "file")
_NAME = r"[^\s:\[\](){},\"⟨⟩«»]+"
# Neither a mark nor a keyword of Isabelle, whose statements begin alike.
_LEAN_NAME = r"(?!%|(?:fixes|assumes|shows|obtains|includes|defines)\b)(?:«[^»\n]*»|[^\s:\[\](){},\"⟨⟩«»])+"
# With strings and one level of brackets inside, as in @[to_additive "a [x] b"].
_ATTRIBUTES = r"@\[(?:[^\[\]\n\"]|\"(?:[^\"\\\n]|\\.)*\"|\[[^\[\]\n]*\])*\]"
# Up to the first `in` only: with a choice, a line of many would take time without end.
_IN = r"(?:set_option|open|omit|include|variable|attribute)\b(?:(?![^\S\n]in\b)[^\n])*[^\S\n]in\b"
DECLARATIONS = {
    "lean": re.compile(rf"^[^\S\n]*(?:(?:{_ATTRIBUTES}|{_IN}|private|protected|public|noncomputable|nonrec|"
                       rf"unsafe|partial|local|scoped)[^\S\n]+)*(?:theorem|lemma)[^\S\n]+(?P<name>{_LEAN_NAME})",
                       re.MULTILINE),
    "isabelle": re.compile(rf"^[^\S\n]*(?:(?:private|qualified)\s+)?"
                           rf"(?:theorem|lemma|corollary|proposition|schematic_goal)\b(?:\s*%\s*\w+)*\s*"
                           rf"(?:\((?:in|is)\s[^)\n]*\)\s*)?(?:(?P<name>{_NAME})\s*(?:\[[^\]]*\])?\s*:)?",
                           re.MULTILINE),
    "coq": re.compile(rf"^[^\S\n]*(?:Theorem|Lemma|Corollary|Proposition|Fact|Remark|Example|Definition)"
                      rf"[^\S\n]+(?P<name>{_NAME})", re.MULTILINE),
}  # fmt: skip
_NAMESPACE = re.compile(rf"^(?:(?P<open>namespace)|(?P<section>(?:noncomputable\s+)?section)|(?P<end>end))\b"
                        rf"[^\S\n]*(?P<name>{_NAME})?", re.MULTILINE)  # fmt: skip
# What stands above a theorem of Lean on lines of its own and belongs to it.
_ABOVE = re.compile(rf"[^\S\n]*(?:{_ATTRIBUTES}|{_IN})[^\S\n]*")
_QUOTED = re.compile(r"\"[^\"]*\"|\\<open>.*?\\<close>|‹[^›]*›", re.DOTALL)
_BLANK = re.compile(r"\n[^\S\n]*\n")
_NEXT_COMMAND = {
    "isabelle": re.compile(
        r"^(?:theorem|lemma|corollary|proposition|schematic_goal|definition|fun|function|primrec|abbreviation|datatype|"
        r"inductive|inductive_set|coinductive|record|typedef|type_synonym|locale|class|instance|instantiation|context|"
        r"section|subsection|subsubsection|chapter|text|txt|end|declare|lemmas|theorems|notation|no_notation|"
        r"interpretation|sublocale|termination|ML|setup|export_code|hide_const|consts|axiomatization)\b",
        re.MULTILINE,
    ),
    "coq": re.compile(
        r"^[^\S\n]*(?:Theorem|Lemma|Corollary|Proposition|Fact|Remark|Example|Definition|Fixpoint|Inductive|"
        r"CoInductive|Record|Class|Instance|Section|End|Module|Require|Import|Export|Notation|Ltac|Variable|"
        r"Variables|Hypothesis|Axiom|Parameter|Global|Local|Hint|Arguments|Open)\b",
        re.MULTILINE,
    ),
}


@dataclass(frozen=True)
class Theorem:
    """One item of a test set. `file` is the path that the set gives, "" where it gives none."""

    name: str
    statement: str = ""
    file: str = ""


def read_theorems(path: Path) -> list[Theorem]:
    """The theorems of a JSON or JSONL file (objects; for PISA pairs of path and statement), or of a text
    file with a name a line.

    Errors: `UserError` for a file that cannot be read or holds none."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); name a file of test theorems") from None
    try:
        values: list[Any] = [orjson.loads(data)]
    except orjson.JSONDecodeError:
        try:
            values = [orjson.loads(line) for line in data.split(b"\n") if line.strip()]
        except orjson.JSONDecodeError:
            values = [{"name": line.strip()} for line in text.splitlines() if line.strip()]
    theorems = [theorem for value in values for theorem in _theorems(value)]
    if not theorems:
        raise UserError(
            f"{path}: holds no test theorem; give objects with one of {', '.join(_NAME_KEYS)}, pairs of "
            "path and "
            "statement, or a name a line"
        )
    return sorted(set(theorems), key=lambda t: (t.name, t.file, t.statement))


def _theorems(value: object) -> Iterator[Theorem]:
    if isinstance(value, list):
        if len(value) == 2 and all(isinstance(part, str) for part in value):
            yield from _named(Theorem("", value[1], value[0]))
        else:
            for part in value:
                yield from _theorems(part)
    elif isinstance(value, dict):
        name, statement, file = (
            next((value[key] for key in keys if isinstance(value.get(key), str)), "")
            for keys in (_NAME_KEYS, _STATEMENT_KEYS, _FILE_KEYS)
        )
        if name or statement:
            yield from _named(Theorem(name, statement, file))
        else:
            for part in value.values():
                if isinstance(part, (list, dict)):
                    yield from _theorems(part)
    elif isinstance(value, str):
        yield from _named(Theorem(value))


def _named(theorem: Theorem) -> Iterator[Theorem]:
    """With the name that the statement declares, where none is given."""
    if theorem.name:
        yield theorem
        return
    for pattern in DECLARATIONS.values():
        if (found := pattern.match(theorem.statement)) and found["name"]:
            yield Theorem(plain_name(found["name"]), theorem.statement, theorem.file)
            return
    yield theorem


def plain_name(name: str) -> str:
    """Without what Lean writes around a name: `«a b»`, `bar.{u}`, `_root_.a`."""
    return name.replace("«", "").replace("»", "").rstrip(".").removeprefix("_root_.")


def proposition(statement: str) -> str:
    """What a statement of Isabelle without a name says: its quoted parts, blanks folded."""
    return folded(" ".join(_QUOTED.findall(statement)))


@dataclass(frozen=True)
class CutTheorems:
    """Cuts the theorems of test sets out of files of one language.

    A theorem is one of the test set when its name is, with its namespaces in Lean; in a file that the test
    set names, also when a name of the set for this file ends in it."""

    language: str
    theorems: tuple[Theorem, ...]
    name: str = "leakage"

    @cached_property
    def version(self) -> str:
        """Changes with the theorems."""
        return version_of(2, self.language, self.theorems)

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(plain_name(theorem.name) for theorem in self.theorems if theorem.name)

    @cached_property
    def _unnamed(self) -> frozenset[str]:
        """The propositions that have no name."""
        return frozenset(proposition(t.statement) for t in self.theorems if not t.name) - {""}

    @cached_property
    def _by_file(self) -> dict[str, frozenset[str]]:
        """The last parts of names, by the end of their file's path."""
        found: dict[str, set[str]] = {}
        for theorem in self.theorems:
            if theorem.file and theorem.name:
                found.setdefault(_base(theorem.file), set()).add(plain_name(theorem.name).rpartition(".")[2])
        return {file: frozenset(names) for file, names in found.items()}

    def __call__(self, document: Document) -> Document | Dropped:
        """Cut; a file of which nothing is left is dropped."""
        text = document.text
        own = (
            self._by_file.get(_base(file_path(document)), frozenset())
            if self.language == "lean"
            else frozenset()
        )
        cuts = list(self._cuts(text, own))
        if not cuts:
            return document
        kept = without(text, cuts)
        return document.with_text(kept) if kept.strip() else Dropped("nothing beside test theorems")

    def _cuts(self, text: str, own: frozenset[str]) -> Iterator[tuple[int, int]]:
        spaces = _namespaces(text) if self.language == "lean" else iter(())
        space, following = "", next(spaces, None)
        for found in DECLARATIONS[self.language].finditer(text):
            while following is not None and following[0] <= found.start():
                space, following = following[1], next(spaces, None)
            if found["name"] is None:
                end = self._end(text, found.end())
                if self._unnamed and _says(text[found.end() : end], self._unnamed):
                    yield found.start(), end
                continue
            name = plain_name(found["name"])
            is_whole = not space or found["name"].startswith("_root_.")
            full = name if is_whole else f"{space}.{name}"
            if name in self._names or full in self._names or name.rpartition(".")[2] in own:
                start = _first_line(text, found.start()) if self.language == "lean" else found.start()
                yield start, self._end(text, found.end())

    def _end(self, text: str, start: int) -> int:
        if self.language in _NEXT_COMMAND:
            command = _NEXT_COMMAND[self.language].search(text, start)
            return command.start() if command else len(text)
        blank = _BLANK.search(text, start)
        return blank.start() + 1 if blank else len(text)


def _says(text: str, propositions: frozenset[str]) -> bool:
    """Whether a statement begins with one of the propositions; its proof may quote more."""
    parts: list[str] = []
    for part in itertools.islice(_QUOTED.findall(text), 64):
        parts.append(folded(part))
        if " ".join(parts) in propositions:
            return True
    return False


def _first_line(text: str, start: int) -> int:
    """Where what belongs to a theorem of Lean begins: attributes, options and documentation right above."""
    while start:
        above = text.rfind("\n", 0, start - 1) + 1
        line = text[above : start - 1]
        if line.rstrip().endswith("-/") and (begin := text.rfind("/-", 0, start)) >= 0:
            if not text.startswith("/--", begin):
                return start
            above = text.rfind("\n", 0, begin) + 1
        elif not _ABOVE.fullmatch(line):
            return start
        start = above
    return 0


def _base(path: str) -> str:
    """The last two parts of a path: folders above differ between copies of a library."""
    return "/".join(path.replace("\\", "/").split("/")[-2:])


def _namespaces(text: str) -> Iterator[tuple[int, str]]:
    """(place, namespace from there on) of a Lean file. A bare `end` closes a section without a name;
    others close what began with `begin`, `match` or `calc`."""
    stack: list[tuple[str, bool]] = []  # name, and whether it is a namespace
    for found in _NAMESPACE.finditer(text):
        name = found["name"] or ""
        if not found["end"]:
            stack.append((name, found["open"] is not None))
        elif name in [opened for opened, _ in stack[-1 if not name else 0 :]]:
            while stack.pop()[0] != name:
                pass
        else:
            continue
        yield found.start(), ".".join(opened for opened, is_namespace in stack if is_namespace and opened)


def without(text: str, cuts: Iterable[tuple[int, int]]) -> str:
    """The text without the stretches, which may overlap and are sorted by their starts."""
    kept, place = [], 0
    for start, end in cuts:
        if start > place:
            kept.append(text[place:start])
        place = max(place, end)
    return "".join([*kept, text[place:]])


def folded(text: str) -> str:
    """Blanks folded, to compare statements that are broken into lines differently."""
    return " ".join(text.split())


@dataclass(frozen=True)
class DropStatements:
    """Drops a document that holds a statement of the test set, blanks folded."""

    theorems: tuple[Theorem, ...]
    name: str = "leakage"

    @cached_property
    def version(self) -> str:
        """Changes with the theorems."""
        return version_of(1, self.theorems)

    @cached_property
    def _statements(self) -> dict[str, tuple[str, ...]]:
        """By their first words, so that one pass over a document finds those that may be in it."""
        found: dict[str, list[str]] = {}
        for statement in {
            folded(theorem.statement) for theorem in self.theorems if theorem.statement.strip()
        }:
            found.setdefault(" ".join(statement.split()[:2]), []).append(statement)
        return {words: tuple(sorted(statements)) for words, statements in found.items()}

    def __call__(self, document: Document) -> Document | Dropped:
        """Look for each."""
        text = folded(document.text)
        words = text.split(" ")
        pairs = {*words, *(f"{first} {second}" for first, second in itertools.pairwise(words))}
        for start in self._statements.keys() & pairs:
            if any(statement in text for statement in self._statements[start]):
                return Dropped("holds a test statement")
        return document
