# SPDX-License-Identifier: Apache-2.0
"""The conditions of which AlgebraicStack's table of languages is made. Each is data, with the words under
which a file that fails it is reported. All take time linear in the length of the file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from tools.proof_pile_2.documents import Document, text_bytes

_DIGIT = re.compile(r"\d")
_ASCII_BLANKS = b" \t\n\v\f\r\x1c\x1d\x1e\x1f"


class Condition(Protocol):
    """What a file must be. Picklable."""

    @property
    def rule(self) -> str:
        """Why a file that fails was dropped."""

    def holds(self, document: Document) -> bool:
        """Whether the file is so."""


def file_path(document: Document) -> str:
    """A file's path within its repository or folder, as its source names it; "" where it is not known."""
    for key in ("path", "max_stars_repo_path", "max_issues_repo_path", "max_forks_repo_path"):
        if isinstance(value := document.meta.get(key), str):
            return value
    return ""


def repository(document: Document) -> str:
    """The `owner/name` of a file's repository; "" where it is not known."""
    for key in ("repo", "repo_name", "max_stars_repo_name", "max_issues_repo_name"):
        if isinstance(value := document.meta.get(key), str):
            return value
    return ""


def digit_share(text: str) -> float:
    """Digits as a share of the characters that are not blank; 0 where there are none of these."""
    if text.isascii():  # ten times as fast
        characters = text.encode().translate(None, _ASCII_BLANKS)
        solid, digits = len(characters), len(characters) - len(characters.translate(None, b"0123456789"))
    else:
        solid, digits = sum(map(len, text.split())), len(_DIGIT.findall(text))
    return digits / solid if solid else 0.0


@dataclass(frozen=True)
class HasText:
    """Holds something beside blanks."""

    rule: str = "blank"

    def holds(self, document: Document) -> bool:
        """Whether any character is not blank."""
        return bool(document.text) and not document.text.isspace()


@dataclass(frozen=True)
class AtMostBytes:
    """Is not larger, in UTF-8."""

    limit: int

    @property
    def rule(self) -> str:
        """With the limit."""
        return f"more than {self.limit:,} bytes"

    def holds(self, document: Document) -> bool:
        """Compare."""
        return text_bytes(document.text) <= self.limit


@dataclass(frozen=True)
class DigitsAtMost:
    """Digits make up no more of what is not blank."""

    share: float

    @property
    def rule(self) -> str:
        """With the share."""
        return f"digits above {self.share:g}"

    def holds(self, document: Document) -> bool:
        """Compare."""
        return digit_share(document.text) <= self.share


@dataclass(frozen=True)
class StartsWithNone:
    """Does not start so; with `after_blanks`, not even after blanks."""

    beginnings: tuple[str, ...]
    after_blanks: bool = False

    @property
    def rule(self) -> str:
        """With the beginnings."""
        return f"starts with {' or '.join(self.beginnings)}"

    def holds(self, document: Document) -> bool:
        """Look at the start."""
        text = document.text.lstrip() if self.after_blanks else document.text
        return not text.startswith(self.beginnings)


@dataclass(frozen=True)
class ContainsAny:
    """Holds one of the strings; `fold` compares lower case."""

    strings: tuple[str, ...]
    rule: str
    fold: bool = False

    def holds(self, document: Document) -> bool:
        """Look for each."""
        text = document.text.lower() if self.fold else document.text
        return any(string in text for string in self.strings)


@dataclass(frozen=True)
class ContainsNone:
    """Holds none of the strings."""

    strings: tuple[str, ...]
    rule: str

    def holds(self, document: Document) -> bool:
        """Look for each."""
        return not any(string in document.text for string in self.strings)


@dataclass(frozen=True)
class Matches:
    """The pattern is found."""

    pattern: str
    rule: str

    def holds(self, document: Document) -> bool:
        """Search."""
        return _compiled(self.pattern).search(document.text) is not None


@dataclass(frozen=True)
class MatchesNone:
    """The pattern is not found. `^` and `$` are those of a line."""

    pattern: str
    rule: str

    def holds(self, document: Document) -> bool:
        """Search."""
        return _compiled(self.pattern).search(document.text) is None


@dataclass(frozen=True)
class NoLineWith:
    """No line holds `inside` and, after it, ends with `end`. Equal to the pattern `inside.*end$`, which takes
    quadratic time on a line that repeats `inside`."""

    inside: str
    end: str
    rule: str

    def holds(self, document: Document) -> bool:
        """Look at each line."""
        return not any(map(self._is_so, document.text.split("\n")))

    def _is_so(self, line: str) -> bool:
        place = line.find(self.inside)
        return (
            place >= 0 and line.endswith(self.end) and len(line) >= place + len(self.inside) + len(self.end)
        )


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.MULTILINE)


@dataclass(frozen=True)
class PathEndsWith:
    """The file is called so."""

    suffix: str

    @property
    def rule(self) -> str:
        """With the suffix."""
        return f"not called *{self.suffix}"

    def holds(self, document: Document) -> bool:
        """By the path, or by the Stack's `ext` where there is no path; in any case, as files are chosen."""
        path = file_path(document)
        return (path or f".{document.meta.get('ext', '')}").lower().endswith(self.suffix)


@dataclass(frozen=True)
class PathLacks:
    """The path does not hold the string."""

    string: str

    @property
    def rule(self) -> str:
        """With the string."""
        return f"path with {self.string}"

    def holds(self, document: Document) -> bool:
        """Look for it."""
        return self.string not in file_path(document)


@dataclass(frozen=True)
class RepositoryMatchesNone:
    """The repository's name, in any case, does not match."""

    pattern: str
    rule: str

    def holds(self, document: Document) -> bool:
        """Search in `owner/name`, and in the path where files of many repositories lie in one folder."""
        pattern = re.compile(self.pattern, re.IGNORECASE)
        return not any(pattern.search(place) for place in (repository(document), file_path(document)))


@dataclass(frozen=True)
class ManyTestsIfLarge:
    """From `from_bytes` on, `word` occurs often, counted a line."""

    from_bytes: int
    word: str
    per_line: float

    @property
    def rule(self) -> str:
        """With the numbers."""
        return f"from {self.from_bytes:,} bytes on, fewer than {self.per_line:g} {self.word} a line"

    def holds(self, document: Document) -> bool:
        """Count words and lines."""
        if text_bytes(document.text) < self.from_bytes:
            return True
        lines = len(document.text.splitlines())
        return document.text.count(self.word) >= self.per_line * lines


@dataclass(frozen=True)
class FewDigitsIfLarge:
    """From `from_bytes` on, digits make up no more of what is not blank."""

    from_bytes: int
    share: float

    @property
    def rule(self) -> str:
        """With the numbers."""
        return f"from {self.from_bytes:,} bytes on, digits above {self.share:g}"

    def holds(self, document: Document) -> bool:
        """Compare."""
        return text_bytes(document.text) < self.from_bytes or digit_share(document.text) <= self.share


@dataclass(frozen=True)
class EnglishTex:
    """The prose of a TeX file is English, judged by py3langid on its beginning."""

    rule: str = "not English"

    def holds(self, document: Document) -> bool:
        """Identify the language of what is left without commands and formulas."""
        from tools.proof_pile_2.language import is_english

        return is_english(tex_prose(document.text))


_PROSE_CHARACTERS = 200_000
_COMMENT = re.compile(r"(?<!\\)%.*")
_COMMAND = re.compile(r"\\[A-Za-z@]+\*?|\\.|[{}\[\]&~^_#]|\d+")


def tex_prose(text: str) -> str:
    """The words of the beginning of a TeX file: comments, formulas in `$` and commands are taken out."""
    start = _COMMENT.sub("", text[:_PROSE_CHARACTERS])
    outside = start.replace("$$", "$").split("$")[::2]
    return " ".join(_COMMAND.sub(" ", " ".join(outside)).split())
