# SPDX-License-Identifier: Apache-2.0
"""Formulas between delimiters in running text, with the delimiters that the page itself asks for.

MathJax 2 to 4 and KaTeX's auto-render read their delimiters from a script in the page; the defaults are
those of their documentation (MathJax, "TeX and LaTeX input", "AsciiMath input"; KaTeX,
"Auto-render extension"). `\\[` is
display and `\\(` inline."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tools.proof_pile_2.open_web_math.asciimath import asciimath_to_latex
from tools.proof_pile_2.open_web_math.formulas import ENVIRONMENTS, Formula, Marks, clean_formula

Pair = tuple[str, str]

_INLINE: tuple[Pair, ...] = (("\\(", "\\)"),)
_DISPLAY: tuple[Pair, ...] = (("$$", "$$"), ("\\[", "\\]"))
_DOLLARS: Pair = ("$", "$")
_LONGEST_DELIMITER = 20
_LONGEST_FORMULA = 20_000


@dataclass(frozen=True)
class Delimiters:
    """What surrounds formulas on a page. `by_page` is False where the page says nothing: then single dollars
    count only around text that can hardly be anything but TeX."""

    inline: tuple[Pair, ...] = _INLINE
    display: tuple[Pair, ...] = _DISPLAY
    asciimath: tuple[Pair, ...] = ()
    by_page: bool = False


_STRING = r"""(?:"((?:[^"\\\n]|\\.){0,40})"|'((?:[^'\\\n]|\\.){0,40})')"""
_PAIR = re.compile(rf"\s*,?\s*\[\s*{_STRING}\s*,\s*{_STRING}\s*\]")
_LIST = {
    "inline": re.compile(r"""inlineMath["']?\s*:\s*(\{\s*["']\[\+\]["']\s*:\s*)?\["""),
    "display": re.compile(r"""displayMath["']?\s*:\s*(\{\s*["']\[\+\]["']\s*:\s*)?\["""),
}
_ASCIIMATH_LIST = re.compile(
    r"""(?:asciimath2jax|asciimath)["']?\s*:\s*\{[^{}]{0,200}?delimiters["']?\s*:\s*\["""
)
_KATEX_ENTRY = re.compile(
    rf"""["']?left["']?\s*:\s*{_STRING}\s*,\s*["']?right["']?\s*:\s*{_STRING}"""
    r"""(?:\s*,\s*["']?display["']?\s*:\s*(true|false|!0|!1))?"""
)
# MathJax 2's combined configurations and MathJax 3's components with AsciiMath; ASCIIMathML itself.
_ASCIIMATH = re.compile(
    rb"[=\-_/]am[_\-](?:html|chtml|svg|mml)|-am_|mml-am|input/asciimath|asciimathml|asciimath2jax"
)
_KATEX_WORDS = (b"rendermathinelement", b"katex.js", b"katex.min.js", b"auto-render")


def page_delimiters(html: str, page_lower: bytes) -> Delimiters:
    """The delimiters a page's scripts configure; the defaults of its renderer where they are silent.

    `page_lower` is the page in lower-cased UTF-8: words are found in it many times faster than patterns
    are."""
    mathjax = b"mathjax" in page_lower
    katex = b"katex" in page_lower and any(word in page_lower for word in _KATEX_WORDS)
    asciimath: tuple[Pair, ...] = ()
    if (mathjax or b"asciimath" in page_lower) and _ASCIIMATH.search(page_lower):
        asciimath = _pairs_after(_ASCIIMATH_LIST.search(html), html) or (("`", "`"),)
    if not (mathjax or katex or asciimath):
        return Delimiters()
    inline, display = _INLINE, _DISPLAY
    if mathjax:
        inline = _configured(_LIST["inline"], html, _INLINE)
        display = _configured(_LIST["display"], html, _DISPLAY)
    if katex and (found := list(_katex_entries(html))):
        inline = tuple(dict.fromkeys([*(inline if mathjax else ()), *(p for p, shown in found if not shown)]))
        display = tuple(dict.fromkeys([*(display if mathjax else ()), *(p for p, shown in found if shown)]))
    return Delimiters(inline, display, asciimath, by_page=mathjax or katex)


def _configured(key: re.Pattern[str], html: str, default: tuple[Pair, ...]) -> tuple[Pair, ...]:
    found = key.search(html)
    pairs = _pairs_after(found, html)
    if found is None or not pairs:
        return default
    return (*default, *pairs) if found.group(1) else pairs  # MathJax 4 adds to the default with '[+]'


def _pairs_after(found: re.Match[str] | None, html: str) -> tuple[Pair, ...]:
    """The pairs of JavaScript strings that follow a match's end."""
    pairs: list[Pair] = []
    position = found.end() if found else len(html)
    while len(pairs) < 16 and (pair := _PAIR.match(html, position)):
        strings = [_javascript_string(text) for text in pair.groups() if text is not None]
        if len(strings) == 2 and all(0 < len(text) <= _LONGEST_DELIMITER for text in strings):
            pairs.append((strings[0], strings[1]))
        position = pair.end()
    return tuple(pairs)


def _katex_entries(html: str) -> Iterator[tuple[Pair, bool]]:
    for number, entry in enumerate(_KATEX_ENTRY.finditer(html)):
        *quoted, display = entry.groups()
        strings = [_javascript_string(text) for text in quoted if text is not None]
        is_pair = number < 32 and len(strings) == 2 and all(strings)
        if is_pair and "begin{" not in strings[0]:  # environments are looked for anyhow
            yield (strings[0], strings[1]), display in ("true", "!0")


def _javascript_string(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


@dataclass(frozen=True)
class _Opening:
    right: str
    display: bool
    kind: str


@functools.lru_cache(maxsize=256)
def _openings(delimiters: Delimiters) -> tuple[re.Pattern[str], dict[str, _Opening]]:
    """A pattern for whatever may open a formula, and what each opening means. Longer ones come first."""
    opens: dict[str, _Opening] = {}
    if not delimiters.by_page:
        opens[_DOLLARS[0]] = _Opening(_DOLLARS[1], False, "dollars")
    for left, right in delimiters.inline:
        opens[left] = _Opening(right, False, "delimiters")
    for left, right in delimiters.display:
        opens[left] = _Opening(right, True, "delimiters")
    for left, right in delimiters.asciimath:
        opens[left] = _Opening(right, False, "AsciiMath")
    names = "|".join(ENVIRONMENTS)
    lefts = "|".join(re.escape(left) for left in sorted(opens, key=len, reverse=True))
    return re.compile(rf"(?<!\\)(?:\\begin\{{((?:{names})\*?)\}}|({lefts}))"), opens


_SURELY_TEX = re.compile(
    r"\\[A-Za-z]{2,}|[\^_]\{|[A-Za-z0-9)]\^[A-Za-z0-9\\]|[A-Za-z]_[A-Za-z0-9\\]|^[A-Za-z]$"
)


def take_delimited(text: str, delimiters: Delimiters, marks: Marks) -> str:
    """`text` with marks for its formulas. A formula ends before the next blank line, one in single dollars
    before the end of the line; linear in the length of the text whatever is in it."""
    pattern, opens = _openings(delimiters)
    pieces: list[str] = []
    done = 0
    closers = _Closers(text)
    position = 0
    while found := pattern.search(text, position):
        position = found.end()
        environment = found.group(1)
        opening = opens[found.group(2)] if environment is None else None
        right = f"\\end{{{environment}}}" if opening is None else opening.right
        end = closers.find(right, position, one_line=right == "$" or right == "`")
        if end < 0:
            continue
        formula = _read(text[found.start() : end + len(right)], text[position:end], opening)
        if formula is None or (opening is not None and opening.kind == "dollars" and _is_price(text, end)):
            continue
        pieces += (text[done : found.start()], marks.take(formula))
        position = done = end + len(right)
    pieces.append(text[done:])
    return "".join(pieces)


def _read(whole: str, inside: str, opening: _Opening | None) -> Formula | None:
    if opening is None:
        return clean_formula(whole, True, "environment")
    if opening.kind == "AsciiMath":
        latex = asciimath_to_latex(inside)
        return None if latex is None else clean_formula(latex, False, "AsciiMath")
    if opening.kind == "dollars" and (inside != inside.strip() or not _SURELY_TEX.search(inside)):
        return None
    return clean_formula(inside, opening.display, opening.kind)


def _is_price(text: str, end: int) -> bool:
    """`$20,000 and $30,000`: a closing dollar is not followed by a digit (pandoc's rule)."""
    return text[end + 1 : end + 2].isdigit()


class _Closers:
    """Finds closing delimiters without reading any stretch of text more than a few times."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._absent_until: dict[tuple[str, bool], int] = {}
        self._bounds = {False: ("\n\n", -1), True: ("\n", -1)}

    def find(self, right: str, start: int, one_line: bool) -> int:
        """Place of `right` at brace depth 0 within the paragraph or line of `start`, or -1."""
        if start < self._absent_until.get((right, one_line), -1):
            return -1
        bound = min(self._bound(start, one_line), start + _LONGEST_FORMULA)
        end = self._text.find(right, start, bound)
        tries = 0
        while end >= 0 and tries < 8:
            inside = self._text[start:end]
            escaped = (len(inside) - len(inside.rstrip("\\"))) % 2 == 1
            opened = inside.count("{") - inside.count("\\{")
            closed = inside.count("}") - inside.count("\\}")
            if not escaped and opened <= closed:
                return end if inside.strip() else -1
            end = self._text.find(right, end + 1, bound)
            tries += 1
        if end < 0:
            self._absent_until[right, one_line] = bound if tries == 0 else start + 1
        return -1

    def _bound(self, start: int, one_line: bool) -> int:
        mark, bound = self._bounds[one_line]
        if bound < start:
            bound = self._text.find(mark, start)
            bound = len(self._text) if bound < 0 else bound
            self._bounds[one_line] = (mark, bound)
        return bound
